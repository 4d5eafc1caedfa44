// The page: what is served, the sections and the keys between them, light and dark, the key of the server.

import { number, plural } from "./dom.js";
import { experts } from "./experts.js";
import { live } from "./live.js";
import { search } from "./search.js";
import { call, key, onKeyNeeded } from "./server.js";
import { similarity } from "./similarity.js";
import { sizes } from "./sizes.js";

const SECTIONS = { similarity, search, experts, sizes, live };
const $ = (id) => document.getElementById(id);
const tabs = [...document.querySelectorAll("[role=tab]")];

// ---- sections -------------------------------------------------------------------------------------------

const shown = new Map(); // what a section wants to do when it comes to be seen, and when it goes

function open(name, focus = false) {
  for (const tab of tabs) {
    const here = tab.id === `tab-${name}`;
    const panel = $(tab.getAttribute("aria-controls"));
    tab.setAttribute("aria-selected", `${here}`);
    tab.tabIndex = here ? 0 : -1;
    if (here && focus) tab.focus();
    if (panel.hidden === here) {
      panel.hidden = !here;
      shown.get(panel.id)?.(here);
    }
  }
  history.replaceState(null, "", `#${name}`);
}

const asked = () => (location.hash.slice(1) in SECTIONS ? location.hash.slice(1) : "similarity");
const current = () => document.querySelector("[role=tabpanel]:not([hidden])");

tabs.forEach((tab, place) => {
  tab.addEventListener("click", () => open(tab.getAttribute("aria-controls")));
  tab.addEventListener("keydown", (event) => {
    const to = { ArrowRight: place + 1, ArrowLeft: place - 1, Home: 0, End: tabs.length - 1 }[event.key];
    if (to === undefined) return;
    event.preventDefault();
    open(tabs.at(to % tabs.length).getAttribute("aria-controls"), true);
  });
});
addEventListener("hashchange", () => location.hash.slice(1) in SECTIONS && open(asked()));
document.querySelector(".skip").addEventListener("click", (event) => {
  event.preventDefault();
  (current() ?? $("panels")).focus();
});

// ---- keys of the keyboard -------------------------------------------------------------------------------

const stored = (name, otherwise) => localStorage.getItem(name) ?? otherwise;

$("shortcuts").checked = stored("moembed-shortcuts", "on") === "on";
$("shortcuts").addEventListener("change", (event) =>
  localStorage.setItem("moembed-shortcuts", event.target.checked ? "on" : "off"));
$("keys").addEventListener("click", () => $("keys-dialog").showModal());
$("keys-close").addEventListener("click", () => $("keys-dialog").close());

addEventListener("keydown", (event) => {
  const typing = event.target.closest?.("input:not([type=checkbox]), textarea, select, dialog");
  if (typing || event.ctrlKey || event.metaKey || event.altKey || !$("shortcuts").checked) return;
  const place = Number(event.key) - 1;
  if (tabs[place]) open(tabs[place].getAttribute("aria-controls"), true);
  else if (event.key === "/") current()?.querySelector("input, textarea, select, button")?.focus();
  else if (event.key === "?") $("keys-dialog").showModal();
  else return;
  event.preventDefault();
});

// ---- light and dark -------------------------------------------------------------------------------------

const wish = matchMedia("(prefers-color-scheme: dark)");
const dark = () => (stored("moembed-theme", wish.matches ? "dark" : "light") === "dark");

function dress() {
  document.documentElement.dataset.theme = dark() ? "dark" : "light";
  $("theme").textContent = dark() ? "Light" : "Dark";
}

$("theme").addEventListener("click", () => {
  localStorage.setItem("moembed-theme", dark() ? "light" : "dark");
  dress();
});
wish.addEventListener("change", dress);
dress();

// ---- the key of the server ------------------------------------------------------------------------------

onKeyNeeded((refused) => new Promise((resolve) => {
  const dialog = $("key-dialog");
  let given = null;
  $("key-reason").textContent = refused
    ? "The server did not take that key. Give another one."
    : "It is kept in this tab alone, until the tab is closed.";
  $("key").value = "";
  $("key-form").onsubmit = (event) => {
    event.preventDefault();
    given = $("key").value.trim();
    if (given) key.set(given);
    dialog.close();
  };
  $("key-cancel").onclick = () => dialog.close();
  dialog.onclose = () => {
    $("forget").hidden = !key.get();
    resolve(given || null);
  };
  dialog.showModal();
}));

$("forget").addEventListener("click", () => {
  key.forget();
  location.reload();
});

// ---- start ----------------------------------------------------------------------------------------------

function facts(model) {
  const moe = model.moe_layers.length;
  return [
    `${plural(model.layers, "layer")}${moe ? `, ${number(model.experts)} experts in ${moe} of them` : ", no experts"}`,
    `${number(model.dim)} dimensions`,
    `reads ${number(model.max_length)} tokens`,
    `${millions(model.active_parameters)} of ${millions(model.parameters)} parameters active`,
    model.dtype,
    model.index ? `an index of ${plural(model.index.rows, "row")}` : "no index",
  ].join("\u00a0· ");
}

const millions = (count) => (count < 1e6 ? number(count) : `${number(count / 1e6, count < 1e8 ? 1 : 0)}M`);

async function start() {
  try {
    const { data: model } = await call("inspect");
    $("model").textContent = model.name;
    $("facts").textContent = facts(model);
    document.title = `${model.name} · moembed`;
    $("forget").hidden = !key.get();
    for (const [name, build] of Object.entries(SECTIONS)) {
      const watch = build($(name), model);
      if (watch) shown.set(name, watch);
    }
    open(asked());
  } catch (error) {
    $("problem").textContent = error.message;
    $("problem").hidden = false;
  }
}

start();
