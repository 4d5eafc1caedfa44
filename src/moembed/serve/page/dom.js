// Elements without markup: every text becomes a text node, so nothing that a server or a document says is run.

/**
 * An element with attributes and children.
 * `class`, `text` and any attribute by its name; `on` maps events to functions, `vars` sets CSS variables.
 * True writes an attribute without a value; false, null and undefined leave it out.
 */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "on") for (const [event, run] of Object.entries(value)) made.addEventListener(event, run);
    else if (name === "vars") for (const [key, set] of Object.entries(value)) made.style.setProperty(key, set);
    else if (name === "text") made.textContent = value;
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return made;
}

const SVG = "http://www.w3.org/2000/svg";

export function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

let count = 0;

/** A label above a field. */
export function field(label, input, hint) {
  input.id ||= `field-${++count}`;
  const about = hint ? el("p", { class: "hint", id: `${input.id}-hint`, text: hint }) : null;
  if (about) input.setAttribute("aria-describedby", about.id);
  return el("div", { class: "field" }, el("label", { for: input.id, text: label }), input, about);
}

/** A box to tick and what it means. */
export function check(label, input) {
  input.id ||= `field-${++count}`;
  return el("p", { class: "check" }, input, el("label", { for: input.id, text: label }));
}

export function choices(options, chosen) {
  return el(
    "select",
    {},
    options.map(([value, label]) => el("option", { value, selected: value === chosen }, label)),
  );
}

export function table(head, rows) {
  const heading = el("tr", {}, head.map((cell) => el("th", { scope: "col" }, cell)));
  const body = rows.map(([first, ...rest]) =>
    el("tr", {}, el("th", { scope: "row" }, first), rest.map((cell) => el("td", {}, cell))),
  );
  return el("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": "Table" },
    el("table", {}, el("thead", {}, heading), el("tbody", {}, body)));
}

export function folded(summary, ...children) {
  return el("details", {}, el("summary", { text: summary }), ...children);
}

/** What a section shows before there is anything to show: a heading and what to do. */
export function empty(heading, ...sentences) {
  return el("div", { class: "empty" }, el("h3", { text: heading }), sentences.map((s) => el("p", {}, s)));
}

/**
 * Walk over cells with the arrow keys: one cell of all is in the order of tabs.
 * `rows` are lists of elements; a row may be shorter than others.
 */
export function walk(rows) {
  let at = [0, 0];
  const go = (row, column) => {
    const line = rows[Math.max(0, Math.min(rows.length - 1, row))];
    const next = line?.[Math.max(0, Math.min(line.length - 1, column))];
    next?.focus();
  };
  rows.forEach((line, row) =>
    line.forEach((cell, column) => {
      cell.tabIndex = row || column ? -1 : 0;
      cell.addEventListener("focus", () => {
        const before = rows[at[0]]?.[at[1]];
        if (before) before.tabIndex = -1;
        cell.tabIndex = 0;
        at = [row, column];
      });
      cell.addEventListener("keydown", (event) => {
        const steps = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
        const step = steps[event.key];
        if (step) go(row + step[0], column + step[1]);
        else if (event.key === "Home") go(row, 0);
        else if (event.key === "End") go(row, line.length - 1);
        else return;
        event.preventDefault();
      });
    }),
  );
}

export function short(text, length = 60) {
  const letters = [...text];
  return letters.length > length ? `${letters.slice(0, length - 1).join("")}…` : text;
}

export const number = (value, digits = 0) =>
  value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

/** A number with so many digits; nothing is -0. */
export const fixed = (value, digits) => value.toFixed(digits).replace(/^-(0\.0*)$/, "$1");

export const lines = (text) => text.split("\n").map((line) => line.trim()).filter(Boolean);

/** One, or several, of a thing. */
export const plural = (count, one, several = `${one}s`) => `${number(count)} ${count === 1 ? one : several}`;
