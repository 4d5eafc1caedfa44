// The same query and texts at two sizes of the vectors: what a smaller vector changes in the order.

import { choices, el, empty, field, fixed, lines, number, plural, svg } from "./dom.js";
import { embed, tagChoice, times } from "./embed.js";
import { form, Mistake, question } from "./form.js";
import { call, cosine } from "./server.js";

const MOST = 40; // texts
const BEST = 10; // documents of the index
const EXAMPLE_QUERY = "How do I keep a table sorted while rows are added?";
const EXAMPLE = [
  "Insert into a sorted list with binary search",
  "A balanced tree keeps its keys in order",
  "Sort a data frame by two columns",
  "An index of a database is kept in order by its pages",
  "Remove duplicates from a list",
  "Set the legs of a table on a slope",
  "Read a file line by line",
].join("\n");

export function sizes(panel, model) {
  if (model.dims.length < 2 && !model.any_dim) {
    panel.replaceChildren(empty("This model has one size",
      `Its vectors have ${number(model.dim)} dimensions, and it was not trained to be cut to fewer.`,
      "Serve a model that was trained with loss.matryoshka.dims, or start the server with --allow-any-dim to see what cutting costs."));
    return;
  }
  const query = question();
  const texts = el("textarea", { rows: 8, spellcheck: "false" });
  const tag = tagChoice(model, { role: true });
  const [one, other] = [model.dims[0], model.dims[model.dims.length - 1]].map((dim) => sizeInput(model, dim));
  form(panel, {
    title: "What does a smaller vector cost?",
    lead: model.dims.length > 1
      ? "This model is trained so that the first numbers of a vector are a vector themselves (Matryoshka)."
      : "This model was not trained to be cut; the server allows it, and here you see what becomes of the order.",
    fields: [
      field("Query", query),
      field("Texts, one on each line", texts, model.index ? "Without any, the whole index is ranked." : undefined),
      tag.element,
      el("div", { class: "pair" }, field("One size", one), field("Other size", other)),
    ],
    action: "Compare the orders",
    example: () => { query.value = EXAMPLE_QUERY; texts.value = EXAMPLE; },
    start: ["No order yet", "Write a query and some texts: they are ranked at both sizes, side by side."],
    async run() {
      const listed = lines(texts.value);
      const dims = [Number(one.value), Number(other.value)];
      if (!query.value.trim()) throw new Mistake("There is no query: write one.");
      const ofIndex = model.index && !listed.length;
      if (listed.length < 2 && !ofIndex) throw new Mistake("An order needs two texts at least: write each on a line of its own.");
      if (listed.length > MOST) throw new Mistake(`These are ${number(listed.length)} texts, and ${MOST} are shown at most: leave some out.`);
      if (dims[0] === dims[1]) throw new Mistake("Both sizes are the same: choose two different ones.");
      const asked = query.value.trim();
      if (ofIndex) {
        const { all, ranked, told } = await search(model, asked, dims, tag.name());
        return { parts: draw(all, dims, ranked), told };
      }
      const ranked = await Promise.all(dims.map((dim) => rank(model, asked, listed, dim, tag.name())));
      return { parts: draw(listed, dims, ranked), told: ranked[0].told };
    },
  });
}

function sizeInput(model, dim) {
  if (!model.any_dim) return choices(model.dims.map((size) => [`${size}`, number(size)]), `${dim}`);
  return el("input", { type: "number", min: 1, max: model.dim, required: true, value: dim });
}

async function rank(model, query, texts, dim, tag) {
  const [asked, found] = await Promise.all([
    embed(model, [query], { role: "search_query", tag, dim }),
    embed(model, texts, { role: "search_document", tag, dim }),
  ]);
  const score = found.rows.map((row) => cosine(asked.rows[0], row));
  const order = texts.map((_, i) => i).sort((a, b) => score[b] - score[a] || a - b);
  return { score, order, told: found.told };
}

/** The best documents of the index at every size: the texts of `all` of them, and for each size its own few. */
async function search(model, query, dims, tag) {
  const found = await Promise.all(dims.map((dim) => call("search", { query, k: BEST, dimensions: dim, tag })));
  const number = new Map(); // of a document, by its id
  const all = [];
  const ranked = found.map(({ data }) => {
    const score = [];
    const order = data.results[0].map((hit) => {
      if (!number.has(hit.id)) number.set(hit.id, all.push(String(hit.row[model.index.column] ?? "")) - 1);
      score[number.get(hit.id)] = hit.score;
      return number.get(hit.id);
    });
    return { score, order };
  });
  return { all, ranked, told: `${plural(model.index.rows, "document")}, ${times(found[0].server, found[0].roundTrip)}.` };
}

/** Two orders side by side. Each may lack texts that the other has: they are then not among its best. */
function draw(texts, dims, [one, other]) {
  const count = Math.max(one.order.length, other.order.length);
  const place = [one, other].map(({ order }) => {
    const places = Array(count);
    order.forEach((text, rank) => (places[text] = rank));
    return places;
  });
  const list = (ranked, dim, mine, theirs) =>
    el("div", { class: "ranking" },
      el("h3", { text: `${number(dim)} dimensions` }),
      el("p", { class: "muted", text: `${number(4 * dim)} bytes a vector` }),
      el("ol", {}, ranked.order.map((text) => {
        const moved = theirs && theirs[text] - mine[text];
        return el("li", {},
          el("span", { class: "rank", text: `${mine[text] + 1}` }),
          el("span", { class: "ranked", title: texts[text], text: texts[text] }),
          theirs && change(moved),
          el("span", { class: "score", text: fixed(ranked.score[text], 3) }));
      })));
  const links = svg("svg", { viewBox: `0 0 100 ${count}`, preserveAspectRatio: "none", "aria-hidden": "true" },
    ...texts.map((_, text) => text).filter((text) => place.every((places) => places[text] !== undefined)).map((text) => {
      const [from, to] = [place[0][text] + 0.5, place[1][text] + 0.5];
      return svg("path", { d: `M0 ${from} C50 ${from} 50 ${to} 100 ${to}`, class: from === to ? "stays" : "moves" });
    }));
  return [
    el("p", { class: "summary", text: summary(dims, place) }),
    el("div", { class: "rankings", vars: { "--n": count } },
      list(one, dims[0], place[0], null), el("div", { class: "links" }, links), list(other, dims[1], place[1], place[0])),
  ];
}

function change(moved) {
  if (Number.isNaN(moved)) return el("span", { class: "change", text: "new" });
  const sign = moved > 0 ? "▲" : moved < 0 ? "▼" : "=";
  const said = moved > 0 ? `${moved} up` : moved < 0 ? `${-moved} down` : "same place";
  return el("span", { class: moved ? "change" : "change muted" },
    el("span", { "aria-hidden": "true", text: moved ? `${sign}${Math.abs(moved)}` : sign }), el("span", { class: "hidden", text: said }));
}

/** Kendall's tau of the two orders: 1 where they are the same, -1 where one is the other reversed. */
export function kendall(one, other) {
  let agree = 0;
  let pairs = 0;
  for (let i = 0; i < one.length; i++) {
    for (let j = 0; j < i; j++) {
      agree += Math.sign((one[i] - one[j]) * (other[i] - other[j]));
      pairs++;
    }
  }
  return pairs ? agree / pairs : 1;
}

function summary([one, other], place) {
  const both = place[0].map((_, text) => text).filter((text) => place[1][text] !== undefined);
  const [first, second] = place.map((places) => both.map((text) => places[text]));
  const count = place[0].filter((rank) => rank !== undefined).length;
  const moved = first.filter((rank, text) => rank !== second[text]).length;
  const best = place[1][place[0].indexOf(0)] === 0 ? "the first stays first" : "the first is another one";
  let said = "The order is the same.";
  if (both.length < count) said = `${both.length} of the ${count} best are among the best at both sizes, and ${best}.`;
  else if (moved) said = `${plural(moved, "text")} of ${count} stand in another place (Kendall's τ ${kendall(first, second).toFixed(2)}), and ${best}.`;
  const ratio = Math.max(one, other) / Math.min(one, other);
  return `${said} The smaller vector takes ${number(ratio, Number.isInteger(ratio) ? 0 : 1)} times less room.`;
}
