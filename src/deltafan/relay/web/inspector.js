// What happens underneath an answer: its events over each way they come, the numbers, and whether both ways agree.

import { $, count, dollars, duration } from "./dom.js";
import { Lane } from "./lane.js";

const CHARS_A_TOKEN = 4; // of English text, about: an estimate while the answer runs

export class Inspector {
  lanes = { sse: new Lane($("sse")), pusher: new Lane($("pusher")) };
  #firstAt = null; // when text, or reasoning, first came
  #firstToken = null;
  #chars = 0;
  #since = 0;
  #live = false;
  #timings = null;
  #usage = null;
  #onFirstToken = () => {};

  /**
   * Begin with a job.
   *
   * @param {object} turn its `sentAt`, and the `firstToken` that was seen before a reload
   * @param {boolean} live whether it was sent just now: only then does this page know how long the first token took
   */
  begin(turn, live, onFirstToken) {
    this.#since = turn.sentAt ?? Date.now();
    this.#live = live;
    this.#firstToken = turn.firstToken ?? null;
    this.#firstAt = this.#timings = this.#usage = null;
    this.#chars = 0;
    this.#onFirstToken = onFirstToken;
    for (const lane of Object.values(this.lanes)) lane.begin(this.#since);
    for (const id of ["first-token", "speed", "cost", "attempt"]) $(id).textContent = "–";
    $("verdict").hidden = true;
    if (this.#firstToken !== null) this.#tellFirstToken();
  }

  /** An event of the way whose numbers are shown. */
  measure(event) {
    if (event.type === "meta") {
      $("attempt").textContent = String(event.attempt);
      if (!event.continued) this.#chars = 0;
      this.#firstAt = null;
    } else if (event.type === "text_delta" || event.type === "reasoning_delta") {
      this.#firstAt ??= Date.now();
      if (this.#live && this.#firstToken === null) {
        this.#firstToken = this.#firstAt - this.#since;
        this.#onFirstToken(this.#firstToken);
        this.#tellFirstToken();
      }
      this.#chars += event.text.length;
      const seconds = (Date.now() - this.#firstAt) / 1000;
      if (seconds > 0.5 && this.#live) $("speed").textContent = `≈ ${Math.round(this.#chars / CHARS_A_TOKEN / seconds)}`;
    } else if (event.type === "usage") {
      this.#usage = event;
    } else if (event.type === "done") {
      this.#timings = event.timings ?? {};
      this.#conclude();
    }
  }

  #tellFirstToken() {
    $("first-token").textContent = duration(this.#firstToken);
  }

  #conclude() {
    const { first_token: first, total } = this.#timings;
    if (this.#firstToken === null && first !== undefined) $("first-token").textContent = duration(first);
    const { completion_tokens: tokens = null, cost_usd: cost = null, source } = this.#usage ?? {};
    const seconds = first === undefined || total === undefined ? 0 : (total - (this.#timings.queued ?? 0) - first) / 1000;
    const about = source === "estimated" ? "≈ " : "";
    $("speed").textContent = tokens !== null && seconds > 0.05 ? `${about}${count(Math.round(tokens / seconds))}` : "–";
    $("cost").textContent = cost === null ? "unknown" : `${about}${dollars(cost)}`;
  }

  /** Both ways have ended: do they agree? */
  compare() {
    const { sse, pusher } = this.lanes;
    if (!sse.stream || !pusher.stream || !isOver(sse.stream) || !isOver(pusher.stream)) return;
    const verdict = $("verdict");
    const equal = OUTPUT.every((name) => JSON.stringify(sse.stream[name]) === JSON.stringify(pusher.stream[name]));
    verdict.hidden = false;
    verdict.dataset.equal = String(equal);
    const { length } = [...sse.stream.text];
    verdict.textContent = equal
      ? `Equal: both ways brought the same ${length ? `${count(length)} characters` : "answer"}.`
      : "Different: the two ways did not bring the same answer.";
  }
}

const OUTPUT = ["text", "reasoning", "refusal", "toolCalls", "finishReason"];

const isOver = (stream) => ["done", "failed", "cancelled", "expired"].includes(stream.state);
