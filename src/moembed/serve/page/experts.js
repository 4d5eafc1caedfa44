// Which experts each token chose, layer by layer: one column of cells under every token.

import { el, empty, field, folded, number, plural, table, walk } from "./dom.js";
import { promptChoice, tagChoice, times } from "./embed.js";
import { form, Mistake } from "./form.js";
import { call } from "./server.js";

const SHOWN = 3; // experts of a cell; where a token has more, the cell says how many
const EXAMPLE = "The bank raised its interest rates while we sat on the bank of the river.";

export function experts(panel, model) {
  if (!model.moe_layers.length) {
    panel.replaceChildren(empty("This model is dense",
      "It has no experts, so every token goes through the same weights in every layer.",
      "Serve a model with experts to watch what they do: moembed upcycle makes one of a dense model."));
    return;
  }
  const text = el("textarea", { rows: 5, spellcheck: "false" });
  const prompt = promptChoice(model);
  const tag = tagChoice(model);
  form(panel, {
    title: "Which experts does each token choose?",
    lead: `In ${plural(model.moe_layers.length, "layer")} of this model a router sends each token to a few experts. `
      + "Under every token stand its experts, a row for each of those layers from first to last.",
    fields: [field("A text", text), prompt.element, tag.element],
    action: "Show the experts",
    example: () => (text.value = EXAMPLE),
    start: ["No tokens yet", "Write a sentence and see who works on which of its words.", "The example has a word in two senses."],
    async run() {
      if (!text.value.trim()) throw new Mistake("There is no text: write some.");
      const { data, roundTrip, server } = await call("inspect", { text: text.value, prompt_name: prompt.name(), tag: tag.name() });
      const cut = data.truncated ? ` The text was cut at ${number(model.max_length)} tokens.` : "";
      return { parts: draw(data), told: `${plural(data.tokens.length, "token")}, ${times(server, roundTrip)}.${cut}` };
    },
  });
}

/** The colour of an expert: hues that lie far apart for neighbours. */
const hue = (expert) => ({ "--h": ((expert * 137.5 + 170) % 360).toFixed(1) });

function draw(data) {
  const { tokens, special, layers } = data;
  const readout = el("p", { class: "readout", "aria-live": "polite" }, "Point at a cell, or walk over them with the arrow keys.");
  const cells = layers.map((layer) => tokens.map((_, t) => cell(layer, t)));

  const mark = (layer, expert) =>
    cells.forEach((line, l) => line.forEach((one, t) =>
      one.classList.toggle("same", layers[l].layer === layer && layers[l].experts[t].includes(expert))));
  const look = (l, t) => {
    const layer = layers[l];
    const chosen = layer.experts[t].map((expert, k) => `expert ${expert} (${layer.weights[t][k].toFixed(2)})`);
    readout.replaceChildren(
      el("b", { class: "value", text: tokens[t] }),
      el("span", { text: `layer ${layer.layer}: ${chosen.join(", ") || "no expert took this token"}` }),
    );
    mark(layer.layer, layer.experts[t][0]);
  };
  cells.forEach((line, l) => line.forEach((one, t) => {
    one.setAttribute("aria-label", label(layers[l], tokens[t], t));
    for (const event of ["focus", "pointerenter"]) one.addEventListener(event, () => look(l, t));
    one.addEventListener("click", () => one.focus());
  }));
  walk(cells);

  const columns = tokens.map((token, t) =>
    el("div", { class: special[t] ? "token special" : "token" },
      el("span", { class: "piece", text: token }), cells.map((line) => line[t])));
  const names = el("div", { class: "token layers", "aria-hidden": "true" },
    el("span", { class: "piece", text: "layer" }), layers.map(({ layer }) => el("span", { text: `${layer}` })));
  const strip = el("div", { class: "strip", role: "group", "aria-label": "Tokens and their experts" }, names, columns);
  const rows = tokens.map((token, t) => [token, ...layers.map((layer) => written(layer, t))]);
  return [
    readout,
    strip,
    loads(layers, mark),
    folded("The same as a table", table(["Token", ...layers.map((layer) => `Layer ${layer.layer}`)], rows)),
  ];
}

function cell(layer, t) {
  const chosen = layer.experts[t].slice(0, SHOWN);
  const more = layer.experts[t].length - chosen.length;
  return el("span", { class: "experts", role: "img" },
    chosen.map((expert, k) =>
      el("b", { class: "expert", vars: { ...hue(expert), "--w": layer.weights[t][k] }, text: `${expert}` })),
    more ? el("b", { class: "more", text: `+${more}` }) : null,
    chosen.length ? null : el("b", { class: "none", text: "–" }));
}

const label = (layer, token, t) => `${token}, layer ${layer.layer}: ${written(layer, t) || "no expert"}`;

const written = (layer, t) =>
  layer.experts[t].map((expert, k) => `${expert} (${layer.weights[t][k].toFixed(2)})`).join(", ");

/** How the experts of every layer share this text; a button for each finds its tokens. */
function loads(layers, mark) {
  const bars = layers.map((layer) => {
    const count = Array(layer.num_experts).fill(0);
    layer.experts.forEach((chosen) => chosen.forEach((expert) => count[expert]++));
    const pairs = count.reduce((sum, n) => sum + n, 0);
    const seen = count.map((n, expert) => [n, expert]).filter(([n]) => n).sort((a, b) => b[0] - a[0]);
    const idle = layer.num_experts - seen.length;
    const bar = seen.map(([n, expert]) =>
      el("button", {
        type: "button", class: "expert", vars: { ...hue(expert), "--w": n / pairs }, text: `${expert}`,
        title: `expert ${expert}: ${plural(n, "token")}`,
        "aria-label": `Layer ${layer.layer}, expert ${expert}: ${plural(n, "token")}. Mark them.`,
        on: { click: () => mark(layer.layer, expert), focus: () => mark(layer.layer, expert) },
      }));
    return el("div", { class: "load" },
      el("span", { class: "muted", text: `Layer ${layer.layer}` }), el("div", { class: "bar" }, bar),
      el("span", { class: "muted idle", text: idle ? `${idle} of ${layer.num_experts} idle` : `all ${layer.num_experts} at work` }));
  });
  return el("div", { class: "loads" },
    el("h3", { text: "Who does how much" }),
    el("p", { class: "muted", text: "Experts of different layers have nothing in common but the number. Choose one to mark its tokens." }),
    bars);
}
