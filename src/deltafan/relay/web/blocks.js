// The blocks of a Markdown text, line by line: headings, lists, quotes, tables, code, paragraphs. No DOM here.

// Each runs in linear time: a line may be long, and it is not ours.
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?=[ \t]|$)(.*)$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)/;
const TABLE_LINE = /^[ \t|:-]*-[ \t|:-]*$/;
const TABLE_CELL = /^:?-+:?$/;

/** The blocks of a text, each with the place where it starts. The last one may be half-finished. */
export function split(text) {
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
  if (heading) return [{ kind: "heading", level: heading[1].length, text: heading[2].trim().replace(/(^|[ \t])#+$/, "") }, at + 1];
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
  if (!lines[at].includes("|") || !TABLE_LINE.test(below)) return false;
  const rule = cells(below);
  return rule.every((cell) => TABLE_CELL.test(cell)) && cells(lines[at]).length === rule.length;
}

/** A table's line as its cells. `\|` is a bar in a cell. */
function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}
