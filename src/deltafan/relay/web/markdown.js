// Markdown as DOM nodes, while it streams. What a model writes is data: HTML in it is shown as text.
//
// Blocks that are complete stay as they are; only the last one is drawn again, so that a long answer stays cheap.

import { split } from "./blocks.js";
import { h } from "./dom.js";
import { MAX_DEPTH, inline } from "./inline.js";

/** Draws a growing text into an element. */
export class Markdown {
  #root;
  #tail = ""; // the text from the first block on that may still change
  #drawn = []; // the nodes of that part
  #key = null; // what the last block was: an open fence is only written on

  constructor(root) {
    this.#root = root;
  }

  clear() {
    this.#root.replaceChildren();
    this.#tail = "";
    this.#drawn = [];
    this.#key = null;
  }

  append(text) {
    this.#tail += text;
    const blocks = split(this.#tail);
    const last = blocks.at(-1);
    if (last?.kind === "code" && blocks.length === 1 && this.#key === keyOf(last)) {
      this.#drawn[0].firstChild.textContent = last.text;
      return;
    }
    // A line without its end may turn out to be another block, and then belong to the one before.
    const open = blocks.length > 1 && !this.#tail.slice(last.start).includes("\n") ? 2 : 1;
    const stable = Math.max(0, blocks.length - open);
    for (const node of this.#drawn) node.remove();
    for (const block of blocks.slice(0, stable)) this.#root.append(draw(block, 0));
    this.#drawn = blocks.slice(stable).map((block) => draw(block, 0));
    this.#root.append(...this.#drawn);
    this.#key = blocks.length - stable === 1 ? keyOf(last) : null;
    if (stable > 0) this.#tail = this.#tail.slice(blocks[stable].start);
  }
}

const keyOf = (block) => (block.kind === "code" ? `code ${block.language}` : block.kind);

function draw(block, depth) {
  switch (block.kind) {
    case "heading":
      return h(`h${Math.min(block.level + 2, 6)}`, {}, ...inline(block.text.trim())); // h1 and h2 are the page's own
    case "rule":
      return h("hr");
    case "code":
      return h("pre", { tabindex: "0" }, h("code", { "data-language": block.language || null }, block.text));
    case "quote":
      return h("blockquote", {}, ...inner(block.text, depth));
    case "list": {
      const start = block.ordered && block.first !== 1 ? block.first : null;
      return h(block.ordered ? "ol" : "ul", { start }, ...block.items.map((item) => drawItem(item, depth)));
    }
    case "table":
      return drawTable(block);
    default:
      return h("p", {}, ...inline(block.text.trimEnd()));
  }
}

/** The blocks inside of a block. */
function inner(text, depth) {
  if (depth >= MAX_DEPTH) return [text];
  return split(text).map((block) => draw(block, depth + 1));
}

function drawItem(text, depth) {
  const nodes = inner(text, depth);
  const single = nodes[0] instanceof HTMLParagraphElement && !/\n[ \t]*\n/.test(text);
  return h("li", {}, ...(single ? [...nodes[0].childNodes, ...nodes.slice(1)] : nodes));
}

function drawTable({ head, align, rows }) {
  const row = (tag, texts) =>
    h("tr", {}, ...head.map((_, place) => h(tag, { "data-align": align[place] }, ...inline(texts[place] ?? ""))));
  const body = rows.map((texts) => row("td", texts));
  return h("div", { class: "table", tabindex: "0" }, h("table", {}, h("thead", {}, row("th", head)), h("tbody", {}, ...body)));
}
