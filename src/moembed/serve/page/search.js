// Search of the index that the server was started with: hits with the words they share with the query marked.

import { check, el, empty, field, fixed, number, plural } from "./dom.js";
import { milliseconds, tagChoice } from "./embed.js";
import { form, Mistake, question } from "./form.js";
import { call } from "./server.js";

const MOST = 500; // letters of a document that are shown at first
const COMMON = new Set(("the and for are but not you all any can had her was one our out has him his how its may new now see who "
  + "did get let say she too use what when where which while with from this that they them then than there their will would "
  + "could should have been were into does about your").split(" "));

export function search(panel, model) {
  if (!model.index) {
    panel.replaceChildren(empty("No index is loaded",
      "Make one of your documents: moembed index DOCS --model MODEL --out INDEX.",
      "Then start the server with it: moembed serve MODEL --index INDEX."));
    return;
  }
  const query = question();
  const k = el("input", { type: "number", min: 1, max: 100, value: 10, required: true });
  const where = el("input", { type: "text", autocomplete: "off", spellcheck: "false" });
  const hybrid = el("input", { type: "checkbox" });
  const rerank = model.reranker ? el("input", { type: "checkbox" }) : null;
  const tag = tagChoice(model, { role: true });
  const kinds = Object.entries(model.index.columns).map(([name, kind]) => `${name} (${kind})`).join(", ");
  form(panel, {
    title: "Search the index",
    lead: `${plural(model.index.rows, "document")}, ranked by the cosine of their vectors with that of your question.`,
    fields: [
      field("Question", query),
      tag.element,
      field("Documents to show", k),
      field("Only those where", where, kinds ? `Columns: ${kinds}.` : "The documents have no other columns."),
      check("Words (BM25) and vectors together", hybrid),
      rerank ? check("Order the hits with the reranker", rerank) : null,
    ],
    action: "Search",
    start: ["No question yet", "Ask in your own words: the model finds texts that mean the same."],
    async run() {
      const question = query.value.trim();
      if (!question) throw new Mistake("There is no question: write one.");
      const { data, roundTrip } = await call("search", {
        query: question,
        tag: tag.name(),
        k: Number(k.value),
        where: where.value.trim() || undefined, // what is undefined is not sent
        hybrid: hybrid.checked || undefined,
        rerank: rerank?.checked || undefined,
      });
      const hits = data.results[0].map(({ id, score, row }) => {
        const { [model.index.column]: text, ...facts } = row;
        return { id, score, text: text === null || text === undefined ? "" : String(text), facts: Object.entries(facts) };
      });
      const steps = Object.entries(data.seconds).map(([step, seconds]) => `${milliseconds(1000 * seconds)} to ${step}`);
      const cut = data.truncated_tokens ? ` The question was cut by ${plural(data.truncated_tokens, "token")}.` : "";
      return {
        parts: draw(question, hits, hybrid.checked),
        told: `${plural(hits.length, "hit")}: ${steps.join(", ")}, ${milliseconds(roundTrip)} there and back.${cut}`,
      };
    },
  });
}

function draw(question, hits, hybrid) {
  if (!hits.length) return [empty("No document fits", "Loosen the filter, or ask for something else.")];
  const asked = new Set(wordsOf(question).map(([word]) => plain(word)).filter(telling));
  const best = Math.max(...hits.map(({ score }) => Math.abs(score)), 1e-9);
  const shared = hits.some(({ text }) => wordsOf(text).some(([word]) => asked.has(plain(word))));
  return [
    el("p", { class: "muted", text: (shared ? "Marked are the words that question and document share." : "No hit shares a word with the question.")
      + (hybrid ? " Ranked by words and meaning; the score is made of both ranks." : " Ranked by meaning: a good hit need not have any.") }),
    el("ol", { class: "hits" }, hits.map((hit) => card(hit, asked, best))),
  ];
}

function card({ id, score, text, facts }, asked, best) {
  const whole = text.length <= MOST;
  const body = el("p", {}, marked(whole ? text : text.slice(0, MOST), asked));
  const more = whole ? null : el("button", {
    type: "button",
    on: { click: (event) => { body.replaceChildren(...marked(text, asked)); event.target.remove(); } },
  }, `Show all ${number(text.length)} letters`);
  return el("li", { class: "card hit" },
    el("div", {}, el("span", { class: "score", text: fixed(score, 3) }),
      el("span", { class: "meter", vars: { "--v": Math.max(0, score / best).toFixed(3) }, "aria-hidden": "true" })),
    el("div", {}, body, whole ? null : el("div", { class: "row" }, more),
      el("dl", { class: "hit-facts" }, [["id", id], ...facts.filter(([name, value]) => value !== null && String(value) !== id)].map(([name, value]) =>
        el("div", {}, el("dt", { text: name }), el("dd", { text: shown(value) }))))));
}

const shown = (value) => (value !== null && typeof value === "object" ? JSON.stringify(value) : String(value));

const segmenter = "Segmenter" in Intl ? new Intl.Segmenter(undefined, { granularity: "word" }) : null;

/** [word, start] of every word of a text, in languages without spaces too. */
function wordsOf(text) {
  if (!segmenter) return [...text.matchAll(/[\p{L}\p{N}_]+/gu)].map((found) => [found[0], found.index]);
  return [...segmenter.segment(text)].filter((part) => part.isWordLike).map((part) => [part.segment, part.index]);
}

const plain = (word) => word.normalize("NFKC").toLowerCase();

/** Not one of the words that almost every English sentence has, nor a letter alone. */
const telling = (word) => !COMMON.has(word) && ([...word].length > 2 || /[^\p{ASCII}]/u.test(word) || /\d/.test(word));

/** The text as text nodes, and <mark> elements around the words that are among `asked`. */
function marked(text, asked) {
  const parts = [];
  let end = 0;
  for (const [word, start] of wordsOf(text)) {
    if (!asked.has(plain(word))) continue;
    parts.push(text.slice(end, start), el("mark", { text: word }));
    end = start + word.length;
  }
  parts.push(text.slice(end));
  return parts;
}
