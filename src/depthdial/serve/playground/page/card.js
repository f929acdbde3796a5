// One answer: its depth, the map of its layers, its times and its text.

import { postStream } from "./api.js";
import { describe, drawMap, layersIn } from "./layers.js";
import { compareWords } from "./words.js";

const ENDS = { stop: "Ended by itself.", length: "Ended at the limit of tokens." };
let n_cards = 0;

/** Make an element with properties and children. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

export class Card {
  /**
   * depth: {depth, title, layers, about}; `layers` is null where only the answer tells them.
   * onRemove: called when the reader removes it.
   */
  constructor(depth, nLayers, onRemove) {
    this.depth = depth;
    this.nLayers = nLayers;
    const id = `answer-${++n_cards}`;
    this.title = make("h3", { id, textContent: depth.title });
    this.map = make("div");
    this.mapText = make("p", { className: "map-text hint" });
    this.facts = make("dl");
    this.text = make("div", { className: "text", tabIndex: 0 });
    this.text.setAttribute("role", "group");
    this.text.setAttribute("aria-labelledby", id);
    this.text.dataset.empty = "Not run yet";
    this.note = make("p", { className: "note" });
    this.error = make("p", { className: "error", hidden: true });
    this.error.setAttribute("role", "alert");
    this.remove = make("button", { type: "button", textContent: "×", onclick: onRemove });
    this.remove.setAttribute("aria-label", `Remove ${depth.title}`);
    const head = make("header", {}, this.title, this.remove);
    this.element = make("article", { className: "answer" }, head, this.map, this.mapText, this.facts, this.text, this.note, this.error);
    this.element.setAttribute("aria-labelledby", id);
    this.element.dataset.depth = depth.depth;
    this.clear();
  }

  clear() {
    this.answer = "";
    this.state = "empty"; // then running, done, stopped or failed
    this.firstMs = this.lastMs = this.usage = this.end = null;
    this.nPieces = 0;
    this.text.replaceChildren();
    this.text.dataset.empty = "Not run yet";
    this.note.textContent = "";
    this.error.hidden = true;
    this.#showMap(this.depth.layers, true);
    this.#showFacts();
  }

  /** Show that its turn comes later. */
  wait() {
    this.clear();
    this.text.dataset.empty = "Waits for its turn";
  }

  /** Ask the server and show the answer as it comes. Never throws: the card says what went wrong, `this.failure` has it. */
  async run(path, body, signal) {
    this.clear();
    this.state = "running";
    this.failure = null;
    this.note.textContent = "";
    this.text.dataset.empty = "";
    this.text.setAttribute("aria-live", "polite"); // busy until the end: a screen reader reads it once, and not each piece
    this.text.setAttribute("aria-busy", "true");
    this.startMs = performance.now();
    try {
      signal.throwIfAborted();
      for await (const event of postStream(path, body, signal)) this.#take(event);
      this.state = "done";
    } catch (error) {
      if (signal.aborted) this.state = "stopped";
      else {
        this.state = "failed";
        this.failure = error;
      }
    }
    this.text.dataset.empty = this.state === "done" ? "The answer is empty." : "No answer";
    this.text.setAttribute("aria-busy", "false");
    // A stopped answer comes without its usage, but a route that is known beforehand is the one that ran.
    if (this.state === "stopped" && this.answer && this.depth.layers) this.#showMap(this.depth.layers, false);
    if (this.state === "failed") {
      if (!this.depth.layers) this.mapText.textContent = "";
      this.error.textContent = this.failure.message;
      this.error.hidden = false;
    }
    this.#showFacts();
  }

  #take(event) {
    const choice = event.choices?.[0];
    const piece = choice?.delta?.content ?? choice?.text ?? "";
    if (piece) {
      this.lastMs = performance.now() - this.startMs;
      this.firstMs ??= this.lastMs;
      this.nPieces++;
      this.answer += piece;
      const isAtEnd = this.text.scrollHeight - this.text.scrollTop - this.text.clientHeight < 24;
      this.text.append(piece);
      if (isAtEnd) this.text.scrollTop = this.text.scrollHeight;
    }
    this.end = choice?.finish_reason ?? this.end;
    if (event.usage) {
      this.usage = event.usage;
      const text = event.usage.depthdial?.route_layers;
      this.#showMap(text ? layersIn(text) : null, false);
    }
    this.#showFacts();
  }

  #showMap(layers, isPlanned) {
    drawMap(this.map, layers, this.nLayers, isPlanned);
    this.mapText.textContent = layers ? describe(layers, this.nLayers, isPlanned ? "run" : "ran") : "The answer tells the layers.";
    if (layers || isPlanned) return;
    const mean = this.usage.depthdial?.layers_run;
    this.mapText.textContent = mean ? `Layers differ by token: ${short(mean)} of ${this.nLayers} in the mean.` : "";
  }

  #showFacts() {
    const facts = [
      ["First token", this.firstMs === null ? "–" : seconds(this.firstMs)],
      ["Tokens", this.usage?.completion_tokens ?? (this.nPieces ? `≈ ${this.nPieces}` : "–")],
      ["Tokens/s", this.#tokensPerSec()],
      ["Layers run", this.#layersRun()],
    ];
    const route = this.usage?.depthdial?.route;
    if (route && route !== this.depth.depth && route !== "full") facts.push(["Route", route]);
    this.facts.replaceChildren(
      ...facts.flatMap(([name, value]) => [make("dt", { textContent: name }), make("dd", { textContent: value })]),
    );
  }

  #tokensPerSec() {
    const nTokens = this.usage?.completion_tokens ?? this.nPieces;
    const ms = this.lastMs - this.firstMs;
    return nTokens > 1 && ms > 0 ? ((1000 * (nTokens - 1)) / ms).toFixed(1) : "–";
  }

  #layersRun() {
    const ran = this.usage?.depthdial?.layers_run ?? (this.state === "stopped" && this.answer ? this.depth.layers?.length : null);
    if (ran == null) return "–";
    return ran > this.nLayers ? `${short(ran)} a token` : `${short(ran)} of ${this.nLayers}`; // drafts count too
  }

  /** Mark the words that are not those of the full model's answer (a card), and say how the two differ. */
  compareWith(full) {
    const ended = ENDS[this.end] ?? "";
    this.note.textContent = { stopped: "Stopped before its end.", done: ended }[this.state] ?? "";
    const drafting = this.usage?.depthdial?.answers?.[0]?.speculation;
    if (drafting) this.note.textContent += ` S${drafting.slice(1)}.`;
    if (!this.answer) return;
    this.text.setAttribute("aria-live", "off"); // the marks are no news
    if (!full?.answer || full === this) {
      this.text.replaceChildren(this.answer);
      return;
    }
    const found = compareWords(this.answer, full.answer);
    if (found === null) {
      this.note.textContent += " The answers are too long to mark their differences.";
      return;
    }
    this.text.replaceChildren(...found.pieces.map(({ text, differs }) => (differs ? make("mark", { textContent: text }) : text)));
    this.note.textContent += ` ${differences(found)}`;
  }
}

function differences({ first, n_words, n_different, n_missing }) {
  if (!first) return "The words are the full model's.";
  const missing = n_missing ? `, and ${n_missing} of the full model's words ${n_missing === 1 ? "is" : "are"} missing` : "";
  return `First difference at word ${first}; ${n_different} of ${n_words} words ${n_different === 1 ? "differs" : "differ"}${missing}.`;
}

const seconds = (ms) => (ms < 1000 ? `${Math.round(ms)} ms` : `${(ms / 1000).toFixed(1)} s`);
const short = (number) => (Number.isInteger(number) ? `${number}` : number.toFixed(1));
