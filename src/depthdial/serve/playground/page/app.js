// The playground: a prompt, a dial, and answers at several depths side by side.

import { getJson, useKey } from "./api.js";
import { Card, make } from "./card.js";
import { drawMap } from "./layers.js";

const FULL = "full";
const RETRY_MS = 1000; // while the model is loading
const at = (id) => document.getElementById(id);

let facts = null; // what the server says of its model: see `load`
let kept = []; // depths that the reader kept or wrote
let cards = [];
let nLoads = 0;
let running = null; // the AbortController of the run in progress

// Start

/** Ask the server for its model: {model, n_layers, has_chat, prompt_depth, dial: [depth], named: [depth]}. */
async function load() {
  const own = ++nLoads;
  at("model").textContent = "Connecting to the server …";
  let found;
  try {
    found = await getJson("playground/facts");
  } catch (error) {
    if (own !== nLoads) return; // another key was given meanwhile
    if (error.status === 503) {
      at("model").textContent = "The model is loading …";
      setTimeout(load, RETRY_MS);
      return;
    }
    at("model").textContent = "Not connected";
    showError(error.message);
    if (error.status === 401) askForKey();
    return;
  }
  if (own !== nLoads) return;
  facts = found;
  showError("");
  at("key-form").hidden = true;
  at("controls").disabled = false;
  at("model").textContent = `${facts.model} · ${facts.n_layers} layers · prompts run ${
    facts.prompt_depth === "full" ? "every layer" : "the route"
  }`;
  at("system").hidden = at("system-label").hidden = !facts.has_chat;
  setUpDial();
  at("named").replaceChildren(...facts.named.map(choiceOf));
  showCards();
  at("prompt").focus();
}

function askForKey() {
  at("key-form").hidden = false;
  at("key").focus();
}

function setUpDial() {
  const { dial } = facts;
  at("dial").max = dial.length - 1;
  at("dial").value = Math.max(0, dial.findLastIndex((depth) => depth.layers.length <= 0.8 * facts.n_layers));
  at("dial-least").textContent = layersOf(dial[0].layers.length);
  at("dial-most").textContent = layersOf(dial.at(-1).layers.length);
  turnDial();
}

function choiceOf(depth) {
  const box = make("input", { type: "checkbox", value: depth.depth, checked: depth.depth === FULL, onchange: showCards });
  const about = depth.about ? [make("span", { className: "hint", textContent: ` ${depth.about}` })] : [];
  return make("label", { className: "choice" }, box, make("span", {}, depth.title, ...about));
}

const layersOf = (count) => (count === 1 ? "1 layer" : `${count} layers`);

// Depths

const dialled = () => facts.dial[at("dial").valueAsNumber];

function turnDial() {
  const { layers } = dialled();
  const told = `${layers.length} of ${facts.n_layers} layers`;
  at("dial-value").textContent = told;
  at("dial").setAttribute("aria-valuetext", told);
  drawMap(at("dial-map"), layers, facts.n_layers, true);
}

/** The chosen depths, each once: the full model, the dial's, named ones, then those that the reader kept or wrote. */
function chosen() {
  const boxes = [...at("named").querySelectorAll("input:checked")].map((box) => box.value);
  const named = facts.named.filter((depth) => boxes.includes(depth.depth));
  const isFull = (depth) => depth.depth === FULL;
  const all = [...named.filter(isFull), dialled(), ...named.filter((depth) => !isFull(depth)), ...kept];
  return all.filter((depth, place) => all.findIndex((other) => other.depth === depth.depth) === place);
}

/** Bring the cards in line with the chosen depths; a card whose depth is still chosen keeps its answer. */
function showCards() {
  if (running) return; // the next run or change does it
  const before = cards;
  cards = chosen().map((depth) => before.find((card) => card.depth.depth === depth.depth) ?? cardFor(depth));
  for (const card of cards) card.remove.hidden = card.depth.depth === dialled().depth;
  const elements = cards.map((card) => card.element);
  const shown = [...at("answers").children];
  if (elements.length !== shown.length || elements.some((element, place) => element !== shown[place])) {
    at("answers").replaceChildren(...elements);
  }
  compare();
}

function cardFor(depth) {
  return new Card(depth, facts.n_layers, () => remove(depth));
}

function remove(depth) {
  if (running) return;
  kept = kept.filter((other) => other.depth !== depth.depth);
  for (const box of at("named").querySelectorAll("input")) if (box.value === depth.depth) box.checked = false;
  showCards();
  at("run").focus();
}

function keep(depth) {
  if (!kept.some((other) => other.depth === depth.depth)) kept.push(depth);
  showCards();
  at("status").textContent = `${depth.title} is in the comparison.`;
}

function addOther() {
  const text = at("other").value.trim();
  at("other").setAttribute("aria-invalid", String(!text));
  if (!text) {
    at("status").textContent = "";
    showError("The depth is empty: write one such as uls:50%, 80% or 0-3,8.");
    at("other").focus();
    return;
  }
  showError("");
  const known = [...facts.named, ...facts.dial].find((depth) => depth.depth === text);
  keep(known ?? { depth: text, title: text, layers: null });
  at("other").value = "";
}

// Runs

async function run() {
  if (!facts || running) return;
  const prompt = at("prompt").value;
  at("prompt").setAttribute("aria-invalid", String(!prompt.trim()));
  if (!prompt.trim()) {
    showError("The prompt is empty: write something to answer.");
    at("prompt").focus();
    return;
  }
  showError("");
  showCards();
  const stopper = new AbortController();
  setRunning(stopper);
  at("status").textContent = `Running ${cards.length} ${cards.length === 1 ? "depth" : "depths"} …`;
  if (matchMedia("(max-width: 56rem)").matches) at("status").scrollIntoView();
  const path = facts.has_chat ? "v1/chat/completions" : "v1/completions";
  const ask = (card) => card.run(path, bodyFor(card.depth.depth, prompt), stopper.signal);
  if (at("in-turn").checked) {
    for (const card of cards) card.wait();
    for (const card of cards) await ask(card);
  } else await Promise.all(cards.map(ask));
  setRunning(null);
  compare();
  settle();
}

function bodyFor(depth, prompt) {
  const system = at("system").value.trim();
  const messages = [...(system ? [{ role: "system", content: system }] : []), { role: "user", content: prompt }];
  return {
    model: facts.model,
    ...(facts.has_chat ? { messages } : { prompt }),
    depth,
    max_tokens: at("max-tokens").valueAsNumber || undefined,
    temperature: Number.isFinite(at("temperature").valueAsNumber) ? at("temperature").valueAsNumber : undefined,
    seed: Number.isFinite(at("seed").valueAsNumber) ? at("seed").valueAsNumber : undefined,
    stream: true,
    stream_options: { include_usage: true },
  };
}

function setRunning(stopper) {
  running = stopper;
  at("run").setAttribute("aria-disabled", String(Boolean(stopper)));
  at("stop").setAttribute("aria-disabled", String(!stopper));
  document.body.classList.toggle("running", Boolean(stopper)); // on narrow screens the buttons stay in sight
}

function compare() {
  const full = cards.find((card) => card.depth.depth === FULL && card.state === "done");
  for (const card of cards) if (card.state !== "empty") card.compareWith(full);
}

/** Say how the run ended; a sentence that every card would repeat stands once, above. */
function settle() {
  const failed = cards.filter((card) => card.state === "failed");
  const reasons = new Set(failed.map((card) => card.failure.message));
  if (failed.length === cards.length && reasons.size === 1) {
    showError([...reasons][0]);
    for (const card of failed) card.error.hidden = true;
    if (failed[0].failure.status === 401) askForKey();
  }
  const n = (state) => cards.filter((card) => card.state === state).length;
  const told = [[n("done"), "finished"], [n("stopped"), "stopped"], [n("failed"), "failed"]].filter(([count]) => count);
  at("status").textContent = `${told.map(([count, word]) => `${count} ${word}`).join(", ")}.${
    n("done") > 1 && !at("in-turn").checked ? " Answers that run at once share every step: for times, run them one after the other." : ""
  }`;
}

function stop() {
  running?.abort();
}

function showError(sentence) {
  at("error").textContent = sentence;
  at("error").hidden = !sentence;
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
at("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(at("key").value);
  load();
});
at("dial").addEventListener("input", () => {
  turnDial();
  showCards();
});
at("keep").addEventListener("click", () => keep(dialled()));
at("add").addEventListener("click", addOther);
at("other").addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.ctrlKey || event.metaKey) return;
  event.preventDefault();
  addOther();
});
at("stop").addEventListener("click", stop);
document.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Escape") stop();
  else if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
    event.preventDefault();
    run();
  }
});
load();
