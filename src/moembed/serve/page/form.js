// The frame of a section: a form at the side, and beside it what came of it: nothing yet, at work, a result, a sentence.

import { el, empty } from "./dom.js";
import { ServerError } from "./server.js";

/** What someone can put right in the form: its message is a sentence. */
export class Mistake extends Error {}

/** A field for one question: it grows to two lines, and Enter sends it. */
export function question() {
  return el("textarea", {
    rows: 2, enterkeyhint: "search",
    on: {
      keydown(event) {
        if (event.key !== "Enter" || event.shiftKey || event.isComposing || event.ctrlKey || event.metaKey) return;
        event.preventDefault();
        event.target.form.requestSubmit();
      },
    },
  });
}

/**
 * Fill a panel. `run()` gives { parts, told }: elements to show, and a sentence for those who listen; an error that
 * is a mistake or comes of the server is shown as its sentence. `start` is the heading and the sentences shown before.
 */
export function form(panel, { title, lead, fields, action, example, start, run }) {
  const failed = el("p", { class: "problem", role: "alert", hidden: true });
  const status = el("p", { class: "status muted", role: "status" });
  const result = el("div", { class: "result" }, empty(...start));
  const button = el("button", { type: "submit", class: "main" }, action);
  const sample = example
    ? el("button", { type: "button", on: { click: () => { example(); made.requestSubmit(); } } }, "Example")
    : null;
  let turn = 0;

  const made = el("form", {
    class: "card",
    on: {
      async submit(event) {
        event.preventDefault();
        const mine = ++turn; // the last one that was asked for is shown, whatever comes first
        failed.hidden = true;
        status.textContent = "The server is at work …";
        result.setAttribute("aria-busy", "true");
        button.disabled = true;
        try {
          const { parts, told } = await run();
          if (mine !== turn) return;
          result.replaceChildren(...parts);
          status.textContent = told;
        } catch (error) {
          if (mine !== turn) return;
          status.textContent = "";
          const known = error instanceof Mistake || error instanceof ServerError;
          if (!known) console.error(error);
          failed.textContent = known ? error.message : "The page itself failed, and the console of the browser says where.";
          failed.hidden = false;
        } finally {
          if (mine === turn) {
            result.removeAttribute("aria-busy");
            button.disabled = false;
          }
        }
      },
      keydown(event) {
        if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
          event.preventDefault();
          made.requestSubmit();
        }
      },
    },
  }, fields, el("div", { class: "row" }, button, sample));

  panel.replaceChildren(
    el("div", { class: "intro" }, el("h2", { text: title }), el("p", { class: "lead", text: lead })),
    el("div", { class: "split" }, made, el("div", { class: "shown" }, failed, status, result)),
  );
  return { form: made, show: (...parts) => result.replaceChildren(...parts) };
}
