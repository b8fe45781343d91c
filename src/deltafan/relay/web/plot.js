// Small live plots, drawn as SVG: one or two lines over the newest samples, with their last value and their top.

import { h } from "./dom.js";

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 300;
const HEIGHT = 72;
const SAMPLES = 120;
const FEWEST = 30; // samples that the width is divided into at first

export class Plot {
  element;
  #series;
  #format;
  #values;
  #top;

  /**
   * @param {string} title
   * @param {{name: string, kind: "first" | "second"}[]} series one or two
   * @param {(value: number) => string} format a value for people
   */
  constructor(title, series, format) {
    this.#format = format;
    this.#series = series.map(({ name, kind }) => ({
      values: [],
      line: svg("path", { class: `line ${kind}` }),
      area: svg("path", { class: `area ${kind}` }),
      shown: h("b", {}, "–"),
      name,
      kind,
    }));
    this.#top = h("span", { class: "top soft" });
    const drawing = svg("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    for (const { area, line } of this.#series) drawing.append(area, line);
    this.#values = h(
      "p",
      { class: "values" },
      ...this.#series.map(({ shown, name, kind }) => h("span", { class: `legend ${kind}` }, shown, ` ${name}`)),
    );
    this.element = h("figure", { class: "plot" }, h("figcaption", {}, title, this.#top), this.#values, drawing);
  }

  /** One more sample: a value for each series, null where there is none. */
  add(...values) {
    this.#series.forEach((series, place) => {
      const value = values[place] ?? null;
      series.values.push(value);
      if (series.values.length > SAMPLES) series.values.shift();
      series.shown.textContent = value === null ? "–" : this.#format(value);
    });
    const top = Math.max(0, ...this.#series.flatMap(({ values: known }) => known.filter((value) => value !== null)));
    this.#top.textContent = top > 0 ? `top ${this.#format(top)}` : "";
    for (const series of this.#series) this.#draw(series, top || 1);
  }

  #draw({ values, line, area }, top) {
    const step = WIDTH / (Math.max(FEWEST, values.length) - 1);
    const left = WIDTH - (values.length - 1) * step;
    const parts = [];
    let run = [];
    const close = () => {
      if (run.length) parts.push(run);
      run = [];
    };
    values.forEach((value, place) => {
      if (value === null) return close();
      run.push([left + place * step, HEIGHT - 2 - (value / top) * (HEIGHT - 8)]);
    });
    close();
    const path = (points) => points.map(([x, y], place) => `${place ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`).join("");
    // A single sample between two silences would have no length: it gets one.
    line.setAttribute("d", parts.map((points) => `${path(points)}h.1`).join(""));
    area.setAttribute("d", parts.map((points) => `${path(points)}V${HEIGHT}H${points[0][0].toFixed(1)}Z`).join(""));
  }
}

function svg(tag, attributes) {
  const element = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}
