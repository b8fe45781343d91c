// Small helpers around the DOM. Text goes into text nodes only; nothing here or elsewhere parses HTML.

export const $ = (id) => document.getElementById(id);

/** An element: `h("a", { href, class: "x" }, "text", child)`. Attributes that are null or false are left out. */
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children);
  return element;
}

/** Runs `draw` before the next frame, however often it is asked for until then. A hidden page has no frames: a timer. */
export function onFrame(draw) {
  let asked = false;
  const run = () => {
    asked = false;
    draw();
  };
  return () => {
    if (asked) return;
    asked = true;
    if (document.hidden) setTimeout(run, 100);
    else requestAnimationFrame(run);
  };
}

export function count(number) {
  return number.toLocaleString("en");
}

/** Milliseconds for people. */
export function duration(milliseconds) {
  if (milliseconds < 1000) return `${Math.round(milliseconds)} ms`;
  return milliseconds < 100_000 ? `${(milliseconds / 1000).toFixed(1)} s` : `${Math.round(milliseconds / 1000)} s`;
}

export function bytes(number) {
  if (number < 1000) return `${number} B`;
  return number < 1_000_000 ? `${(number / 1000).toFixed(1)} KB` : `${(number / 1_000_000).toFixed(1)} MB`;
}

export function dollars(number) {
  return number === 0 ? "$0" : `$${number < 0.01 ? number.toPrecision(2) : number.toFixed(3)}`;
}
