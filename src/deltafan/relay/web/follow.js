// Follows a job's events over fetch, because EventSource cannot send an Authorization header.
// Every event comes once and in order, whatever happens to the connection: each new one begins after the last id seen.

const FINAL = new Set([400, 401, 403, 404, 410]); // asking again would not help
const SHORTEST_WAIT = 250;
const LONGEST_WAIT = 15_000;

/** The relay said no, and will say it again. */
export class Refused extends Error {}

/** What the relay says of an answer that is not ok. */
export async function problem(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `the relay answered ${response.status}`;
  }
}

/** Turns text, split anywhere, into server-sent events. Lines end at LF, CR or CRLF. */
export class Parser {
  #held = "";
  #data = [];
  #type = "";
  #id = null;
  retry = null;

  feed(text) {
    const events = [];
    this.#held += text;
    // A CR at the end may be half of a CRLF.
    const whole = this.#held.endsWith("\r") ? this.#held.slice(0, -1) : this.#held;
    const lines = whole.split(/\r\n|\n|\r/);
    this.#held = lines.pop() + this.#held.slice(whole.length);
    for (const line of lines) {
      if (line !== "") {
        this.#field(line);
      } else {
        if (this.#data.length) {
          events.push({ type: this.#type || "message", data: this.#data.join("\n"), id: this.#id });
        }
        this.#data = [];
        this.#type = "";
        this.#id = null;
      }
    }
    return events;
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") this.#data.push(value);
    else if (name === "event") this.#type = value;
    else if (name === "id") this.#id = value;
    else if (name === "retry" && /^\d{1,9}$/.test(value)) this.retry = Number(value);
  }
}

/**
 * Calls `onEvent` with each event until `done`.
 *
 * @param {string} url the job's events
 * @param {object} options
 * @param {Record<string, string>} options.headers sent with each request
 * @param {number} options.silence milliseconds without a byte after which a connection counts as dead
 * @param {AbortSignal} options.signal ends the following
 * @param {(event: object) => void} options.onEvent
 * @param {() => void} options.onReset the relay's log does not reach our cursor: everything comes again
 * @param {(connected: boolean) => void} options.onConnection
 * @throws {Refused}
 */
export async function follow(url, options) {
  const state = { after: null, retry: 2000, failures: 0, ended: false };
  while (!state.ended && !options.signal.aborted) {
    try {
      await followOnce(url, options, state);
    } catch (error) {
      if (error instanceof Refused) throw error;
    }
    if (state.ended || options.signal.aborted) return;
    options.onConnection(false);
    const longest = Math.min(LONGEST_WAIT, state.retry * 2 ** Math.min(state.failures, 5));
    state.failures += 1;
    await pause(Math.max(SHORTEST_WAIT, longest * (0.5 + Math.random() / 2)), options.signal);
  }
}

async function followOnce(url, options, state) {
  const connection = new AbortController();
  const abort = () => connection.abort();
  options.signal.addEventListener("abort", abort);
  let timer = setTimeout(abort, options.silence);
  try {
    const headers = { ...options.headers, Accept: "text/event-stream" };
    if (state.after !== null) headers["Last-Event-ID"] = state.after;
    const response = await fetch(url, { headers, signal: connection.signal, cache: "no-store" });
    if (FINAL.has(response.status)) throw new Refused(await problem(response));
    if (response.status === 204) state.ended = true;
    if (response.status !== 200) return;
    options.onConnection(true);
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new Parser();
    while (!state.ended) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(abort, options.silence);
      for (const event of parser.feed(value)) take(event, options, state);
      state.retry = parser.retry ?? state.retry;
    }
  } finally {
    clearTimeout(timer);
    options.signal.removeEventListener("abort", abort);
    connection.abort();
  }
}

function take(event, options, state) {
  if (event.type === "heartbeat") return;
  if (event.type === "reset") {
    state.after = null;
    options.onReset();
    return;
  }
  state.failures = 0;
  if (event.id !== null) state.after = event.id;
  options.onEvent(JSON.parse(event.data));
  if (event.type === "done") state.ended = true;
}

function pause(milliseconds, signal) {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
