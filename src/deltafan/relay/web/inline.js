// What stands inside of a line of Markdown: code, emphasis, links. A link goes to http, https or mailto only, and an image
// becomes a link to it.

import { h } from "./dom.js";

export const MAX_DEPTH = 6; // of nested quotes, lists and emphasis; deeper is shown as it was written
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
