// How near texts are to one another: a map of all pairs, and the same as tables.

import { check, el, field, fixed, folded, lines, number, plural, short, table, walk } from "./dom.js";
import { cosine } from "./server.js";
import { embed, promptChoice, tagChoice } from "./embed.js";
import { form, Mistake } from "./form.js";

const MOST = 60; // texts: more cells than that are too small to point at
const NUMBERED = 14; // texts up to which the cells hold their number
const EXAMPLE = [
  "How do I read a parquet file lazily?",
  "Open a columnar file without loading it into memory",
  "Scan a data set on disk, one batch at a time",
  "Bake bread with a sourdough starter",
  "Wie backe ich Brot mit Sauerteig?",
  "An owl hunts voles at night",
  "Birds of prey that catch mice in the dark",
].join("\n");

export function similarity(panel, model) {
  const texts = el("textarea", { rows: 9, spellcheck: "false" });
  const prompt = promptChoice(model);
  const tag = tagChoice(model);
  form(panel, {
    title: "How near are these texts?",
    lead: "Every pair of texts gets the cosine of its two vectors: 1 is the same direction, 0 is unrelated.",
    fields: [field("Texts, one on each line", texts), prompt.element, tag.element],
    action: "Draw the map",
    example: () => (texts.value = EXAMPLE),
    start: ["No map yet", "Paste two texts or more, one on each line, and draw the map.", "Or see the example."],
    async run() {
      const listed = lines(texts.value);
      if (listed.length < 2) throw new Mistake("A map needs two texts at least: write each on a line of its own.");
      if (listed.length > MOST) {
        throw new Mistake(`These are ${number(listed.length)} texts, and the map shows ${MOST} at most: leave some out.`);
      }
      const answer = await embed(model, listed, { prompt: prompt.name(), tag: tag.name() });
      return { parts: draw(listed, answer.rows), told: `A map of ${listed.length} texts. ${answer.told}` };
    },
  });
}

function draw(texts, rows) {
  const score = rows.map((one) => rows.map((other) => cosine(one, other)));
  const pairs = [];
  texts.forEach((_, i) => texts.forEach((_, j) => i < j && pairs.push([score[i][j], i, j])));
  pairs.sort((a, b) => b[0] - a[0]);
  const low = pairs[pairs.length - 1][0];
  const high = pairs[0][0];

  const readout = el("p", { class: "readout", "aria-live": "polite" }, "Point at a cell, or walk over them with the arrow keys.");
  const show = (i, j) =>
    readout.replaceChildren(
      el("b", { class: "value", text: fixed(score[i][j], 3) }),
      el("span", { text: short(texts[i], 140) }),
      el("span", { class: "muted", text: i === j ? "with itself" : short(texts[j], 140) }),
    );
  const { map, paint } = heat(texts, score, show);
  const legend = el("p", { class: "legend" });
  const stretch = el("input", { type: "checkbox", on: { change: () => colour() } });
  const colour = () => {
    const range = stretch.checked && high > low ? [low, high] : [0, 1];
    paint(...range);
    legend.replaceChildren(
      el("span", { text: range[0].toFixed(2) }), el("i", { class: "scale" }), el("span", { text: range[1].toFixed(2) }),
    );
  };
  colour();

  const ranked = pairs.slice(0, 100).map(([value, i, j]) => [fixed(value, 3), short(texts[i], 90), short(texts[j], 90)]);
  const title = pairs.length > ranked.length ? "The 100 nearest pairs as a table" : "All pairs as a table, the nearest first";
  const numbered = texts.map((text, i) => [`${i + 1}. ${short(text, 90)}`, ...score[i].map((value) => fixed(value, 3))]);
  return [
    el("div", { class: "row between" }, legend, check("Stretch the colours to these texts", stretch)),
    map,
    readout,
    folded(title, table(["Cosine", "Text", "Text"], ranked)),
    folded("The whole matrix as a table", table(["Text", ...texts.map((_, i) => `${i + 1}`)], numbered)),
  ];
}

/** A grid of cells whose colour is the score, and a function that colours them for a range. */
function heat(texts, score, show) {
  const count = texts.length;
  const all = [];
  const head = el("div", { role: "row", class: "heat-row" }, el("span", { role: "columnheader", class: "heat-corner" },
    el("span", { class: "hidden", text: "Text" })));
  texts.forEach((text, j) =>
    head.append(el("span", { role: "columnheader", class: "heat-number", title: text, text: `${j + 1}` })));
  const body = texts.map((text, i) => {
    const cells = score[i].map((value, j) => {
      const cell = el("span", {
        role: "gridcell", class: "cell",
        "aria-label": `${fixed(value, 2)}: ${short(text, 80)} — ${i === j ? "with itself" : short(texts[j], 80)}`,
        text: count <= NUMBERED ? fixed(value, 2) : "",
        on: { focus: () => show(i, j), pointerenter: () => show(i, j), click: (event) => event.target.focus() },
      });
      return cell;
    });
    all.push(cells);
    const label = el("span", { role: "rowheader", class: "heat-label", title: text },
      el("span", { class: "muted", text: `${i + 1} ` }), el("span", { class: "heat-text", text }));
    return el("div", { role: "row", class: "heat-row" }, label, cells);
  });
  walk(all);
  const map = el("div", {
    role: "grid", class: count <= NUMBERED ? "heat" : "heat tight", vars: { "--n": count },
    "aria-label": `Cosines of ${plural(count, "text")}`, "aria-readonly": "true",
  }, head, body);
  const paint = (low, high) =>
    all.forEach((cells, i) => cells.forEach((cell, j) => {
      const part = (score[i][j] - low) / (high - low);
      cell.style.setProperty("--v", Math.max(0, Math.min(1, part)).toFixed(3));
    }));
  return { map, paint };
}
