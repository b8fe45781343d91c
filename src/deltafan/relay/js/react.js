// useStream: a job's stream as React state.

import { useCallback, useEffect, useMemo, useRef, useSyncExternalStore } from "react";
import { DeltafanError, follow } from "./deltafan.js";

const EMPTY = Object.freeze({
  text: "",
  reasoning: "",
  toolCalls: Object.freeze([]),
  state: "connecting",
  usage: null,
  error: null,
  connected: false,
});
const IDLE = Object.freeze({ ...EMPTY, state: "idle" });

/** Follows while it has listeners, and tells them at most once a frame. */
class Store {
  snapshot = EMPTY;
  #begin;
  #stream = null;
  #listeners = new Set();
  #unschedule = null;

  /** @param begin starts following, with the callbacks given to it */
  constructor(begin) {
    this.#begin = begin;
  }

  subscribe = (listener) => {
    this.#listeners.add(listener);
    if (this.#stream === null) {
      const changed = () => this.#changed();
      this.#stream = this.#begin({
        onText: changed,
        onEvent: changed,
        onError: changed,
        onState: changed,
        onDone: changed,
      });
    }
    return () => {
      this.#listeners.delete(listener);
      if (this.#listeners.size === 0) this.#close();
    };
  };

  cancel() {
    if (this.#stream === null) return Promise.reject(new DeltafanError("closed", "there is no stream to cancel"));
    return this.#stream.cancel();
  }

  #close() {
    const stream = this.#stream;
    this.#stream = null;
    this.#unschedule?.();
    this.#unschedule = null;
    stream.close();
  }

  #changed() {
    if (this.#stream === null || this.#unschedule !== null) return;
    this.#unschedule = nextFrame(() => {
      this.#unschedule = null;
      const { text, reasoning, toolCalls, state, usage, error, connected } = this.#stream;
      this.snapshot = { text, reasoning, toolCalls, state, usage, error, connected };
      for (const listener of this.#listeners) listener();
    });
  }
}

/** Hidden pages have no frames, and servers neither. */
function nextFrame(act) {
  if (typeof requestAnimationFrame === "function" && !globalThis.document?.hidden) {
    const frame = requestAnimationFrame(act);
    return () => cancelAnimationFrame(frame);
  }
  const timer = setTimeout(act, 16);
  return () => clearTimeout(timer);
}

const nothing = () => () => {};

/** What of an option decides which stream it is: an object may be made anew with each rendering. */
function keyOf(pusher) {
  if (!pusher || pusher === true) return String(Boolean(pusher));
  const { key, cluster, host, port, tls, channel, authUrl } = pusher;
  return JSON.stringify([key, cluster, host, port, tls, channel, authUrl]);
}

export function useStream(jobId, options = {}) {
  const latest = useRef(options);
  useEffect(() => {
    latest.current = options; // callbacks and tokens may change without a new stream
  });
  const { relay = "", pusher = null } = options;
  const key = keyOf(pusher);
  const client = pusher?.client;

  const store = useMemo(() => {
    if (!jobId) return null;
    return new Store((changed) => {
      const begun = latest.current;
      const wrapped = {};
      for (const name of Object.keys(changed)) {
        wrapped[name] = (...values) => {
          changed[name]();
          latest.current[name]?.(...values);
        };
      }
      const token = typeof begun.token === "function" ? (info) => latest.current.token(info) : (begun.token ?? null);
      return follow(jobId, { ...begun, relay, token, ...wrapped });
    });
    // eslint-disable-next-line react-hooks/exhaustive-deps -- the rest of `options` is read when it is used
  }, [jobId, relay, key, client]);

  const now = useCallback(() => (store === null ? IDLE : store.snapshot), [store]);
  const atFirst = useCallback(() => (store === null ? IDLE : EMPTY), [store]);
  const snapshot = useSyncExternalStore(store === null ? nothing : store.subscribe, now, atFirst);
  const cancel = useCallback(
    () => (store === null ? Promise.reject(new DeltafanError("closed", "there is no job")) : store.cancel()),
    [store],
  );
  return useMemo(() => ({ ...snapshot, cancel }), [snapshot, cancel]);
}
