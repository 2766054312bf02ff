// A model's Markdown as elements of the page: showMarkdown(container, text), again and again as the text grows.
//
// Nothing of the text is ever read as HTML: it enters by textContent alone, a link is made only to http, https and
// mailto, and a picture becomes a link. Nesting is bounded, so that no text exhausts the stack.

import { copyButton } from "./copy.js";
import { words } from "./words.js";

const MAX_DEPTH = 12;
const FENCE = /^ {0,3}(`{3,}|~{3,})([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6}) +(.*)$/;
const RULE = /^ {0,3}([-*_])( *\1){2,} *$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])( +|$)/;
const SPECIAL = /\\|`+|\*{1,3}|_{1,3}|~~|!?\[|https?:\/\/|<br ?\/?>|\n/g;

// Blocks whose text has not changed keep their elements, and with them what a reader has selected or scrolled.
export function showMarkdown(container, text) {
  const found = blocks(text.replaceAll("\r\n", "\n").replaceAll("\t", "    ").split("\n"), 0);
  found.forEach((block, index) => {
    const old = container.children[index];
    if (old?.markdown === block.source) return;
    const made = block.make();
    made.markdown = block.source;
    if (old) old.replaceWith(made);
    else container.append(made);
  });
  while (container.children.length > found.length) container.lastElementChild.remove();
}

function element(name, ...children) {
  const made = document.createElement(name);
  made.append(...children);
  return made;
}

// ------------------------------------------------------------------------------------------------------------- blocks

// A list of {source, make}: what a block says and how to build it. `lines` without their ends.
function blocks(lines, depth) {
  const found = [];
  let at = 0;
  const add = (end, make) => {
    found.push({ source: lines.slice(at, end).join("\n"), make });
    at = end;
  };
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) at += 1;
    else if ((match = FENCE.exec(line))) {
      const [, fence, info] = match;
      const end = endOfFence(lines, at + 1, fence);
      const code = lines.slice(at + 1, end).join("\n");
      add(Math.min(end + 1, lines.length), () => codeBlock(code, info.trim().split(/\s/)[0]));
    } else if ((match = HEADING.exec(line))) {
      const [, marks, title] = match;
      add(at + 1, () => inline(element(`h${marks.length}`), title.replace(/ #+ *$/, ""), depth));
    } else if (RULE.test(line)) add(at + 1, () => element("hr"));
    else if (depth < MAX_DEPTH && QUOTE.test(line)) {
      const end = last(lines, at, (next) => QUOTE.test(next));
      const inside = lines.slice(at, end).map((quoted) => quoted.replace(QUOTE, ""));
      add(end, () => nested("blockquote", inside, depth));
    } else if (depth < MAX_DEPTH && ITEM.test(line)) {
      const { end, items, ordered, start } = listAt(lines, at);
      add(end, () => list(items, ordered, start, depth));
    } else if (isTable(lines, at)) {
      const end = last(lines, at + 2, (next) => next.includes("|") && next.trim() !== "");
      const rows = lines.slice(at, end);
      add(end, () => table(rows, depth));
    } else {
      const from = at;
      let end = at + 1;
      while (end < lines.length && !beginsBlock(lines, end, depth)) end += 1;
      add(end, () => inline(element("p"), lines.slice(from, end).map((part) => part.trim()).join("\n"), depth));
    }
  }
  return found;
}

function beginsBlock(lines, at, depth) {
  const line = lines[at];
  if (!line.trim() || FENCE.test(line) || HEADING.test(line) || RULE.test(line) || isTable(lines, at)) return true;
  return depth < MAX_DEPTH && (QUOTE.test(line) || ITEM.test(line));
}

function last(lines, at, belongs) {
  while (at < lines.length && belongs(lines[at])) at += 1;
  return at;
}

// An answer that has not ended, or never closes its fence, is code to its end.
function endOfFence(lines, at, fence) {
  const closes = (line) => {
    const text = line.trim();
    return text.length >= fence.length && text === fence[0].repeat(text.length);
  };
  return last(lines, at, (line) => !closes(line));
}

function nested(name, lines, depth) {
  return element(name, ...blocks(lines, depth + 1).map((block) => block.make()));
}

function codeBlock(code, language) {
  const pre = element("pre", element("code", code));
  pre.tabIndex = 0; // a box that scrolls is reached by keyboard
  const copy = copyButton(() => code);
  copy.setAttribute("aria-label", words("codeCopyLabel"));
  const bar = element("figcaption", element("span", language.slice(0, 40) || words("code")), copy);
  return element("figure", bar, pre);
}

// The items of the list at `at`, each as its own lines without marker and indent.
function listAt(lines, at) {
  const [, , marker] = ITEM.exec(lines[at]);
  const ordered = marker.length > 1;
  const items = [];
  let indent = 0;
  let end = at;
  while (end < lines.length) {
    const line = lines[end];
    const match = ITEM.exec(line);
    const blank = !line.trim();
    if (items.length && !blank && line.length - line.trimStart().length >= Math.min(indent, 2)) {
      items.at(-1).push(line.slice(Math.min(indent, line.length - line.trimStart().length)));
    } else if (match && match[2].length > 1 === ordered && !RULE.test(line)) {
      indent = match[0].length;
      items.push([line.slice(indent)]);
    } else if (blank) {
      const next = lines.slice(end + 1, end + 3).find((after) => after.trim());
      if (next === undefined || !(next.startsWith("  ") || (ITEM.test(next) && !RULE.test(next)))) break;
      items.at(-1).push("");
    } else if (match || lines[end - 1].trim() === "" || beginsBlock(lines, end, 0)) break;
    else items.at(-1).push(line);
    end += 1;
  }
  return { end, items, ordered, start: Number.parseInt(marker, 10) };
}

function list(items, ordered, start, depth) {
  const made = element(ordered ? "ol" : "ul");
  if (ordered && start !== 1) made.start = start;
  for (const lines of items) {
    const parts = blocks(lines, depth + 1).map((block) => block.make());
    // A tight item is a line, not a paragraph.
    made.append(element("li", ...parts.flatMap((part) => (part.tagName === "P" ? [...part.childNodes] : [part]))));
  }
  return made;
}

function cellsOf(line) {
  const cells = line.trim().replace(/^\|/, "").replace(/\|$/, "").split("|");
  for (let i = cells.length - 2; i >= 0; i -= 1) {
    if (cells[i].endsWith("\\")) cells.splice(i, 2, `${cells[i].slice(0, -1)}|${cells[i + 1]}`);
  }
  return cells.map((cell) => cell.trim());
}

function isTable(lines, at) {
  const rule = lines[at + 1];
  if (rule === undefined || !lines[at].includes("|") || !rule.includes("-") || !/^[ |:-]+$/.test(rule)) return false;
  const cells = cellsOf(rule);
  return cells.every((cell) => /^:?-+:?$/.test(cell)) && cells.length === cellsOf(lines[at]).length;
}

function table(rows, depth) {
  const sides = cellsOf(rows[1]).map((cell) => (cell.endsWith(":") ? (cell.startsWith(":") ? "center" : "end") : ""));
  const row = (line, kind) => {
    const cells = cellsOf(line);
    return element(
      "tr",
      ...sides.map((side, index) => {
        const cell = inline(element(kind), cells[index] ?? "", depth);
        if (side) cell.className = side;
        return cell;
      }),
    );
  };
  const head = element("thead", row(rows[0], "th"));
  const body = element("tbody", ...rows.slice(2).map((line) => row(line, "td")));
  const box = element("div", element("table", head, body));
  box.className = "wide";
  box.tabIndex = 0;
  box.setAttribute("role", "region");
  box.setAttribute("aria-label", words("table"));
  return box;
}

// ------------------------------------------------------------------------------------------------------------- inline

// Append `text` with its emphasis, code and links to `parent`. A mark without its end is an ordinary character.
function inline(parent, text, depth) {
  const absent = new Set(); // ends that do not come any more: looked for once, or a row of openings takes forever
  let at = 0;
  let plain = "";
  const flush = () => {
    if (plain) parent.append(plain);
    plain = "";
  };
  const put = (node, end) => {
    flush();
    parent.append(node);
    at = end;
  };
  const find = (end, from, fits) => {
    if (absent.has(end)) return -1;
    for (let found = text.indexOf(end, from); found >= 0; found = text.indexOf(end, found + 1)) {
      if (fits(found)) return found;
    }
    absent.add(end);
    return -1;
  };
  while (at < text.length) {
    SPECIAL.lastIndex = at;
    const match = SPECIAL.exec(text);
    if (!match) break;
    const mark = match[0];
    plain += text.slice(at, match.index);
    at = match.index;
    const after = at + mark.length;
    const literal = () => {
      plain += mark;
      at = after;
    };
    if (mark === "\\") {
      const next = text[after] ?? "";
      plain += /[!-/:-@[-`{-~]/.test(next) ? next : mark + next;
      at = after + next.length;
    } else if (mark === "\n" || mark.startsWith("<br")) put(element("br"), after);
    else if (mark[0] === "`") {
      const end = find(mark, after, (found) => text[found - 1] !== "`" && text[found + mark.length] !== "`");
      if (end < 0) literal();
      else put(element("code", unpadded(text.slice(after, end).replaceAll("\n", " "))), end + mark.length);
    } else if (mark.startsWith("http")) {
      const address = bareAddress(text.slice(at, at + 2000));
      put(link(address, address), at + address.length);
    } else if (mark.endsWith("[")) {
      const found = depth < MAX_DEPTH ? linkAt(text, after - 1, absent) : null;
      if (!found) literal();
      else {
        const label = mark === "![" ? found.label || found.address : found.label;
        put(link(found.address, label, depth + 1), found.end);
      }
    } else {
      const inWord = mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[at - 1] ?? "");
      const opens = depth < MAX_DEPTH && !inWord && /\S/.test(text[after] ?? "");
      const closes = (found) =>
        found > after &&
        /\S/.test(text[found - 1]) &&
        text[found + mark.length] !== mark[0] &&
        (mark.length > 1 || text[found - 1] !== mark) &&
        !(mark[0] === "_" && /[\p{L}\p{N}]/u.test(text[found + mark.length] ?? ""));
      const end = opens ? find(mark, after, closes) : -1;
      if (end < 0) literal();
      else put(emphasis(mark, text.slice(after, end), depth + 1), end + mark.length);
    }
  }
  plain += text.slice(at);
  flush();
  return parent;
}

// One space on each side lets code begin or end with a backtick.
function unpadded(code) {
  return code.startsWith(" ") && code.endsWith(" ") && code.trim() ? code.slice(1, -1) : code;
}

function emphasis(mark, text, depth) {
  if (mark.length === 3) return element("strong", inline(element("em"), text, depth));
  return inline(element(mark === "~~" ? "s" : mark.length === 2 ? "strong" : "em"), text, depth);
}

// An address ends before what is likely the sentence's own.
function bareAddress(text) {
  const address = /^[^\s<>"`*\u3000-\u303f\uff00-\uffef]+/.exec(text)[0].replace(/[.,;:!?'\]]+$/, "");
  return address.endsWith(")") && !address.includes("(") ? address.slice(0, -1) : address;
}

// [label](address "title") whose bracket opens at `open`, or null.
function linkAt(text, open, absent) {
  if (absent.has("](")) return null;
  if (text.indexOf("](", open) < 0) {
    absent.add("](");
    return null;
  }
  let level = 0;
  const limit = Math.min(text.length, open + 1000);
  for (let at = open; at < limit; at += 1) {
    if (text[at] === "\\") at += 1;
    else if (text[at] === "[") level += 1;
    else if (text[at] === "]" && (level -= 1) === 0) {
      const target = /^\(\s*<?((?:[^\s()<>]|\([^\s()<>]*\))*)>?(?:\s+["'(][^"')]*["')])?\s*\)/.exec(text.slice(at + 1, at + 4001));
      return target && { label: text.slice(open + 1, at), address: target[1], end: at + 1 + target[0].length };
    }
  }
  return null;
}

// A link that opens elsewhere and tells the other site nothing; what is no address of the web stays text.
function link(address, label, depth = MAX_DEPTH) {
  const safe = webAddress(address);
  if (!safe) return element("span", label === address ? label : `${label} (${address})`);
  const made = label === address ? element("a", label) : inline(element("a"), label, Math.max(depth, MAX_DEPTH - 2));
  // A link inside a link would be taken apart by nobody, so the inner one is text.
  for (const inner of made.querySelectorAll("a")) inner.replaceWith(...inner.childNodes);
  made.href = safe;
  made.title = safe;
  made.target = "_blank";
  made.rel = "noopener noreferrer";
  return made;
}

function webAddress(address) {
  try {
    const url = new URL(address);
    return ["http:", "https:", "mailto:"].includes(url.protocol) ? url.href : null;
  } catch {
    return null; // relative: it would lead to this server
  }
}
