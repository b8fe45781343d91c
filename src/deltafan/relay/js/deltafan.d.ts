// Types of deltafan.js.

/** The version of this package, equal to that of the Python package. */
export const VERSION: string;

/** `<attempt>-<seq>`: the run of the job, from 1, and the event's place in it, from 0. */
export type EventId = `${number}-${number}`;

export type FinishReason =
  | "stop"
  | "length"
  | "tool_calls"
  | "max_iterations"
  | "content_filter"
  | "cancelled"
  | "expired"
  | "error";

interface Common {
  v: 1;
  job: string;
  id: EventId;
  /** Of a merged event: the id of the first event of its run. */
  first?: EventId;
  /** The token that you follow with does not show this event's contents: they are empty. */
  hidden?: true;
}

/** Begins every attempt. Comes again in mid-attempt when another model takes over. */
export interface MetaEvent extends Common {
  type: "meta";
  attempt: number;
  model: string;
  provider: string;
  /** When the attempt was claimed, Unix time in milliseconds. */
  created: number;
  metadata: Record<string, unknown>;
  /** All output before it is void. */
  restart?: boolean;
  /** What follows goes on from the text already streamed. */
  continued?: boolean;
}

export interface TextDeltaEvent extends Common {
  type: "text_delta";
  text: string;
  /** Which of several choices; absent for the first. */
  choice?: number;
}

export interface ReasoningDeltaEvent extends Common {
  type: "reasoning_delta";
  text: string;
  choice?: number;
}

export interface RefusalDeltaEvent extends Common {
  type: "refusal_delta";
  text: string;
  choice?: number;
}

/** A piece of a tool call: id and name first, then fragments of the arguments. */
export interface ToolCallDeltaEvent extends Common {
  type: "tool_call_delta";
  index: number;
  arguments: string;
  call_id?: string | null;
  name?: string | null;
  choice?: number;
}

/** What a tool that the worker ran gave back. */
export interface ToolResultEvent extends Common {
  type: "tool_result";
  call_id: string;
  name: string;
  result?: unknown;
  error?: string | null;
}

/** `null` is unknown, which 0 is not. */
export interface Usage {
  prompt_tokens: number | null;
  completion_tokens: number | null;
  total_tokens: number | null;
  cached_tokens: number | null;
  reasoning_tokens: number | null;
  cost_usd: number | null;
  source: "reported" | "estimated" | "unknown";
}

export interface UsageEvent extends Common, Usage {
  type: "usage";
}

/** Why an attempt, or the job, failed. */
export interface JobError {
  code: string;
  message: string;
  /** The model provider's HTTP status, where there was one. */
  status?: number | null;
  retryable?: boolean;
  /** Another attempt follows. */
  will_retry?: boolean;
}

export interface ErrorEvent extends Common, JobError {
  type: "error";
  retryable: boolean;
  will_retry: boolean;
}

/** Milliseconds, where known. */
export interface Timings {
  queued?: number;
  first_token?: number;
  total?: number;
  [name: string]: unknown;
}

/** The last event of a job. */
export interface DoneEvent extends Common {
  type: "done";
  finish_reason: FinishReason;
  /** Unicode code points of the final text. */
  text_length: number;
  timings: Timings;
}

/** The relay's log does not reach our cursor: forget everything, it comes anew. Not part of the log: it has no id. */
export interface ResetEvent {
  v: 1;
  type: "reset";
  job: string;
  reason: string | null;
}

/** An event of the job's log. A later version may bring types that are not here: ignore them. */
export type LogEvent =
  | MetaEvent
  | TextDeltaEvent
  | ReasoningDeltaEvent
  | RefusalDeltaEvent
  | ToolCallDeltaEvent
  | ToolResultEvent
  | UsageEvent
  | ErrorEvent
  | DoneEvent;

/** What `onEvent` and iteration give. */
export type StreamEvent = LogEvent | ResetEvent;

/** A tool call as its pieces have built it so far. */
export interface ToolCall {
  readonly index: number;
  readonly id: string | null;
  readonly name: string;
  /** JSON text, complete when the job has ended. */
  readonly arguments: string;
}

/**
 * - `connecting`: nothing is known of the job yet
 * - `queued`: it waits for a worker
 * - `running`
 * - `retrying`: an attempt failed, another follows
 * - `done`, `failed`, `cancelled`, `expired`: it has ended
 * - `closed`: you closed the stream, or it cannot go on (then `error` says why); the job itself may run on
 */
export type StreamState =
  "connecting" | "queued" | "running" | "retrying" | "done" | "failed" | "cancelled" | "expired" | "closed";

/** Events that are lost for good: those after `after` (null: from the start) and before `before`. */
export interface Gap {
  after: EventId | null;
  before: EventId;
}

/** What a job that has ended amounts to. */
export interface StreamResult {
  jobId: string;
  state: "done" | "failed" | "cancelled" | "expired";
  finishReason: FinishReason | null;
  text: string;
  /** The texts of all choices; the first is `text`. */
  choices: string[];
  reasoning: string;
  refusal: string;
  toolCalls: readonly ToolCall[];
  toolResults: readonly ToolResultEvent[];
  usage: Usage | null;
  /** Why the job failed. */
  error: JobError | null;
  timings: Timings;
  gaps: readonly Gap[];
  lastId: EventId | null;
}

/**
 * What went wrong with the following, not with the job.
 *
 * `code` is the relay's own (`not_found`, `log_expired`, `token_expired`, `token_invalid`, `unauthorized`, `forbidden`, …;
 * `http_<status>` where it gave none), or one of ours:
 *
 * | code | |
 * |---|---|
 * | `closed` | `close()` was called before the end |
 * | `job_gone` | Redis has lost the job while it was followed: nobody can end it, and no more comes |
 * | `gap` | events are lost for good (`stream.gaps`); the text goes on without them |
 * | `hole`, `bad_frame`, `bad_answer` | the connection is not sound; it is made anew |
 * | `network` | a request had no answer; told once an outage, and tried again. Of `cancel()`: several tries had none |
 * | `token` | the token function failed; it is asked again |
 * | `no_relay` | `cancel()` without a relay |
 * | `no_pusher` | the job, or the option, does not say where to listen |
 * | `no_websocket` | the platform has none, and none was passed |
 * | `encrypted_channel` | needs pusher-js: pass `pusher: {client}` |
 * | `pusher` | Pusher refused the connection or the subscription; `status` is its code. With a relay not `fatal` |
 * | `internal` | a bug of this module |
 */
export class DeltafanError extends Error {
  constructor(
    code: string,
    message: string,
    more?: { status?: number | null; fatal?: boolean; cause?: unknown; retryAfter?: number | null },
  );
  readonly name: "DeltafanError";
  readonly code: string;
  /** An HTTP status, or a code of Pusher's. */
  readonly status: number | null;
  /** Whether the following ended by it. */
  readonly fatal: boolean;
  /** Milliseconds that a server asked to wait. */
  readonly retryAfter: number | null;
}

export interface TokenRequest {
  jobId: string;
  /** `initial`, or why the relay refused the last one: `token_expired`, `token_invalid`, `unauthorized`. */
  reason: string;
}

/** The constructor of a WebSocket: the platform's, or that of the `ws` package. */
export type WebSocketConstructor = new (url: string) => {
  readyState: number;
  send(data: string): void;
  close(): void;
  onopen: any;
  onmessage: any;
  onclose: any;
  onerror: any;
};

/** What is needed of a pusher-js instance. */
export interface PusherJs {
  subscribe(channel: string): any;
  unsubscribe(channel: string): void;
  channel(name: string): any;
  connection: {
    bind(name: string, listener: (data: any) => void): unknown;
    unbind(name: string, listener: (data: any) => void): unknown;
  };
}

/** Where to listen. What is not said is asked of the relay. */
export interface PusherOptions {
  /** Your own instance of pusher-js, used instead of the built-in client. Encrypted channels need it. */
  client?: PusherJs;
  /** One of the job's channels; by default the first that this client can read. */
  channel?: string;
  key?: string;
  /** Of pusher.com; or `host` (and `port`) of a server that speaks its protocol. */
  cluster?: string | null;
  host?: string | null;
  port?: number | null;
  /** Default true. */
  tls?: boolean;
  /** Who signs subscriptions of private and presence channels. Default: the relay's `/pusher/auth`. */
  authUrl?: string;
  /** Sent to `authUrl` besides the token. */
  authHeaders?: Record<string, string> | (() => Record<string, string> | Promise<Record<string, string>>);
}

export interface FollowOptions {
  /** The relay's URL. Default "": the page's own origin. null: none, with `pusher` only; then losses cannot be repaired. */
  relay?: string | null;
  /**
   * Sent as `Authorization: Bearer`. A function is called for the first token, and again when the relay refuses one (once
   * a request); when it throws it is asked again later; when it gives nothing the stream ends with `unauthorized`.
   */
  token?: string | ((request: TokenRequest) => string | Promise<string>) | null;
  /**
   * Listen over Pusher instead of SSE. `true`: the relay says where. While Pusher is down, or when it refuses, the relay's
   * SSE stands in.
   */
  pusher?: boolean | PusherOptions | null;
  /** Begin after this event. `text` then holds only what comes after it. */
  after?: EventId | null;
  /**
   * SSE: milliseconds without a byte after which a connection counts as dead; default 45,000, three heartbeats.
   * Pusher: milliseconds without an event, though it is connected, after which the relay is asked; default 15,000.
   */
  silence?: number | null;
  /** The text has changed: all of it, and what was added ("" when it was cleared by a restart). */
  onText?(text: string, added: string): void;
  /** Each event, once and in order, as it comes. */
  onEvent?(event: StreamEvent): void;
  /** The job has ended, well or not: see `result.state`. */
  onDone?(result: StreamResult): void;
  /**
   * Following failed for good (`error.fatal`), or met something worth knowing, such as a relay that cannot be reached
   * (`network`, at the first request of an outage). Failures of the job come with `onDone`.
   */
  onError?(error: DeltafanError): void;
  onState?(state: StreamState, connected: boolean): void;
  fetch?: typeof fetch;
  WebSocket?: WebSocketConstructor;
}

/**
 * One job's stream. Its properties are always up to date.
 *
 * Iterating gives every event from the start, then live, and ends after `done` (or `close()`). An iterator that begins late
 * gets what came before with adjacent deltas merged, and so does one that falls far behind. Any number may iterate.
 */
export class Stream implements AsyncIterable<StreamEvent> {
  private constructor();
  readonly jobId: string;
  readonly text: string;
  readonly choices: string[];
  readonly reasoning: string;
  readonly refusal: string;
  readonly toolCalls: readonly ToolCall[];
  readonly toolResults: readonly ToolResultEvent[];
  readonly usage: Usage | null;
  readonly state: StreamState;
  /** Whether events can come in right now. */
  readonly connected: boolean;
  /** Why the job failed, or why the following did. */
  readonly error: JobError | DeltafanError | null;
  /** The run of the job, from 1; 0 before the first. */
  readonly attempt: number;
  readonly lastId: EventId | null;
  readonly finishReason: FinishReason | null;
  /** What is lost for good. Only without a relay. */
  readonly gaps: readonly Gap[];
  /** Resolves when the job has ended, well or not. Rejects with a `DeltafanError` when the following ended before. */
  readonly done: Promise<StreamResult>;
  /** Stop the job. Resolves when the relay has taken it; the stream then ends with `cancelled`, unless it was done before. */
  cancel(): Promise<{ id: string; state: string; cancelled: boolean }>;
  /** Stop following. Nothing is left: no timer, no socket, no listener. The job runs on. */
  close(): void;
  [Symbol.asyncIterator](): AsyncIterableIterator<StreamEvent>;
}

/**
 * Follow a job.
 *
 * @throws {TypeError} an option is wrong
 */
export function follow(jobId: string, options?: FollowOptions): Stream;

/** Turns text, cut anywhere, into server-sent events. */
export class SseParser {
  /** Milliseconds, when the server said how long to wait before a new connection. */
  retry: number | null;
  feed(text: string): { type: string; data: string }[];
}
