// The server's metrics as they change: rates and latencies of the last seconds, and what the experts do.

import { el, number, plural, svg } from "./dom.js";
import { milliseconds } from "./embed.js";
import { buckets, parse, quantile, total } from "./prometheus.js";
import { call } from "./server.js";

const EVERY = 2000; // milliseconds
const KEPT = 60; // readings: two minutes
const WINDOW = 5; // readings that a rate or a latency is taken over
const OWN = new Set(["/metrics", "/inspect", "/", "/health", "/ready", "/page/{name}", "unmatched"]);
const asked = ({ route }) => !OWN.has(route); // what users of the model ask, and not this page for itself

const TILES = [
  ["Requests", "a second", (now, then, seconds) => gain(now, then, "moembed_requests_total", asked) / seconds, (v) => number(v, v < 10 ? 1 : 0)],
  ["Latency, median", "of ten seconds", (now, then) => latency(now, then, 0.5), wait],
  ["Latency, p99", "of ten seconds", (now, then) => latency(now, then, 0.99), wait],
  ["Tokens read", "a second", (now, then, seconds) => gain(now, then, "moembed_tokens_total") / seconds, (v) => number(v)],
  ["Tokens that wait", "in the queue", (now) => total(now, "moembed_queue_tokens"), (v) => number(v)],
  ["Tokens of a batch", "mean of ten seconds", batch, (v) => (v === null ? "–" : number(v))],
  ["Refused or failed", "requests since the start", (now) => total(now, "moembed_requests_total", (labels) => asked(labels) && Number(labels.status) >= 400), (v) => number(v)],
  ["Texts cut", "too long, since the start", (now) => total(now, "moembed_truncated_texts_total"), (v) => number(v)],
];

export function live(panel, model) {
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const tiles = TILES.map(([label, unit, value, write]) => {
    const shown = el("dd", {}, "–", el("small", { text: unit }));
    const line = svg("polyline", { points: "" });
    const drawing = svg("svg", { class: "spark", viewBox: "0 0 100 30", preserveAspectRatio: "none", "aria-hidden": "true" },
      svg("line", { x1: 0, x2: 100, y1: 30, y2: 30 }), line);
    const past = [];
    const add = (reading) => {
      past.push(reading);
      if (past.length > KEPT) past.shift();
      shown.firstChild.textContent = write(reading);
      line.setAttribute("points", points(past));
    };
    return { element: el("div", { class: "tile card" }, el("dt", { text: label }), shown, drawing), value, add };
  });
  const shares = el("div", { class: "shares" });
  const hold = el("button", { type: "button", "aria-pressed": "false", on: { click: () => pause(!paused) } }, "Hold");
  panel.replaceChildren(
    el("div", { class: "intro row between" },
      el("div", {}, el("h2", { text: "What the server is doing" }),
        el("p", { class: "lead", text: "Read every two seconds from /metrics, where Prometheus can read it too; requests for this page and its readings are not counted." })),
      hold),
    problem,
    el("div", { class: "live" },
      el("dl", { class: "tiles" }, tiles.map(({ element }) => element)),
      model.moe_layers.length
        ? el("section", { class: "card" }, el("h3", { text: "Load of the experts" }),
            el("p", { class: "muted", text: "The share of the tokens of each layer that every expert was given since the start." }), shares)
        : null));

  const readings = []; // [time, samples]
  let timer = null;
  let seen = false;
  let paused = false;

  const read = async () => {
    try {
      const { data } = await call("metrics", undefined, { text: true });
      problem.hidden = true;
      show(parse(data));
    } catch (error) {
      problem.textContent = error.message;
      problem.hidden = false;
    }
    if (seen && !paused) timer = setTimeout(read, EVERY);
  };
  const show = (samples) => {
    readings.push([performance.now(), samples]);
    if (readings.length > WINDOW + 1) readings.shift();
    const [start, then] = readings[0];
    const seconds = (performance.now() - start) / 1000;
    if (readings.length > 1) tiles.forEach(({ value, add }) => add(value(samples, then, seconds)));
    if (model.moe_layers.length) drawShares(shares, model, samples);
  };
  const pause = (wish) => {
    paused = wish;
    hold.textContent = paused ? "Go on" : "Hold";
    hold.setAttribute("aria-pressed", `${paused}`);
    run(seen);
  };
  const run = (visible) => {
    seen = visible;
    clearTimeout(timer);
    if (!seen || paused) return;
    readings.length = 0; // what happened while nobody looked is not of the last seconds
    read();
  };
  return run;
}

function wait(value) {
  return value === null ? "–" : milliseconds(value);
}

const gain = (now, then, name, keep) => total(now, name, keep) - total(then, name, keep);

function latency(now, then, q) {
  const seconds = quantile(buckets(then, "moembed_request_seconds", asked), buckets(now, "moembed_request_seconds", asked), q);
  return seconds === null ? null : seconds * 1000;
}

function batch(now, then) {
  const count = gain(now, then, "moembed_batch_tokens_count");
  return count ? gain(now, then, "moembed_batch_tokens_sum") / count : null;
}


/** A line through the readings; where there is none, it stays on the ground. */
function points(past) {
  const top = Math.max(...past.map((value) => value ?? 0), 1e-9);
  return past.map((value, i) =>
    `${(100 - (past.length - 1 - i) * (100 / (KEPT - 1))).toFixed(2)},${(29 - (28 * (value ?? 0)) / top).toFixed(2)}`).join(" ");
}

function drawShares(box, model, samples) {
  const count = new Map();
  for (const { labels, value } of samples.get("moembed_expert_tokens_total") ?? []) {
    if (!count.has(labels.layer)) count.set(labels.layer, new Map());
    count.get(labels.layer).set(Number(labels.expert), value);
  }
  if (!count.size) {
    box.replaceChildren(el("p", { class: "muted", text: "No text has been embedded yet: draw a map, or ask the server for a vector." }));
    return;
  }
  box.replaceChildren(...[...count].sort((a, b) => a[0] - b[0]).map(([layer, load]) => {
    const all = [...load.values()].reduce((sum, n) => sum + n, 0);
    const bars = Array.from({ length: model.experts }, (_, expert) => {
      const share = (load.get(expert) ?? 0) / all;
      const said = `expert ${expert}: ${number(100 * share, 1)} %`;
      return el("span", { class: "column", title: said, vars: { "--v": Math.min(1, (share * model.experts) / 3).toFixed(4) } });
    });
    const idle = model.experts - load.size;
    const spread = [...load.values()].map((n) => n / all);
    const [least, most, fair] = [idle ? 0 : Math.min(...spread), Math.max(...spread), 1 / model.experts].map((part) => number(100 * part, 1));
    const said = `Layer ${layer}: ${least} to ${most} %, fair ${fair} %`;
    return el("div", { class: "share" },
      el("span", { class: "muted", text: idle ? `${said}; ${plural(idle, "expert")} idle` : said }),
      el("div", { class: "columns", role: "img", "aria-label": said }, bars));
  }));
}
