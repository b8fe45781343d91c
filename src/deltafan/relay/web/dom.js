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

/**
 * Keeps the end of a scroller in view while its content grows, until the reader scrolls up, and again from when the
 * reader is back at the end. Gives a function that does so at once; with `true` it begins anew.
 */
export function stickToEnd(scroller, ...content) {
  let follows = true;
  let top = 0; // where it was last: only a way up is the reader's, everything else may be a change of sizes
  scroller.addEventListener("scroll", () => {
    const { scrollTop, clientHeight, scrollHeight } = scroller;
    if (clientHeight > 0) follows = scrollTop + clientHeight >= scrollHeight - 40 || (follows && scrollTop >= top - 1);
    top = scrollTop;
  });
  const go = (anew) => {
    follows ||= anew === true;
    if (!follows) return;
    scroller.scrollTop = scroller.scrollHeight;
    top = scroller.scrollTop;
  };
  const observer = new ResizeObserver(() => go());
  for (const element of [scroller, ...content]) observer.observe(element);
  return go;
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
