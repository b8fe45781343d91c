// Markdown as DOM nodes, while it streams. What a model writes is data: HTML in it is shown as text, a link goes to http,
// https or mailto only, and an image becomes a link to it.
//
// Blocks that are complete stay as they are; only the last one is drawn again, so that a long answer stays cheap.

import { h } from "./dom.js";

const MAX_DEPTH = 6; // of nested quotes, lists and emphasis; deeper is shown as it was written
const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#+)?[ \t]*$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const TABLE_LINE = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

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

// ------------------------------------------------------------------------------------------------------------ blocks

/** The blocks of a text, each with the place where it starts. The last one may be half-finished. */
function split(text) {
  const blocks = [];
  const lines = text.split("\n");
  const starts = [];
  let place = 0;
  for (const line of lines) {
    starts.push(place);
    place += line.length + 1;
  }
  let at = 0;
  while (at < lines.length) {
    if (lines[at].trim() === "") {
      at += 1;
      continue;
    }
    const [block, next] = read(lines, at);
    blocks.push({ ...block, start: starts[at] });
    at = next;
  }
  return blocks;
}

/** The block that begins at a line, and the line after it. */
function read(lines, at) {
  const line = lines[at];
  const fence = FENCE.exec(line);
  if (fence) return readFence(lines, at, fence);
  const heading = HEADING.exec(line);
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2] ?? "" }, at + 1];
  if (RULE.test(line)) return [{ kind: "rule" }, at + 1];
  if (QUOTE.test(line)) return readQuote(lines, at);
  if (ITEM.test(line)) return readList(lines, at);
  if (beginsTable(lines, at)) return readTable(lines, at);
  return readParagraph(lines, at);
}

function readFence(lines, at, [, marks, language]) {
  const closing = new RegExp(`^ {0,3}${marks[0] === "\`" ? "`" : "~"}{${marks.length},}[ \t]*$`);
  let end = at + 1;
  while (end < lines.length && !closing.test(lines[end])) end += 1;
  const text = lines.slice(at + 1, end).join("\n");
  return [{ kind: "code", language: language.trim().split(/\s/)[0], text }, Math.min(end + 1, lines.length)];
}

function readQuote(lines, at) {
  const inner = [];
  let end = at;
  for (; end < lines.length; end += 1) {
    if (QUOTE.test(lines[end])) inner.push(lines[end].replace(QUOTE, ""));
    else if (lines[end].trim() === "" || beginsBlock(lines[end])) break;
    else inner.push(lines[end]);
  }
  return [{ kind: "quote", text: inner.join("\n") }, end];
}

function readList(lines, at) {
  const ordered = /\d/.test(ITEM.exec(lines[at])[2]);
  const first = ordered ? Number.parseInt(ITEM.exec(lines[at])[2], 10) : 1;
  const items = [];
  let width = 0;
  let blank = false;
  let end = at;
  for (; end < lines.length; end += 1) {
    const line = lines[end];
    const item = ITEM.exec(line);
    const indent = line.search(/\S/);
    if (indent < 0) {
      blank = true;
      items.at(-1)?.push("");
    } else if (items.length > 0 && indent >= Math.min(width, 2) && indent > ITEM.exec(lines[at])[1].length) {
      items.at(-1).push(line.slice(Math.min(indent, width)));
      blank = false;
    } else if (item && !RULE.test(line)) {
      if (/\d/.test(item[2]) !== ordered) break;
      width = item[0].length;
      items.push([line.slice(width)]);
      blank = false;
    } else if (blank || beginsBlock(line)) {
      break;
    } else {
      items.at(-1).push(line); // a paragraph may go on without its indent
    }
  }
  return [{ kind: "list", ordered, first, items: items.map((item) => item.join("\n").trimEnd()) }, end];
}

function readTable(lines, at) {
  const align = cells(lines[at + 1]).map((cell) => {
    if (cell.endsWith(":")) return cell.startsWith(":") ? "center" : "right";
    return null;
  });
  const rows = [];
  let end = at + 2;
  for (; end < lines.length && lines[end].includes("|") && lines[end].trim() !== ""; end += 1) rows.push(cells(lines[end]));
  return [{ kind: "table", head: cells(lines[at]), align, rows }, end];
}

function readParagraph(lines, at) {
  let end = at + 1;
  while (end < lines.length && lines[end].trim() !== "" && !beginsBlock(lines[end]) && !beginsTable(lines, end)) end += 1;
  return [{ kind: "paragraph", text: lines.slice(at, end).map((line) => line.replace(/^ +/, "")).join("\n") }, end];
}

const beginsBlock = (line) =>
  FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);

/** A table is its head and, below it, a line that has as many cells of dashes. */
function beginsTable(lines, at) {
  const below = lines[at + 1] ?? "";
  return lines[at].includes("|") && TABLE_LINE.test(below) && cells(lines[at]).length === cells(below).length;
}

/** A table's line as its cells. `\|` is a bar in a cell. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

// ----------------------------------------------------------------------------------------------------------- drawing

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

// ------------------------------------------------------------------------------------------------------------ inline

const SPECIAL = /[\\`*_~[!<\n]|https?:\/\//g;
const ESCAPABLE = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}]/u;

/** A text's nodes: code, emphasis, links and line ends. What does not close is shown as it was written. */
export function inline(text, depth = 0) {
  const nodes = [];
  const failed = new Set(); // marks that do not close from here on: not looked for again
  let plain = "";
  let at = 0;
  const flush = () => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const found = SPECIAL.exec(text);
    if (!found) break;
    plain += text.slice(at, found.index);
    at = found.index;
    const piece = pieceAt(text, at, depth, failed);
    if (piece === null) {
      plain += text[at];
      at += 1;
    } else {
      if (typeof piece.node === "string") plain += piece.node;
      else {
        flush();
        nodes.push(piece.node);
      }
      at = piece.end;
    }
  }
  plain += text.slice(at);
  flush();
  return nodes;
}

function pieceAt(text, at, depth, failed) {
  switch (text[at]) {
    case "\\":
      return ESCAPABLE.test(text[at + 1] ?? "") ? { node: text[at + 1], end: at + 2 } : null;
    case "\n":
      return { node: h("br"), end: at + 1 };
    case "`":
      return codeAt(text, at, failed);
    case "*":
    case "_":
    case "~":
      return depth < MAX_DEPTH ? emphasisAt(text, at, depth, failed) : null;
    case "!":
      return text[at + 1] === "[" ? linkAt(text, at + 1, depth, failed) : null;
    case "[":
      return linkAt(text, at, depth, failed);
    case "<": {
      const address = /^<((?:https?:\/\/|mailto:)[^\s<>]+)>/.exec(text.slice(at, at + 2000));
      return address ? { node: anchor(address[1], [address[1]]), end: at + address[0].length } : null;
    }
    default: {
      const bare = /^https?:\/\/[^\s<>"'`]+/.exec(text.slice(at, at + 2000));
      const address = bare?.[0].replace(/[.,:;!?*_~)\]}]+$/, "");
      return address ? { node: anchor(address, [address]), end: at + address.length } : null;
    }
  }
}

function codeAt(text, at, failed) {
  const marks = /^`+/.exec(text.slice(at, at + 100))[0];
  const end = failed.has(marks) ? -1 : closingRun(text, at + marks.length, marks);
  if (end < 0) {
    failed.add(marks);
    return { node: marks, end: at + marks.length };
  }
  const code = text.slice(at + marks.length, end).replaceAll("\n", " ");
  const trimmed = /^ .* $/.test(code) && code.trim() !== "" ? code.slice(1, -1) : code;
  return { node: h("code", {}, trimmed), end: end + marks.length };
}

/** Where a run of exactly these marks is. */
function closingRun(text, from, marks) {
  for (let at = text.indexOf(marks, from); at >= 0; at = text.indexOf(marks, at)) {
    let end = at + marks.length;
    while (text[end] === "`") end += 1;
    if (end - at === marks.length) return at;
    at = end;
  }
  return -1;
}

function emphasisAt(text, at, depth, failed) {
  const mark = text[at];
  const double = text[at + 1] === mark;
  if (mark === "~" && !double) return null;
  const marks = double ? mark + mark : mark;
  const from = at + marks.length;
  const opens = from < text.length && !/\s/.test(text[from]) && !(mark === "_" && at > 0 && WORD.test(text[at - 1]));
  if (!opens || failed.has(marks)) return { node: marks, end: from };
  const end = closingMarks(text, from, marks);
  if (end < 0) {
    failed.add(marks);
    return { node: marks, end: from };
  }
  const tag = mark === "~" ? "del" : double ? "strong" : "em";
  return { node: h(tag, {}, ...inline(text.slice(from, end), depth + 1)), end: end + marks.length };
}

function closingMarks(text, from, marks) {
  const mark = marks[0];
  for (let at = text.indexOf(marks, from + 1); at >= 0; at = text.indexOf(marks, at)) {
    let end = at;
    while (text[end] === mark) end += 1;
    const run = end - at;
    const closes = !/\s/.test(text[at - 1]) && text[at - 1] !== "\\" && !(mark === "_" && WORD.test(text[end] ?? ""));
    // A single mark is closed by a single one or by what is left of three; a double one by the end of its run.
    if (closes && (marks.length === 2 || run !== 2)) return end - marks.length;
    at = end;
  }
  return -1;
}

function linkAt(text, at, depth, failed) {
  if (depth >= MAX_DEPTH || failed.has("[")) return null;
  const middle = text.indexOf("](", at);
  if (middle < 0) {
    failed.add("[");
    return null;
  }
  const label = text.slice(at + 1, middle);
  const rest = /^\]\([ \t]*(?:<([^<>\n]*)>|((?:[^\s()\\]|\\.|\([^\s()]*\))*))(?:[ \t]+(?:"[^"\n]*"|'[^'\n]*'))?[ \t]*\)/.exec(
    text.slice(middle, middle + 4000),
  );
  if (!rest || label.includes("[") || label.includes("\n\n")) return null;
  const address = rest[1] ?? rest[2];
  const end = middle + rest[0].length;
  const shown = label === "" ? [address] : inline(label, MAX_DEPTH - 1);
  return { node: anchor(address, shown), end };
}

/** A link, or only its text where the address is none that a page should open. */
function anchor(address, children) {
  if (!isSafe(address)) return h("span", { class: "no-link", title: "not a web address" }, ...children);
  return h("a", { href: address, target: "_blank", rel: "noopener noreferrer nofollow" }, ...children);
}

function isSafe(address) {
  try {
    return ["http:", "https:", "mailto:"].includes(new URL(address).protocol);
  } catch {
    return false;
  }
}
