// deltafan.js: follows one job's stream of events, over SSE or over Pusher. One ES module without dependencies.
//
// Every event comes once and in order, whatever happens to the connection. The log at the relay is the truth: what a
// transport loses is read from there, by id. Types and comments for users are in deltafan.d.ts.

export const VERSION = "0.1.0";

const FINAL_STATES = new Set(["done", "failed", "cancelled", "expired", "closed"]);
const STATE_OF_REASON = { cancelled: "cancelled", expired: "expired", error: "failed" };

const RETRY = 2_000; // first wait before a new connection, until the relay says otherwise
const MAX_WAIT = 15_000; // longest wait of our own
const MAX_RETRY_AFTER = 300_000; // longest wait that a server may ask for
const ANSWER_TIME = 20_000; // for an answer, of a stream its beginning
const CANCEL_TRIES = 4;
const SSE_SILENCE = 45_000; // three of the relay's heartbeats
const PUSHER_SILENCE = 15_000; // Pusher has no heartbeat of a job's own: the relay is asked
const MAX_FRAME = 16 * 2 ** 20; // characters of one SSE frame
const TICK = 5_000;
const SLEPT = 10_000; // a tick this much too late: the machine was asleep
const HOLE_TRIES = 3; // connections that may show the same hole before it counts as real
const READ_AHEAD = 256; // events that wait for an iterator one by one; later deltas merge

// ---------------------------------------------------------------------------------------------------------- errors

export class DeltafanError extends Error {
  constructor(code, message, { status = null, fatal = true, cause, retryAfter = null } = {}) {
    super(message, cause === undefined ? undefined : { cause });
    this.name = "DeltafanError";
    this.code = code;
    this.status = status;
    this.fatal = fatal;
    this.retryAfter = retryAfter;
  }
}

/** Something that another try may mend. Never leaves this module, except as an error with `fatal: false`. */
function passing(code, message, more = {}) {
  return new DeltafanError(code, message, { ...more, fatal: false });
}

/** The job was there, and nobody can end it any more. `cause`: how we know, unless the stream itself said so. */
function lost(cause) {
  const message = "Redis has lost the job";
  return new DeltafanError("job_gone", message, cause && { cause, status: cause.status });
}

/** A request that nobody answered. Told once an outage: see `Core.tolerate`. */
function noAnswer(url, why, cause) {
  return passing("network", `no answer from ${url}: ${why}`, { cause });
}

// ------------------------------------------------------------------------------------------------------------- time

/** Resolves after a time, or at once when the signal aborts. Never rejects. */
function pause(milliseconds, ...signals) {
  return new Promise((resolve) => {
    const end = () => {
      clearTimeout(timer);
      for (const signal of signals) signal.removeEventListener("abort", end);
      resolve();
    };
    const timer = setTimeout(end, milliseconds);
    for (const signal of signals) {
      if (signal.aborted) return end();
      signal.addEventListener("abort", end);
    }
  });
}

/** What a promise gives, unless the signal aborts first. */
function unlessAborted(promise, signal) {
  return new Promise((resolve, reject) => {
    const abort = () => reject(signal.reason);
    if (signal.aborted) abort();
    signal.addEventListener("abort", abort);
    promise.then(resolve, reject).finally(() => signal.removeEventListener("abort", abort));
  });
}

/** Waits grow with each failure, and are spread so that not all clients come at once. */
class Backoff {
  failures = 0;
  base = RETRY;

  next() {
    const longest = Math.min(MAX_WAIT, this.base * 2 ** Math.min(this.failures, 8));
    this.failures += 1;
    return longest * (0.5 + Math.random() / 2);
  }
}

function retryAfter(headers) {
  const text = headers.get("Retry-After");
  if (!text) return null;
  const wait = /^\d+$/.test(text.trim()) ? Number(text) * 1000 : Date.parse(text) - Date.now();
  return Number.isFinite(wait) ? Math.min(Math.max(wait, 0), MAX_RETRY_AFTER) : null;
}

/** Tells when the network has come back, when it went away, and when the machine was asleep. */
class Surroundings {
  #stop = [];

  constructor({ onWake, onOffline, onVisible }) {
    this.#listen(globalThis, "online", onWake);
    this.#listen(globalThis, "offline", onOffline);
    this.#listen(globalThis.document, "visibilitychange", () => {
      if (!globalThis.document.hidden) onVisible();
    });
    let last = Date.now();
    const ticker = setInterval(() => {
      const late = Date.now() - last - TICK;
      last = Date.now();
      // Browsers slow the timers of hidden pages down: that is no sleep.
      if (late > SLEPT && !globalThis.document?.hidden) onWake();
    }, TICK);
    this.#stop.push(() => clearInterval(ticker));
  }

  #listen(target, name, listener) {
    if (typeof target?.addEventListener !== "function") return;
    target.addEventListener(name, listener);
    this.#stop.push(() => target.removeEventListener(name, listener));
  }

  close() {
    for (const stop of this.#stop.splice(0)) stop();
  }
}

// -------------------------------------------------------------------------------------------------------------- SSE

/** Turns text, cut anywhere, into server-sent events. Lines end at LF, CR or CRLF, and nowhere else. */
export class SseParser {
  retry = null;
  #held = "";
  #data = [];
  #size = 0;
  #type = "";

  feed(text) {
    const frames = [];
    this.#held += text;
    // A CR at the end may be half of a CRLF.
    const whole = this.#held.endsWith("\r") ? this.#held.slice(0, -1) : this.#held;
    const lines = whole.split(/\r\n|\n|\r/);
    this.#held = lines.pop() + this.#held.slice(whole.length);
    for (const line of lines) {
      if (line !== "") {
        this.#field(line);
      } else {
        if (this.#data.length) frames.push({ type: this.#type || "message", data: this.#data.join("\n") });
        this.#data = [];
        this.#size = 0;
        this.#type = "";
      }
    }
    if (this.#held.length + this.#size > MAX_FRAME) throw passing("bad_frame", "a frame of the stream has no end");
    return frames;
  }

  #field(line) {
    const colon = line.indexOf(":");
    const name = colon < 0 ? line : line.slice(0, colon);
    const value = colon < 0 ? "" : line.slice(colon + 1).replace(/^ /, "");
    if (name === "data") {
      this.#data.push(value);
      this.#size += value.length;
    } else if (name === "event") this.#type = value;
    else if (name === "retry" && /^\d{1,9}$/.test(value)) this.retry = Number(value);
  }
}

// -------------------------------------------------------------------------------------------------------- the relay

/** Asks the relay, with the token of the moment. */
class Relay {
  answers = 0; // how many there have been, good or bad
  #base;
  #jobId;
  #token;
  #fetch;
  #current; // the token, or the promise of it
  #taken = 0; // how many tokens we have had
  #reason = "initial";

  constructor({ relay, jobId, token, fetch }) {
    this.#base = relay;
    this.#jobId = jobId;
    this.#token = token;
    this.#fetch = fetch;
  }

  get exists() {
    return this.#base !== null;
  }

  /** A path of the relay's as a URL; a whole URL stays as it is. */
  url(path) {
    return /^[a-z][a-z0-9+.-]*:\/\//i.test(path) ? path : `${this.#base ?? ""}${path}`;
  }

  job(rest = "") {
    return this.url(`/v1/jobs/${encodeURIComponent(this.#jobId)}${rest}`);
  }

  /** An answer that is ok. A refused token is renewed once, where there is a function for it. */
  async ask(url, { signal, headers = {}, ...init }) {
    for (let renewed = false; ; renewed = true) {
      const { token, number } = await this.#bearer(signal);
      const authorization = token ? { Authorization: `Bearer ${token}` } : {};
      const response = await this.#send(url, {
        cache: "no-store",
        ...init,
        headers: { ...authorization, ...headers },
        signal,
      });
      if (response.ok) return response;
      const error = await problem(response);
      if (error.status !== 401 || renewed || typeof this.#token !== "function") throw error;
      this.#renew(number, error.code);
    }
  }

  async #send(url, init) {
    try {
      const response = await this.#fetch(url, init);
      this.answers += 1;
      return response;
    } catch (error) {
      if (init.signal.aborted) throw init.signal.reason; // we gave it up, and know why
      throw noAnswer(url, error?.cause?.message || error?.message || error, error);
    }
  }

  /** A JSON answer within `ANSWER_TIME`. */
  async json(url, { signal, ...init }) {
    const late = new AbortController();
    const timer = setTimeout(() => late.abort(noAnswer(url, `none in ${ANSWER_TIME / 1000} s`)), ANSWER_TIME);
    const abort = () => late.abort();
    signal.addEventListener("abort", abort);
    try {
      signal.throwIfAborted();
      const headers = { Accept: "application/json", ...init.headers };
      const response = await this.ask(url, { ...init, headers, signal: late.signal });
      const answer = parseJson(await response.text());
      if (answer === null) throw passing("bad_answer", `the answer of ${url} is not JSON`);
      return answer;
    } finally {
      clearTimeout(timer);
      signal.removeEventListener("abort", abort);
    }
  }

  status(signal) {
    return this.json(this.job(), { signal });
  }

  /** Answers in how many seconds to renew it, if at all. */
  renewInterest(signal) {
    return this.json(this.job("/interest"), { method: "POST", signal });
  }

  /** What the log holds after a cursor. */
  async snapshot(after, signal) {
    const query = after === null ? "" : `?after=${after}`;
    const answer = await this.json(this.job(`/events${query}`), { signal });
    if (!Array.isArray(answer?.events)) throw passing("bad_answer", "the relay's snapshot is not one");
    return answer;
  }

  async #bearer(signal) {
    if (this.#current === undefined) this.#renew(this.#taken, this.#reason);
    const number = this.#taken;
    const current = this.#current;
    try {
      return { token: await unlessAborted(current, signal), number };
    } catch (error) {
      if (this.#current === current) this.#current = undefined; // the function is asked again
      throw error;
    }
  }

  /** A token that several requests find expired is renewed once. */
  #renew(number, reason) {
    if (number !== this.#taken) return;
    this.#taken += 1;
    this.#reason = reason;
    const token = this.#token;
    this.#current = typeof token === "function" ? this.#askToken(token, reason) : Promise.resolve(token);
    this.#current.catch(() => {}); // whoever waits for it gets the error
  }

  async #askToken(token, reason) {
    let found;
    try {
      found = await token({ jobId: this.#jobId, reason });
    } catch (cause) {
      throw passing("token", `the token function failed: ${cause?.message ?? cause}`, { cause });
    }
    if (typeof found === "string" && found !== "") return found;
    throw new DeltafanError("unauthorized", "the token function gave no token", { status: 401 });
  }
}

/** What an answer that is not ok means. 4xx are final, except those that are about the moment. */
async function problem(response) {
  const { status } = response;
  let told = null;
  try {
    told = (await response.json()).error;
  } catch {
    // a proxy's page: the status has to do
  }
  const code = typeof told?.code === "string" ? told.code : `http_${status}`;
  const message = typeof told?.message === "string" ? told.message : `the relay answered ${status}`;
  const fatal = status >= 400 && status < 500 && ![408, 425, 429].includes(status);
  return new DeltafanError(code, message, { status, fatal, retryAfter: retryAfter(response.headers) });
}

// ------------------------------------------------------------------------------------------------------------ order

function parseId(text) {
  const match = typeof text === "string" && /^(\d{1,9})-(\d{1,15})$/.exec(text);
  return match ? { attempt: Number(match[1]), seq: Number(match[2]) } : null;
}

function compare(a, b) {
  return a.attempt - b.attempt || a.seq - b.seq;
}

/** Deltas with the same kind merge; other events have none. */
function kindOf(event) {
  switch (event.type) {
    case "text_delta":
    case "reasoning_delta":
    case "refusal_delta":
      return `${event.type}:${event.choice ?? 0}`;
    case "tool_call_delta":
      return `${event.type}:${event.choice ?? 0}:${event.index}`;
    default:
      return null;
  }
}

const payloadOf = (event) => (event.type === "tool_call_delta" ? "arguments" : "text");

function canMerge(a, b) {
  const kind = kindOf(a);
  if (kind === null || kind !== kindOf(b) || b.call_id || b.name) return false;
  const last = parseId(a.id);
  const next = parseId(b.first ?? b.id);
  return last.attempt === next.attempt && last.seq + 1 === next.seq;
}

/** One event for two adjacent ones: the last id of the run, and as `first` the id of its first event. */
function merge(a, b) {
  const name = payloadOf(a);
  return { ...a, id: b.id, first: a.first ?? a.id, [name]: a[name] + b[name] };
}

/** An event of the log as it may be applied, or null when it is none. */
function readEvent(value, jobId) {
  if (value === null || typeof value !== "object" || typeof value.type !== "string" || value.job !== jobId) return null;
  const id = parseId(value.id);
  const first = value.first === undefined ? id : parseId(value.first);
  if (!id || !first || first.attempt !== id.attempt || first.seq > id.seq) return null;
  const payload = kindOf(value) === null ? "" : value[payloadOf(value)];
  return typeof payload === "string" ? value : null;
}

/** Knows the last event and what may follow it. */
class Order {
  last = null;
  #kind = null; // of the run of deltas at the end, with its pieces: what of a merged event we have
  #pieces = [];

  constructor(after) {
    this.last = after;
  }

  /** `next` with the event (or what is new of it), `old` or `hole`. */
  place(event) {
    const id = parseId(event.id);
    const first = event.first === undefined ? id : parseId(event.first);
    const last = this.last;
    if (last !== null && compare(id, last) <= 0) return { verdict: "old" };
    if (last === null || first.attempt > last.attempt) return { verdict: first.seq === 0 ? "next" : "hole", event };
    if (first.seq === last.seq + 1) return { verdict: "next", event };
    if (first.seq > last.seq) return { verdict: "hole", event };
    return this.#rest(event, first);
  }

  /** The part of a merged event that comes after the last one. Its run overlaps the one that we have. */
  #rest(event, first) {
    const from = this.#pieces.findIndex((piece) => piece.first === first.seq);
    if (from < 0 || this.#kind !== kindOf(event)) return { verdict: "hole", event };
    const known = this.#pieces.slice(from).reduce((sum, piece) => sum + piece.length, 0);
    const name = payloadOf(event);
    const { attempt, seq } = this.last;
    return { verdict: "next", event: { ...event, first: `${attempt}-${seq + 1}`, [name]: event[name].slice(known) } };
  }

  took(event) {
    const id = parseId(event.id);
    const first = event.first === undefined ? id : parseId(event.first);
    const kind = kindOf(event);
    if (kind === null || kind !== this.#kind || id.attempt !== this.last?.attempt) this.#pieces = [];
    if (kind !== null) {
      this.#pieces.push({ first: first.seq, length: event[payloadOf(event)].length });
      if (this.#pieces.length > 20_000) this.#pieces = this.#pieces.slice(10_000);
    }
    this.#kind = kind;
    this.last = id;
  }

  /** Go on after a hole that nobody can fill. */
  skipTo(event) {
    const first = parseId(event.first ?? event.id);
    this.last = { attempt: first.attempt, seq: first.seq - 1 };
    this.#pieces = [];
    this.#kind = null;
  }
}

// -------------------------------------------------------------------------------------------------------- the output

/** What the events amount to. Restarts and continuations are applied. */
class Transcript {
  attempt = 0;
  texts = [""];
  reasoning = "";
  refusal = "";
  toolCalls = [];
  toolResults = [];
  usage = null;
  error = null;
  done = null;

  /** Gives what the text of choice 0 gained ("" when it was cleared), or null when it is as before. */
  add(event) {
    const choice = event.choice ?? 0;
    switch (event.type) {
      case "meta":
        return this.#begin(event);
      case "text_delta":
        this.texts[choice] = (this.texts[choice] ?? "") + event.text;
        return choice === 0 && event.text !== "" ? event.text : null;
      case "reasoning_delta":
        if (choice === 0) this.reasoning += event.text;
        return null;
      case "refusal_delta":
        if (choice === 0) this.refusal += event.text;
        return null;
      case "tool_call_delta":
        if (choice === 0) this.#toolCall(event);
        return null;
      case "tool_result":
        this.toolResults = [...this.toolResults, event];
        return null;
      case "usage":
        this.usage = event;
        return null;
      case "error":
        this.error = event;
        return null;
      case "done":
        this.done = event;
        return null;
      default:
        return null; // of a later version
    }
  }

  #begin(meta) {
    const had = this.texts[0] !== "";
    this.attempt = meta.attempt;
    this.error = null;
    if (meta.continued) return null;
    this.texts = [""];
    this.reasoning = this.refusal = "";
    this.toolCalls = [];
    this.toolResults = [];
    return had ? "" : null;
  }

  /** A piece that brings another id begins a call, also under an index that was used before (a later turn's). */
  #toolCall(piece) {
    const calls = this.toolCalls.slice();
    let place = calls.findLastIndex((call) => call.index === piece.index);
    const other = place >= 0 && piece.call_id && calls[place].id && piece.call_id !== calls[place].id;
    if (place < 0 || other) place = calls.push({ index: piece.index, id: null, name: "", arguments: "" }) - 1;
    const call = calls[place];
    calls[place] = {
      index: call.index,
      id: call.id ?? piece.call_id ?? null,
      name: call.name || (piece.name ?? ""),
      arguments: call.arguments + piece.arguments,
    };
    this.toolCalls = calls;
  }
}

// ------------------------------------------------------------------------------------------------------- iteration

/** Events that wait for one iterator. Beyond `READ_AHEAD` of them deltas merge, so that it grows no more than the text. */
class EventQueue {
  #events;
  #waiting = [];
  #ended = false;
  #error = null;

  constructor(history) {
    this.#events = history;
  }

  push(event) {
    const waiting = this.#waiting.shift();
    if (waiting) return waiting.resolve({ value: event, done: false });
    const last = this.#events.at(-1);
    if (this.#events.length >= READ_AHEAD && canMerge(last, event)) this.#events.push(merge(this.#events.pop(), event));
    else this.#events.push(event);
  }

  end(error) {
    this.#ended = true;
    this.#error = error;
    for (const waiting of this.#waiting.splice(0)) this.next().then(waiting.resolve, waiting.reject);
  }

  discard() {
    this.#events = [];
    this.end(null);
  }

  next() {
    if (this.#events.length) return Promise.resolve({ value: this.#events.shift(), done: false });
    if (!this.#ended) return new Promise((resolve, reject) => this.#waiting.push({ resolve, reject }));
    const error = this.#error;
    this.#error = null;
    return error ? Promise.reject(error) : Promise.resolve({ value: undefined, done: true });
  }
}

// ------------------------------------------------------------------------------------------------------------- core

/** What all transports share: the order, the output, the state, and telling of them. */
class Core {
  order;
  output = new Transcript();
  gaps = [];
  state = "connecting";
  connected = false;
  finished = false;
  failure = null;
  relay;
  settings;
  #after;
  #lastId;
  #history = []; // merged, for iterators that begin late
  #queues = new Set();
  #stop = new AbortController();
  #outage = null; // how many answers there were before the outage that was told last
  #result = {};

  constructor(settings) {
    this.settings = settings;
    this.relay = new Relay(settings);
    this.#after = settings.after;
    this.#lastId = settings.after;
    this.order = new Order(parseId(settings.after));
    this.#result.promise = new Promise((resolve, reject) => Object.assign(this.#result, { resolve, reject }));
    this.#result.promise.catch(() => {}); // nobody has to wait for it
  }

  get signal() {
    return this.#stop.signal;
  }

  get lastId() {
    return this.#lastId;
  }

  /** Whether the text is all there is: not when we began in the middle. */
  get isWhole() {
    return this.#after === null && this.gaps.length === 0;
  }

  get promise() {
    return this.#result.promise;
  }

  get error() {
    return this.failure ?? this.output.error;
  }

  result() {
    const { texts, reasoning, refusal, toolCalls, toolResults, usage, error, done } = this.output;
    return {
      jobId: this.settings.jobId,
      state: this.state,
      finishReason: done?.finish_reason ?? null,
      text: texts[0],
      choices: Array.from(texts, (text) => text ?? ""),
      reasoning,
      refusal,
      toolCalls,
      toolResults,
      usage,
      error,
      timings: done?.timings ?? {},
      gaps: this.gaps,
      lastId: this.lastId,
    };
  }

  /** Apply the event that is next in order. */
  accept(event) {
    this.order.took(event);
    this.#lastId = event.id;
    const added = this.output.add(event);
    this.#remember(event);
    if (event.type === "meta") this.setState("running");
    else if (event.type === "error" && event.will_retry) this.setState("retrying");
    else if (event.type === "done") this.setState(STATE_OF_REASON[event.finish_reason] ?? "done");
    this.#tell(event);
    if (added !== null) this.#call("onText", this.output.texts[0], added);
    if (event.type === "done") this.#finish();
  }

  /** The relay's log does not reach our cursor: forget all, everything comes anew. */
  reset(reason) {
    const had = this.output.texts[0] !== "";
    this.order = new Order(null);
    this.output = new Transcript();
    this.gaps = [];
    this.#after = this.#lastId = null;
    this.#history = [];
    this.#tell({ v: 1, type: "reset", job: this.settings.jobId, reason });
    if (had) this.#call("onText", "", "");
  }

  /** Go on although events before this one are missing for good. */
  gap(event) {
    const gap = { after: this.lastId, before: event.first ?? event.id };
    this.gaps = [...this.gaps, gap];
    this.order.skipTo(event);
    const between = gap.after === null ? `before ${gap.before}` : `between ${gap.after} and ${gap.before}`;
    this.report(passing("gap", `events ${between} are lost`));
  }

  /** The job has ended, and the events that say so are not for us: they come before our cursor. */
  over(status) {
    const { finish_reason = null, usage = null, error = null, timings = {} } = status;
    this.output.done = { finish_reason, timings };
    this.output.usage ??= usage;
    this.output.error ??= error;
    this.setState(FINAL_STATES.has(status.state) ? status.state : "done");
    this.#finish();
  }

  setState(state) {
    if (this.finished || this.state === state) return;
    this.state = state;
    this.#call("onState", this.state, this.connected);
  }

  setConnected(connected) {
    if (this.finished || this.connected === connected) return;
    this.connected = connected;
    this.#call("onState", this.state, this.connected);
  }

  /** The relay knows the job, but nothing of it has come yet. */
  waits() {
    if (this.state === "connecting") this.setState(this.lastId === null ? "queued" : "running");
  }

  /** Something that is not the end. */
  report(error) {
    if (!this.finished) this.#call("onError", error);
  }

  /** Ends the following when the error is final. Otherwise gives the milliseconds that a server asked to wait, or null. */
  tolerate(error) {
    if (this.finished || !(error instanceof DeltafanError)) return null; // a connection broke: `connected` tells
    if (error.fatal) this.fail(this.#isGone(error) ? lost(error) : error);
    else if (!this.#isTold(error)) this.report(error);
    return error.retryAfter;
  }

  /** Whether a job is unknown of which we had events. */
  #isGone(error) {
    return error.code === "not_found" && error.status === 404 && this.#history.length > 0;
  }

  /** Whether it belongs to an outage that was told. An outage ends with the next answer. */
  #isTold(error) {
    if (error.code !== "network") return false;
    const told = this.#outage === this.relay.answers;
    this.#outage = this.relay.answers;
    return told;
  }

  fail(error) {
    if (this.finished) return;
    this.failure = error;
    this.#end("closed", error);
    this.#call("onError", error);
  }

  close() {
    if (!this.finished)
      this.#end("closed", new DeltafanError("closed", "the stream was closed before the job ended"), true);
  }

  iterate() {
    const queue = new EventQueue(this.#history.slice());
    if (this.finished) queue.end(this.failure);
    else this.#queues.add(queue);
    return {
      next: () => queue.next(),
      return: () => {
        this.#queues.delete(queue);
        queue.discard();
        return Promise.resolve({ value: undefined, done: true });
      },
      [Symbol.asyncIterator]() {
        return this;
      },
    };
  }

  #finish() {
    if (this.finished) return;
    this.#end(this.state, null);
    const result = this.result();
    this.#result.resolve(result);
    this.#call("onDone", result);
  }

  #end(state, error, quietly = false) {
    const changed = this.state !== state || this.connected;
    this.state = state;
    this.connected = false;
    this.finished = true;
    this.#stop.abort();
    for (const queue of this.#queues) queue.end(quietly ? null : error);
    this.#queues.clear();
    if (error !== null) this.#result.reject(error);
    if (changed) this.#call("onState", this.state, this.connected);
  }

  #remember(event) {
    if (event.type === "meta" && !event.continued) this.#history = [];
    const last = this.#history.at(-1);
    if (last !== undefined && canMerge(last, event)) this.#history.push(merge(this.#history.pop(), event));
    else this.#history.push(event);
  }

  #tell(event) {
    for (const queue of this.#queues) queue.push(event);
    this.#call("onEvent", event);
  }

  /** A callback that throws is the page's mistake: it shows as one, and the stream goes on. */
  #call(name, ...values) {
    try {
      this.settings[name]?.(...values);
    } catch (error) {
      if (typeof globalThis.reportError === "function") globalThis.reportError(error);
      else
        setTimeout(() => {
          throw error;
        });
    }
  }
}

// ---------------------------------------------------------------------------------------------- following over SSE

class SseFollower {
  #core;
  #silence;
  #backoff = new Backoff();
  #stop = new AbortController();
  #connection = new AbortController();
  #wake = new AbortController();
  #hurry = false;
  #lastByte = 0;
  #hole = { at: null, times: 0 };

  constructor(core, silence) {
    this.#core = core;
    this.#silence = silence;
  }

  async run() {
    const core = this.#core;
    const stopped = this.#stop.signal;
    core.signal.addEventListener("abort", () => this.stop(), { signal: stopped });
    while (!stopped.aborted) {
      let asked = null;
      try {
        await this.#connect();
      } catch (error) {
        asked = core.tolerate(error);
      }
      if (stopped.aborted) return;
      core.setConnected(false);
      const own = this.#backoff.next();
      if (asked !== null) await pause(asked * (1 + Math.random() / 10), stopped);
      else if (!this.#hurry) await pause(Math.max(own, 100), stopped, this.#wake.signal);
      this.#hurry = false;
    }
  }

  /** For good. The job may be followed in another way. */
  stop() {
    this.#stop.abort();
    this.#connection.abort();
  }

  /** The network is new: an old connection may look alive for long. */
  reconnect() {
    this.#hurry = true;
    this.#backoff.failures = 0;
    this.#connection.abort();
    this.#wake.abort();
    this.#wake = new AbortController();
  }

  drop() {
    this.#connection.abort();
  }

  look() {
    if (!this.#core.connected || Date.now() - this.#lastByte > this.#silence / 2) this.reconnect();
  }

  async #connect() {
    const core = this.#core;
    const connection = new AbortController();
    this.#connection = connection;
    this.#hurry = false;
    const url = core.relay.job("/events");
    const patience = Math.min(this.#silence, ANSWER_TIME);
    const none = () => connection.abort(noAnswer(url, `none in ${patience / 1000} s`));
    let timer = setTimeout(none, patience);
    const listen = () => {
      clearTimeout(timer);
      timer = setTimeout(() => connection.abort(), this.#silence);
    };
    try {
      const headers = { Accept: "text/event-stream" };
      if (core.lastId !== null) headers["Last-Event-ID"] = core.lastId;
      const response = await core.relay.ask(url, { headers, signal: connection.signal });
      if (response.status === 204) return core.over(await core.relay.status(connection.signal));
      if (!/^text\/event-stream\b/i.test(response.headers.get("Content-Type") ?? "")) {
        throw passing("bad_answer", "the relay's answer is not an event stream");
      }
      listen();
      core.setConnected(true);
      core.waits();
      const reader = response.body.getReader();
      const decoder = new TextDecoder();
      const parser = new SseParser();
      while (!connection.signal.aborted) {
        const { done, value } = await reader.read();
        if (done) return;
        listen();
        this.#lastByte = Date.now();
        for (const frame of parser.feed(decoder.decode(value, { stream: true }))) {
          this.#take(frame);
          if (connection.signal.aborted) return;
        }
        this.#backoff.base = parser.retry ?? this.#backoff.base;
      }
    } finally {
      clearTimeout(timer);
      connection.abort();
    }
  }

  #take(frame) {
    const core = this.#core;
    const value = parseJson(frame.data);
    if (value === null || typeof value !== "object") throw passing("bad_frame", "a frame of the stream is not JSON");
    if (value.type === "reset") core.reset(value.reason ?? null);
    if (value.id === undefined && value.type === "error" && value.code === "job_gone") throw lost();
    if (value.id !== undefined) {
      const event = readEvent(value, core.settings.jobId);
      if (event === null) throw passing("bad_frame", "a frame of the stream is no event of this job");
      this.#apply(event);
    }
    this.#backoff.failures = 0; // heartbeats count, too: the way is sound
  }

  #apply(received) {
    const { verdict, event } = this.#core.order.place(received);
    if (verdict === "old") return;
    if (verdict === "hole") this.#missing(event);
    this.#core.accept(event);
  }

  /** A hole is the connection's fault, unless several connections show the same one. */
  #missing(event) {
    const at = this.#core.lastId;
    this.#hole = { at, times: this.#hole.at === at ? this.#hole.times + 1 : 1 };
    if (this.#hole.times <= HOLE_TRIES) throw passing("hole", `events after ${at ?? "the start"} did not come`);
    this.#core.gap(event);
  }
}

function parseJson(text) {
  try {
    return JSON.parse(text);
  } catch {
    return null;
  }
}

// -------------------------------------------------------------------------------------------- following over Pusher

const HOLE_WAIT = 300; // parts and their neighbours may be late
const HOLE_WAIT_ALONE = 1_500; // nobody else can fill it
const JOIN_TIME = 5_000; // for the first subscription, before the relay's own stream stands in
const MAX_HELD = 1_000; // events that wait for what comes before them
const MAX_HELD_SIZE = 4 * 2 ** 20; // their characters
const MAX_PARTS = 1_024; // of one event
const MAX_PARTS_SIZE = 16 * 2 ** 20; // characters of all events that are not complete
const INTEREST_RETRY = 10_000; // until a renewal that failed is tried again

/** Puts events together that came in parts: split deltas, and chunks of anything else. */
class Parts {
  #open = new Map(); // by id
  #size = 0;

  get isEmpty() {
    return this.#open.size === 0;
  }

  /** The whole event, or null while parts of it are missing. */
  add(value) {
    const { id, part, parts, type, of, first } = value;
    const text = type === "chunk" ? value.data : value[payloadOf(value)];
    if (!Number.isInteger(parts) || parts < 1 || parts > MAX_PARTS) return null;
    if (!Number.isInteger(part) || part < 0 || part >= parts || typeof text !== "string") return null;
    const key = [type, of, first, parts].join();
    let found = this.#open.get(id);
    if (found?.key !== key) {
      this.#forget(id); // sent again, and cut in another way
      found = { key, texts: new Array(parts), have: 0, size: 0, head: null };
      this.#open.set(id, found);
    }
    if (found.texts[part] === undefined) {
      found.texts[part] = text;
      found.have += 1;
      found.size += text.length;
      this.#size += text.length;
    }
    if (part === 0) found.head = value;
    if (found.have === parts) {
      this.#forget(id);
      return whole(found);
    }
    if (this.#size > MAX_PARTS_SIZE) this.clear();
    return null;
  }

  /** Forget what is not after an id. */
  prune(last) {
    for (const id of this.#open.keys()) if (last !== null && compare(parseId(id), last) <= 0) this.#forget(id);
  }

  clear() {
    this.#open.clear();
    this.#size = 0;
  }

  #forget(id) {
    this.#size -= this.#open.get(id)?.size ?? 0;
    this.#open.delete(id);
  }
}

function whole({ head, texts }) {
  const text = texts.join("");
  if (head.type === "chunk") return parseJson(text);
  const { part, parts, ...event } = head;
  return { ...event, [payloadOf(head)]: text };
}

/** Follows over Pusher, and over the relay's own stream while Pusher is down. */
class PusherFollower {
  #core;
  #link = null;
  #up = false;
  #detour = null; // the relay's own stream, while it stands in
  #held = new Map(); // events that wait for what comes before them, by id
  #heldSize = 0;
  #parts = new Parts();
  #backoff = new Backoff();
  #wake = new AbortController();
  #reading = null; // stops the reading that is under way
  #again = false;
  #holeTimer = null;
  #askTimer = null;

  constructor(core) {
    this.#core = core;
    core.signal.addEventListener("abort", () => {
      clearTimeout(this.#holeTimer);
      clearTimeout(this.#askTimer);
      this.#reading?.abort();
      this.#link?.stop();
    });
  }

  async run() {
    const core = this.#core;
    this.#keepInterest().catch((error) => core.fail(asError(error, "internal", "following failed")));
    while (!core.finished && this.#link === null) {
      try {
        const config = await this.#configuration();
        const link = config.client
          ? new PusherJsLink(config, this.#hooks())
          : new PusherLink(config, this.#hooks(), core);
        this.#link = link;
        Promise.resolve(link.start()).catch((error) => {
          this.#trouble(asError(error, "pusher", "Pusher cannot be used"));
          this.#down();
        });
      } catch (error) {
        const asked = core.tolerate(error);
        await pause(asked ?? this.#backoff.next(), core.signal, this.#wake.signal);
      }
    }
    this.#askLater();
  }

  /** Who listens at Pusher is not seen by a job that is to end when nobody follows it, unless we say so. */
  async #keepInterest() {
    const core = this.#core;
    while (core.relay.exists && !core.finished) {
      let wait = INTEREST_RETRY;
      try {
        const { renew_in: seconds } = await core.relay.renewInterest(core.signal);
        if (typeof seconds !== "number") return; // it does not mind being alone
        wait = seconds * 1000;
      } catch (error) {
        if (error.fatal) return; // what matters is told by who reads the log
      }
      await pause(wait, core.signal, this.#wake.signal);
    }
  }

  reconnect() {
    this.#wake.abort();
    this.#wake = new AbortController();
    this.#backoff.failures = 0;
    this.#link?.reconnect();
    this.#detour?.reconnect();
    this.#read();
  }

  drop() {
    this.#link?.drop();
    this.#detour?.drop();
  }

  look() {
    if (this.#detour) {
      this.#link.reconnect();
      this.#detour.look();
    } else if (this.#up) this.#read();
    else this.reconnect();
  }

  /** Where to listen: what the page says, and for the rest what the relay says of the job. */
  async #configuration() {
    const { relay, settings, signal } = this.#core;
    const own = settings.pusher === true ? {} : settings.pusher;
    let told = {};
    if (relay.exists && (!own.channel || !(own.client || own.key))) {
      const status = await relay.status(signal);
      if (!status.pusher) {
        const why = "it lacks that sink, or the token hides something";
        throw new DeltafanError("no_pusher", `the relay tells of no Pusher for this job: ${why}`);
      }
      told = status.pusher;
    }
    const channels = own.channel ? [own.channel] : (told.channels ?? []);
    const channel = own.client ? channels[0] : (channels.find((name) => !isEncrypted(name)) ?? channels[0]);
    if (!channel) throw new DeltafanError("no_pusher", "this job has no Pusher channel");
    if (isEncrypted(channel) && !own.client) {
      throw new DeltafanError(
        "encrypted_channel",
        `${channel} is encrypted: pass pusher: {client}, an instance of pusher-js/with-encryption`,
      );
    }
    const place = own.key ? own : told;
    return {
      client: own.client,
      channel,
      key: place.key,
      cluster: place.cluster,
      host: place.host,
      port: place.port,
      tls: place.tls ?? true,
      authUrl: own.authUrl ?? told.auth_url ?? (relay.exists ? "/pusher/auth" : null),
      authHeaders: own.authHeaders,
    };
  }

  #hooks() {
    return {
      up: () => this.#joined(),
      down: () => this.#down(),
      event: (name, data) => this.#receive(name, data),
      error: (error) => this.#trouble(error),
    };
  }

  #joined() {
    this.#up = true;
    clearTimeout(this.#askTimer);
    this.#detour?.stop();
    this.#detour = null;
    this.#core.setConnected(true);
    if (this.#core.relay.exists) this.#read();
    else this.#core.waits();
  }

  #down() {
    this.#up = false;
    if (this.#detour !== null) return; // `connected` is about that now
    this.#core.setConnected(false);
    this.#standIn();
  }

  /** Until Pusher is back the relay's own stream goes on from our cursor: what waits here for a reading comes with it. */
  #standIn() {
    const core = this.#core;
    if (!core.relay.exists || core.finished || this.#detour !== null) return;
    clearTimeout(this.#askTimer);
    this.#reading?.abort();
    this.#reading = null;
    this.#forget();
    this.#watchHoles();
    this.#detour = new SseFollower(core, Math.max(SSE_SILENCE, core.settings.silence ?? 0));
    this.#detour.run().catch((error) => core.fail(asError(error, "internal", "following failed")));
  }

  /** Where there is a relay, no refusal of Pusher's is the end. Gives what `tolerate` does. */
  #trouble(error) {
    const core = this.#core;
    if (!error.fatal || !core.relay.exists) return core.tolerate(error);
    this.#link.stop();
    core.report(passing(error.code, error.message, { status: error.status, cause: error }));
    return null;
  }

  /** One message of the channel. What is not an event of this job, or comes from another client, is not for us. */
  #receive(name, data) {
    if (this.#core.finished) return;
    const value = typeof data === "string" ? parseJson(data) : data;
    if (value === null || typeof value !== "object" || value.type !== name || value.job !== this.#core.settings.jobId)
      return;
    const id = parseId(value.id);
    if (id === null) return;
    this.#askLater();
    const { last } = this.#core.order;
    if (last !== null && compare(id, last) <= 0) return;
    const cut = value.parts !== undefined || name === "chunk";
    const event = readEvent(cut ? this.#parts.add(value) : value, this.#core.settings.jobId);
    if (event !== null && (!cut || event.id === value.id)) this.#offer(event);
    if (!this.#core.finished) this.#watchHoles(cut);
  }

  #offer(received) {
    const { verdict, event } = this.#place(received);
    if (verdict === "hole") this.#hold(received);
    if (verdict !== "next") return;
    this.#accept(event);
    this.#drain();
  }

  /** An attempt that continues needs all of the one before, and its ids cannot tell: the log can. */
  #place(event) {
    const placed = this.#core.order.place(event);
    const begins = event.type === "meta" && event.continued && parseId(event.id).seq === 0;
    const unsure = begins && this.#core.relay.exists;
    return placed.verdict === "next" && unsure ? { verdict: "hole", event } : placed;
  }

  #accept(event) {
    const core = this.#core;
    if (event.type === "done" && !core.relay.exists) this.#checkLength(event);
    core.accept(event);
  }

  /** Without the log, the end of an attempt that another continues may have been lost unseen. */
  #checkLength(done) {
    const core = this.#core;
    if (core.isWhole && core.lastId !== null && codePoints(core.output.texts[0]) !== done.text_length) core.gap(done);
  }

  #hold(event) {
    const known = this.#held.get(event.id);
    if (known !== undefined && compareFirst(known, event) <= 0) return;
    this.#held.set(event.id, event);
    this.#heldSize += sizeOf(event) - (known ? sizeOf(known) : 0);
    if (this.#held.size <= MAX_HELD && this.#heldSize <= MAX_HELD_SIZE) return;
    if (this.#core.relay.exists) {
      this.#forget();
      this.#read();
    } else {
      this.#giveUp();
    }
  }

  #forget() {
    this.#held.clear();
    this.#heldSize = 0;
    this.#parts.clear();
  }

  /** Apply what no longer has to wait. */
  #drain() {
    const core = this.#core;
    for (let moved = true; moved && this.#held.size;) {
      moved = false;
      for (const held of [...this.#held.values()].sort((a, b) => compare(parseId(a.id), parseId(b.id)))) {
        const { verdict, event } = this.#place(held);
        if (verdict === "hole") continue;
        this.#held.delete(held.id);
        this.#heldSize -= sizeOf(held);
        if (verdict === "old") continue;
        this.#accept(event);
        if (core.finished) return;
        moved = true;
      }
    }
    this.#parts.prune(core.order.last);
  }

  /** While something is missing: wait a little for it, then read it from the log, or do without. */
  #watchHoles(progress = false) {
    const missing = this.#held.size > 0 || !this.#parts.isEmpty;
    if (!missing || progress) {
      clearTimeout(this.#holeTimer);
      this.#holeTimer = null;
    }
    if (!missing || this.#holeTimer !== null || this.#reading) return;
    const alone = !this.#core.relay.exists;
    this.#holeTimer = setTimeout(
      () => {
        this.#holeTimer = null;
        if (alone) this.#giveUp();
        else this.#read();
      },
      alone ? HOLE_WAIT_ALONE : HOLE_WAIT,
    );
  }

  #giveUp() {
    const core = this.#core;
    const [next] = [...this.#held.values()].sort(compareFirst);
    if (next === undefined) return;
    core.gap(next);
    this.#held.delete(next.id);
    this.#heldSize -= sizeOf(next);
    this.#accept(next);
    if (!core.finished) this.#drain();
    if (!core.finished) this.#watchHoles();
  }

  /** Silence says nothing: the job may have ended while nobody told us, or Pusher may never let us in. */
  #askLater() {
    const core = this.#core;
    clearTimeout(this.#askTimer);
    if (core.finished || !core.relay.exists || this.#detour !== null) return;
    const silence = core.settings.silence ?? PUSHER_SILENCE;
    if (this.#up) this.#askTimer = setTimeout(() => this.#read(), silence);
    else this.#askTimer = setTimeout(() => this.#standIn(), JOIN_TIME);
  }

  /** Read from the log what we lack. One reading at a time, and none while the relay's own stream stands in. */
  async #read() {
    const core = this.#core;
    if (!core.relay.exists || core.finished || this.#detour !== null) return;
    this.#again = true;
    if (this.#reading !== null) return;
    this.#reading = new AbortController();
    const { signal } = this.#reading;
    clearTimeout(this.#holeTimer);
    this.#holeTimer = null;
    while (this.#again && !signal.aborted) {
      this.#again = false;
      try {
        await this.#merge(await core.relay.snapshot(core.lastId, signal));
        this.#backoff.failures = 0;
      } catch (error) {
        const asked = core.tolerate(error);
        this.#again = true;
        if (!signal.aborted) await pause(asked ?? this.#backoff.next(), signal, this.#wake.signal);
      }
    }
    if (signal.aborted) return;
    this.#reading = null;
    this.#watchHoles();
    this.#askLater();
  }

  async #merge(answer) {
    const core = this.#core;
    if (answer.reset !== undefined) {
      this.#forget();
      core.reset(answer.reset);
    }
    for (const value of answer.events) {
      const received = readEvent(value, core.settings.jobId);
      if (received === null) throw passing("bad_answer", "the relay's snapshot holds what is no event of this job");
      const { verdict, event } = core.order.place(received);
      if (verdict === "old") continue;
      if (verdict === "hole") core.gap(event);
      core.accept(event);
      if (core.finished) return;
    }
    if (FINAL_STATES.has(answer.state)) return core.over(await core.relay.status(core.signal));
    if (answer.state === "running" && core.state === "connecting") core.setState("running");
    core.waits();
    this.#drain();
  }
}

const isEncrypted = (channel) => channel.startsWith("private-encrypted-");
const sizeOf = (event) =>
  kindOf(event) === null ? JSON.stringify(event).length : event[payloadOf(event)].length + 100;

function compareFirst(a, b) {
  return compare(parseId(a.first ?? a.id), parseId(b.first ?? b.id));
}

function codePoints(text) {
  let count = 0;
  for (const _ of text) count += 1;
  return count;
}

// ------------------------------------------------------------------------------------------------- Pusher's protocol

const CONNECT_TIME = 15_000; // from opening the socket to being subscribed
const PING_AFTER = 30_000; // silence before we ask, unless the server wants it sooner
const PONG_TIME = 10_000;
const NEVER_AGAIN = [4000, 4099]; // close codes: reconnecting would not help
const AT_ONCE = [4200, 4299]; // reconnect immediately
const within = (code, [low, high]) => code >= low && code <= high;

/** One channel over the platform's WebSocket: the Pusher protocol, version 7, as far as a listener needs it. */
class PusherLink {
  #config;
  #hooks;
  #core;
  #WebSocket;
  #stop = new AbortController();
  #wake = new AbortController();
  #backoff = new Backoff();
  #asked = 0; // milliseconds that a server wants us to stay away
  #end = () => {}; // ends the present connection

  constructor(config, hooks, core) {
    this.#config = config;
    this.#hooks = hooks;
    this.#core = core;
    this.#WebSocket = core.settings.WebSocket ?? globalThis.WebSocket;
    this.#backoff.base = 1_000;
    if (typeof this.#WebSocket !== "function") {
      throw new DeltafanError("no_websocket", "this platform has no WebSocket (Node has one from 22 on): pass one");
    }
    if (!config.key || !(config.cluster || config.host)) {
      throw new DeltafanError("no_pusher", "pusher: needs a key, and a cluster or a host");
    }
    if (needsAuth(config.channel) && !isReachable(core.relay.url(config.authUrl ?? ""))) {
      throw new DeltafanError(
        "no_pusher",
        `pusher: ${config.channel} needs an authUrl, a whole one outside of a browser`,
      );
    }
  }

  async start() {
    while (!this.#stop.signal.aborted) {
      const code = await this.#connection();
      this.#hooks.down();
      if (this.#stop.signal.aborted) return;
      const atOnce = within(code, AT_ONCE) && this.#backoff.failures === 0;
      const wait = Math.max(this.#backoff.next(), this.#asked);
      this.#asked = 0;
      if (!atOnce) await pause(wait, this.#stop.signal, this.#wake.signal);
    }
  }

  stop() {
    this.#stop.abort();
    this.#end(null);
  }

  drop() {
    this.#end(null);
  }

  reconnect() {
    this.#backoff.failures = 0;
    this.#end(AT_ONCE[0]);
    this.#wake.abort();
    this.#wake = new AbortController();
  }

  #url() {
    const { key, cluster, host, port, tls } = this.#config;
    const place = `${host ?? `ws-${cluster}.pusher.com`}${port ? `:${port}` : ""}`;
    const query = new URLSearchParams({ protocol: "7", client: "deltafan-js", version: VERSION, flash: "false" });
    return `${tls ? "wss" : "ws"}://${place}/app/${encodeURIComponent(key)}?${query}`;
  }

  /** One connection, from its opening to its end. Gives the close code, or null. */
  #connection() {
    return new Promise((resolve) => {
      const closed = new AbortController(); // also stops an authorisation that is under way
      const socket = new this.#WebSocket(this.#url());
      let timer;
      let subscribed = false;
      let activity = PING_AFTER;

      const end = (code) => {
        if (closed.signal.aborted) return;
        clearTimeout(timer);
        socket.onopen = socket.onmessage = socket.onclose = null;
        socket.onerror = () => {}; // closing may fail, too
        closed.abort();
        try {
          socket.close();
        } catch {
          // it is not open: then it is what we want
        }
        this.#end = () => {};
        resolve(code);
      };
      const later = (milliseconds, act) => {
        clearTimeout(timer);
        timer = setTimeout(act, milliseconds);
      };
      const send = (event, data) => socket.readyState === 1 && socket.send(JSON.stringify({ event, data }));
      const listen = () =>
        later(activity, () => {
          send("pusher:ping", {});
          later(PONG_TIME, () => end(null));
        });
      const refused = (code, message) => {
        this.#hooks.error(new DeltafanError("pusher", `Pusher refused: ${message}`, { status: code }));
        end(code);
      };

      const handlers = {
        "pusher:connection_established": async ({ socket_id, activity_timeout }) => {
          if (activity_timeout > 0) activity = Math.min(activity, activity_timeout * 1000);
          try {
            send("pusher:subscribe", {
              channel: this.#config.channel,
              ...(await this.#authorize(socket_id, closed.signal)),
            });
          } catch (error) {
            if (closed.signal.aborted) return;
            this.#asked = this.#hooks.error(error) ?? 0;
            end(null);
          }
        },
        "pusher_internal:subscription_succeeded": (_, channel) => {
          if (channel !== this.#config.channel) return;
          subscribed = true;
          this.#backoff.failures = 0;
          listen();
          this.#hooks.up();
        },
        "pusher:subscription_error": ({ error, status }, channel) => {
          if (channel === this.#config.channel) refused(status ?? null, error ?? "the subscription failed");
        },
        "pusher:error": ({ code = null, message }) => {
          if (within(code, NEVER_AGAIN) || (code === null && !subscribed)) refused(code, message);
          else if (code >= 4100 && code <= 4299) end(code);
        },
        "pusher:ping": () => send("pusher:pong", {}),
      };

      socket.onmessage = ({ data }) => {
        const message = parseJson(String(data));
        if (message === null || typeof message.event !== "string") return;
        if (subscribed) listen();
        const { event, channel } = message;
        if (Object.hasOwn(handlers, event)) {
          const told = typeof message.data === "string" ? parseJson(message.data) : message.data;
          handlers[event](told ?? {}, channel);
        } else if (channel === this.#config.channel && !/^(pusher|client-)/.test(event)) {
          this.#hooks.event(event, message.data);
        }
      };
      socket.onerror = () => end(null);
      socket.onclose = ({ code, reason }) => {
        if (within(code, NEVER_AGAIN)) refused(code, reason || `close code ${code}`);
        else end(code);
      };
      this.#end = end;
      later(CONNECT_TIME, () => end(null));
    });
  }

  /** Public channels are open to all; for the others the relay (or the page's own server) signs. */
  async #authorize(socketId, signal) {
    const { channel, authUrl, authHeaders } = this.#config;
    if (!needsAuth(channel)) return {};
    const { relay } = this.#core;
    const headers =
      typeof authHeaders === "function" ? await unlessAborted(Promise.resolve(authHeaders()), signal) : authHeaders;
    const answer = await relay.json(relay.url(authUrl), {
      method: "POST",
      body: new URLSearchParams({ socket_id: socketId, channel_name: channel }),
      headers,
      signal,
    });
    if (typeof answer?.auth !== "string") throw passing("bad_answer", "the answer of authUrl has no `auth`");
    return { auth: answer.auth, ...(answer.channel_data === undefined ? {} : { channel_data: answer.channel_data }) };
  }
}

const needsAuth = (channel) => /^(private|presence)-/.test(channel);

/** One channel of a pusher-js instance that the page has made. */
class PusherJsLink {
  #client;
  #name;
  #hooks;
  #channel;
  #ours; // whether we subscribed, and so unsubscribe
  #timer;
  #backoff = new Backoff();

  constructor({ client, channel }, hooks) {
    if (typeof client.subscribe !== "function" || typeof client.connection?.bind !== "function") {
      throw new DeltafanError("no_pusher", "pusher.client: must be an instance of pusher-js");
    }
    this.#client = client;
    this.#name = channel;
    this.#hooks = hooks;
  }

  start() {
    this.#ours = !this.#client.channel(this.#name);
    this.#client.connection.bind("state_change", this.#stateChange);
    this.#subscribe();
    if (this.#channel.subscribed) this.#hooks.up();
  }

  stop() {
    clearTimeout(this.#timer);
    this.#client.connection.unbind("state_change", this.#stateChange);
    this.#channel.unbind_global(this.#event);
    if (this.#ours) this.#client.unsubscribe(this.#name);
    this.#ours = false;
  }

  // The page's own instance minds its connection itself.
  drop() {}

  reconnect() {}

  #subscribe() {
    this.#channel = this.#client.subscribe(this.#name);
    this.#channel.bind_global(this.#event);
  }

  #stateChange = ({ current }) => {
    if (current !== "connected") this.#hooks.down();
  };

  #event = (name, data) => {
    if (name === "pusher:subscription_succeeded") {
      this.#backoff.failures = 0;
      this.#hooks.up();
    } else if (name === "pusher:subscription_error") this.#refused(data);
    else if (!/^(pusher|client-)/.test(name)) this.#hooks.event(name, data);
  };

  /** pusher-js does not try again by itself. */
  #refused({ error, status } = {}) {
    const fatal = status >= 400 && status < 500;
    this.#hooks.error(
      new DeltafanError("pusher", `the subscription of ${this.#name} failed: ${error ?? status}`, { status, fatal }),
    );
    this.#hooks.down();
    if (fatal) return;
    this.#timer = setTimeout(() => {
      this.#channel.unbind_global(this.#event);
      this.#client.unsubscribe(this.#name);
      this.#subscribe();
    }, this.#backoff.next());
  }
}

// ----------------------------------------------------------------------------------------------------------- public

/** The handle of one job's stream. Made by `follow`. */
export class Stream {
  #core;

  constructor(core) {
    this.#core = core;
  }

  get jobId() {
    return this.#core.settings.jobId;
  }

  get text() {
    return this.#core.output.texts[0];
  }

  get choices() {
    return Array.from(this.#core.output.texts, (text) => text ?? "");
  }

  get reasoning() {
    return this.#core.output.reasoning;
  }

  get refusal() {
    return this.#core.output.refusal;
  }

  get toolCalls() {
    return this.#core.output.toolCalls;
  }

  get toolResults() {
    return this.#core.output.toolResults;
  }

  get usage() {
    return this.#core.output.usage;
  }

  get state() {
    return this.#core.state;
  }

  get connected() {
    return this.#core.connected;
  }

  get error() {
    return this.#core.error;
  }

  get attempt() {
    return this.#core.output.attempt;
  }

  get lastId() {
    return this.#core.lastId;
  }

  get finishReason() {
    return this.#core.output.done?.finish_reason ?? null;
  }

  get gaps() {
    return this.#core.gaps;
  }

  get done() {
    return this.#core.promise;
  }

  async cancel() {
    const { relay } = this.#core;
    if (!relay.exists) throw new DeltafanError("no_relay", "cancelling needs a relay");
    const backoff = new Backoff();
    const signal = new AbortController().signal; // a cancel is not undone by close()
    for (let tries = 1; ; tries++) {
      try {
        return await relay.json(relay.job("/cancel"), { method: "POST", signal });
      } catch (error) {
        const final = error instanceof DeltafanError && error.fatal;
        if (final || tries === CANCEL_TRIES) throw asError(error, "network", "the relay cannot be reached");
        await pause(error.retryAfter ?? backoff.next());
      }
    }
  }

  close() {
    this.#core.close();
  }

  [Symbol.asyncIterator]() {
    return this.#core.iterate();
  }
}

function asError(error, code, message) {
  if (error instanceof DeltafanError) return error;
  return new DeltafanError(code, `${message}: ${error?.message ?? error}`, { cause: error });
}

export function follow(jobId, options = {}) {
  const core = new Core(checked(jobId, options));
  const { pusher, silence } = core.settings;
  const follower = pusher ? new PusherFollower(core) : new SseFollower(core, silence ?? SSE_SILENCE);
  const surroundings = new Surroundings({
    onWake: () => follower.reconnect(),
    onOffline: () => follower.drop(),
    onVisible: () => follower.look(),
  });
  core.signal.addEventListener("abort", () => surroundings.close());
  follower.run().catch((error) => core.fail(asError(error, "internal", "following failed")));
  return new Stream(core);
}

/** Outside of a page there is nothing that a path could belong to. */
function isReachable(url) {
  return /^https?:\/\//i.test(url) || (globalThis.location !== undefined && url !== null);
}

/** Options with their defaults. A wrong one is told at once, by name. */
function checked(jobId, options) {
  const { relay = "", token = null, pusher = null, after = null, silence = null } = options;
  const fetch = options.fetch ?? globalThis.fetch?.bind(globalThis);
  if (typeof jobId !== "string" || jobId === "") throw new TypeError("jobId: must be the id of a job");
  if (relay !== null && typeof relay !== "string") throw new TypeError("relay: must be a URL, or null for none");
  if (token !== null && typeof token !== "string" && typeof token !== "function") {
    throw new TypeError("token: must be a string or a function that gives one");
  }
  if (after !== null && !parseId(after)) throw new TypeError("after: must be the id of an event, such as 1-5");
  if (silence !== null && !(silence > 0 && silence < 2 ** 31)) throw new TypeError("silence: must be milliseconds");
  if (relay === null && !pusher) throw new TypeError("relay: needed, unless `pusher` says where to listen");
  if (pusher !== null && pusher !== false && pusher !== true && typeof pusher !== "object") {
    throw new TypeError("pusher: must be true, or an object that says where to listen");
  }
  if (typeof fetch !== "function") throw new TypeError("fetch: this platform has none; pass one");
  if (relay !== null && !isReachable(relay)) throw new TypeError("relay: must be a whole URL outside of a browser");
  for (const name of ["onText", "onEvent", "onDone", "onError", "onState"]) {
    if (options[name] != null && typeof options[name] !== "function")
      throw new TypeError(`${name}: must be a function`);
  }
  return { ...options, jobId, relay: relay?.replace(/\/+$/, "") ?? null, token, pusher, after, silence, fetch };
}
