// One answer, as its events build it: text, reasoning, tool calls, refusal, and what went wrong, in words.

import { Markdown } from "./markdown.js";
import { h, onFrame } from "./dom.js";

/** What an error means for a reader; the relay's own message follows it. */
const ERRORS = {
  authentication: "The worker's key was refused by the provider.",
  permission: "The worker's key may not use this model.",
  quota: "The provider's quota is used up.",
  rate_limit: "The provider asks to slow down.",
  server_error: "The provider failed.",
  connection: "The connection to the provider broke.",
  timeout_first_token: "The provider took too long to begin.",
  timeout_stall: "The provider fell silent.",
  timeout_total: "The answer took longer than it may.",
  malformed_stream: "The provider sent something that is no stream.",
  context_length: "The conversation is too long for this model.",
  content_filter: "The provider's content filter stopped the answer.",
  model_not_found: "The provider does not know this model.",
  bad_request: "The provider did not accept the request.",
  worker_lost: "The workers that ran this job were lost too often.",
};

const ENDS = {
  length: "The answer was cut off at the model's limit of length.",
  content_filter: "The answer was stopped by the provider's content filter.",
  cancelled: "You stopped this answer.",
  expired: "This prompt waited longer than it may, and expired.",
};

export class Answer {
  element = h("div", { class: "answer" });
  text = "";
  #body = h("div", { class: "text" });
  #markdown = new Markdown(this.#body);
  #pending = ""; // text that is not drawn yet
  #reasoning = h("p", {});
  #thinking = h("summary", {}, "Reasoning");
  #reasoningBox = h("details", { class: "reasoning", hidden: true }, this.#thinking, this.#reasoning);
  #refusal = h("p", { class: "refusal", hidden: true });
  #tools = h("ol", { class: "tools", hidden: true, "aria-label": "Tool calls" });
  #notes = h("div", { class: "notes" });
  #ending = h("div", { class: "notes" });
  #calls = [];
  #draw = onFrame(() => this.flush());

  constructor() {
    this.element.append(this.#reasoningBox, this.#body, this.#refusal, this.#tools, this.#notes, this.#ending);
  }

  /** A line about the answer rather than of it. `kind`: "info", "warn" or "bad". */
  note(kind, text) {
    this.#notes.append(h("p", { class: "note", "data-kind": kind }, text));
  }

  clear() {
    this.text = this.#pending = "";
    this.#markdown.clear();
    this.#body.classList.remove("writing");
    for (const part of [this.#reasoning, this.#refusal, this.#tools, this.#ending]) part.replaceChildren();
    for (const part of [this.#reasoningBox, this.#refusal, this.#tools]) part.hidden = true;
    this.#calls = [];
  }

  /** Nothing more comes, whether or not it has ended. */
  stop() {
    this.flush();
    this.#body.classList.remove("writing");
    this.#thinking.textContent = "Reasoning";
  }

  /** An answer that has ended, from its text alone. */
  show(text) {
    this.clear();
    this.#say(text);
    this.flush();
  }

  take(event) {
    if (event.choice) return; // of several choices the first is shown
    switch (event.type) {
      case "reset":
        this.clear();
        this.#notes.replaceChildren();
        break;
      case "meta":
        this.#begin(event);
        break;
      case "text_delta":
        this.#say(event.text);
        break;
      case "reasoning_delta":
        this.#reasoningBox.hidden = false;
        this.#thinking.textContent = this.text ? "Reasoning" : "Reasoning…";
        append(this.#reasoning, event.text);
        break;
      case "refusal_delta":
        this.#refusal.hidden = false;
        append(this.#refusal, event.text);
        break;
      case "tool_call_delta":
        this.#toolCall(event);
        break;
      case "tool_result":
        this.#toolResult(event);
        break;
      case "error":
        this.#error(event);
        break;
      case "done":
        this.#done(event);
        break;
    }
  }

  flush() {
    if (this.#pending) this.#markdown.append(this.#pending);
    this.#pending = "";
  }

  #say(text) {
    if (!this.text) this.#thinking.textContent = "Reasoning";
    this.text += text;
    this.#pending += text;
    this.#body.classList.add("writing");
    this.#draw();
  }

  #begin(meta) {
    this.#ending.replaceChildren();
    if (meta.continued) this.note("info", `Attempt ${meta.attempt} goes on from the text so far.`);
    else {
      this.clear();
      if (meta.attempt > 1) this.note("info", `Attempt ${meta.attempt}: the answer begins anew.`);
    }
  }

  #error({ code, message, will_retry: again }) {
    const known = ERRORS[code];
    const words = known ? `${known}${message ? ` “${message}”` : ""}` : message || code;
    if (again) this.note("warn", `${words} Trying again.`);
    else if (code !== "cancelled" && code !== "expired") this.#end("bad", words);
  }

  #done({ finish_reason: reason }) {
    this.stop();
    if (ENDS[reason]) this.#end(reason === "cancelled" ? "info" : "warn", ENDS[reason]);
    else if (reason === "stop" && !this.text && this.#refusal.hidden && !this.#calls.length) this.#end("info", "The model said nothing.");
  }

  #end(kind, text) {
    this.#body.classList.remove("writing");
    this.#ending.append(h("p", { class: "note", "data-kind": kind }, text));
  }

  /** A piece that brings another id begins a call, also under an index that an earlier turn of the tools had. */
  #toolCall(piece) {
    let call = this.#calls.findLast((known) => known.index === piece.index);
    if (!call || (piece.call_id && call.id && piece.call_id !== call.id)) {
      call = { index: piece.index, id: null, name: h("b", {}), code: h("code", {}), result: h("code", { class: "result", hidden: true }) };
      this.#tools.append(h("li", {}, h("span", {}, "Calls "), call.name, call.code, call.result));
      this.#tools.hidden = false;
      this.#calls.push(call);
    }
    call.id ??= piece.call_id ?? null;
    if (piece.name) call.name.textContent = piece.name;
    append(call.code, piece.arguments);
  }

  #toolResult({ call_id: id, result, error }) {
    const call = this.#calls.find((known) => known.id === id);
    if (!call) return;
    call.result.hidden = false;
    call.result.classList.toggle("failed", Boolean(error));
    call.result.textContent = error ?? (typeof result === "string" ? result : JSON.stringify(result));
  }
}

function append(parent, text) {
  if (parent.lastChild?.nodeType === Node.TEXT_NODE) parent.lastChild.appendData(text);
  else parent.append(text);
}
