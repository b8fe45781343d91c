// One turn of the conversation: the prompt, its answer, and a line of facts and buttons below it.

import { Answer } from "./answer.js";
import { count, dollars, duration, h } from "./dom.js";

export class TurnView {
  answer = new Answer();
  #facts = h("span", { class: "facts soft" });
  #copy = h("button", { type: "button", class: "quiet" }, "Copy");
  #again = h("button", { type: "button", class: "quiet regenerate", hidden: true }, "Regenerate");
  #usage = null;
  #attempt = 1;

  /** @param {{onRegenerate: () => void}} options */
  constructor(turn, { onRegenerate }) {
    this.turn = turn;
    this.element = h("article", { class: "turn", "aria-label": "Turn" });
    if (turn.prompt) this.element.append(h("p", { class: "prompt" }, turn.prompt));
    this.element.append(this.answer.element, h("footer", { hidden: true }, this.#facts, this.#copy, this.#again));
    this.#again.addEventListener("click", onRegenerate);
    this.#copy.addEventListener("click", () => this.#copyText());
  }

  set busy(busy) {
    this.element.setAttribute("aria-busy", String(busy));
    this.element.querySelector("footer").hidden = busy;
  }

  /** Only the last answer can be asked for anew, and only where this page knows the prompt. */
  set canRegenerate(can) {
    this.#again.hidden = !(can && this.turn.prompt);
  }

  take(event) {
    this.answer.take(event);
    if (event.type === "meta") this.#attempt = event.attempt;
    else if (event.type === "usage") this.#usage = event;
    else if (event.type === "done") this.#tell(event);
  }

  restart() {
    this.answer.take({ type: "reset" });
    this.#usage = null;
  }

  /** A turn from before a reload, without asking the relay. */
  restore() {
    this.answer.show(this.turn.text ?? "");
    this.#facts.textContent = this.turn.facts ?? "";
    this.busy = false;
  }

  #tell({ timings = {} }) {
    const facts = [this.turn.model];
    if (timings.total !== undefined) facts.push(duration(timings.total));
    const { prompt_tokens: read = null, completion_tokens: wrote = null, cost_usd: cost = null, source } = this.#usage ?? {};
    const about = source === "estimated" ? "about " : "";
    if (read !== null && wrote !== null) facts.push(`${about}${count(read)} tokens in, ${count(wrote)} out`);
    if (cost !== null) facts.push(about + dollars(cost));
    if (this.#attempt > 1) facts.push(`attempt ${this.#attempt}`);
    this.turn.facts = facts.filter(Boolean).join(" · ");
    this.#facts.textContent = this.turn.facts;
  }

  async #copyText() {
    try {
      await navigator.clipboard.writeText(this.answer.text);
      this.#copy.textContent = "Copied";
    } catch {
      this.#copy.textContent = "Not allowed";
    }
    setTimeout(() => (this.#copy.textContent = "Copy"), 1500);
  }
}
