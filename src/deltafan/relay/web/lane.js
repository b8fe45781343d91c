// One way that a job's events come here, event by event. The newest few hundred stay on the page; all are counted.

import { bytes, count, duration, h, onFrame, stickToEnd } from "./dom.js";

const MAX_ROWS = 300;
const PEEK = 60; // characters of an event's content
const encoder = new TextEncoder();

const STATES = {
  connecting: "connecting",
  queued: "waiting for a worker",
  running: "live",
  retrying: "waiting for the next try",
  done: "complete",
  failed: "failed",
  cancelled: "cancelled",
  expired: "expired",
  closed: "closed",
};

export class Lane {
  events = 0;
  bytes = 0;
  stream = null;
  #rows;
  #summary;
  #state;
  #since = 0;
  #waiting = [];
  #toEnd;
  #draw = onFrame(() => this.#drawRows());

  /** @param {HTMLElement} root holds `.rows`, `.lane-summary` and `.lane-state` */
  constructor(root) {
    this.root = root;
    this.#rows = root.querySelector(".rows");
    this.#summary = root.querySelector(".lane-summary");
    this.#state = root.querySelector(".lane-state");
    this.#toEnd = stickToEnd(this.#rows);
  }

  /** Begin with a new job. @param {number} since the time, by this browser's clock, that arrivals are counted from */
  begin(since) {
    this.stream?.close();
    this.stream = null;
    this.#since = since;
    this.#waiting = [];
    this.events = this.bytes = 0;
    this.#rows.replaceChildren();
    this.#toEnd(true);
    this.#summary.textContent = "";
    this.say("connecting");
  }

  take(event) {
    const size = encoder.encode(JSON.stringify(event)).length;
    this.events += 1;
    this.bytes += size;
    this.#waiting.push({ event, size, at: Date.now() - this.#since });
    if (this.#waiting.length > MAX_ROWS) this.#waiting.shift();
    this.#draw();
  }

  /** What the client library says of its connection. */
  connection(state, connected) {
    const live = state === "running" || state === "queued" || state === "retrying";
    this.say(live && !connected ? "reconnecting" : (STATES[state] ?? state), live && !connected ? "lost" : state);
  }

  say(words, state = words) {
    this.#state.textContent = words;
    this.root.dataset.state = state;
  }

  #drawRows() {
    const rows = this.#waiting.splice(0).map(({ event, size, at }) =>
      h(
        "li",
        { "data-type": event.type },
        h("span", { class: "at" }, at < 100_000 ? `+${count(Math.max(0, at))}` : `+${duration(at)}`),
        h("span", { class: "id" }, event.first && event.first !== event.id ? `${event.first}…${event.id.split("-")[1]}` : (event.id ?? "")),
        h("span", { class: "type" }, event.type),
        h("span", { class: "size" }, bytes(size)),
        h("span", { class: "peek" }, peek(event)),
      ),
    );
    this.#rows.append(...rows);
    while (this.#rows.childElementCount > MAX_ROWS) this.#rows.firstElementChild.remove();
    this.#toEnd();
    this.#summary.textContent = `${count(this.events)} events, ${bytes(this.bytes)}`;
  }
}

/** The beginning of what an event says. */
function peek(event) {
  switch (event.type) {
    case "meta":
      return `attempt ${event.attempt}${event.continued ? ", continued" : event.restart ? ", restart" : ""}`;
    case "tool_call_delta":
      return `${event.name ?? ""}${event.arguments}`.slice(0, PEEK);
    case "tool_result":
      return String(event.error ?? JSON.stringify(event.result)).slice(0, PEEK);
    case "usage":
      return event.total_tokens === null ? "unknown" : `${event.prompt_tokens} in, ${event.completion_tokens} out`;
    case "error":
      return `${event.code}: ${event.message}`.slice(0, PEEK);
    case "done":
      return event.finish_reason;
    default:
      return JSON.stringify((event.text ?? "").slice(0, PEEK)).slice(1, -1);
  }
}
