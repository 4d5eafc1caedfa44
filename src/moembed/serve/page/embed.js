// Texts to vectors, as every section asks for them.

import { choices, field, number, plural } from "./dom.js";
import { call, rowsOf } from "./server.js";

/** A choice of the model's prompts: { element, name() }; there is no element where it has none. */
export function promptChoice(model) {
  if (!model.prompts.length) return { element: null, name: () => undefined };
  const select = choices([["", "none"], ...model.prompts.map((name) => [name, name])], "");
  return { element: field("Prompt in front of each text", select), name: () => select.value || undefined };
}

/** A choice of the tags that the model knows: { element, name() }; there is no element where it has none. */
export function tagChoice(model, { role = false } = {}) {
  if (!model.tags.length || (role && model.tags_are_roles)) return { element: null, name: () => undefined };
  const byPrompt = model.tags_are_roles && model.prompts.length;
  const none = byPrompt ? "as the prompt says" : model.default_tag ? `${model.default_tag}, the default` : null;
  const known = model.tags.map((name) => [name, name]);
  const select = choices(none ? [["", none], ...known] : known, none ? "" : model.tags[0]);
  return { element: field("Tag, by which experts are chosen", select), name: () => select.value || undefined };
}

/** Vectors of texts: { rows, told }, where `told` says how long it took and what was cut off. */
export async function embed(model, texts, { prompt, role, tag, dim } = {}) {
  const { data, roundTrip, server } = await call("v1/embeddings", {
    model: model.name,
    input: texts,
    encoding_format: "base64",
    truncate: "truncate",
    prompt_name: prompt, // what is undefined is not sent
    input_type: role,
    tag,
    dimensions: dim,
  });
  const cut = data.truncated_tokens ?? 0;
  const lost = cut ? ` ${plural(cut, "token")} beyond ${number(model.max_length)} of a text ${cut === 1 ? "was" : "were"} cut off.` : "";
  return { rows: rowsOf(data), told: `${plural(data.usage.total_tokens, "token")}, ${times(server, roundTrip)}.${lost}` };
}

/** How long an answer took, here and there. */
export function times(server, roundTrip) {
  const there = server === null ? "" : `${milliseconds(server)} on the server, `;
  return `${there}${milliseconds(roundTrip)} there and back`;
}

export const milliseconds = (value) => `${number(value, value < 10 ? 1 : 0)} ms`;
