// Shows what a job's events amount to. Text is only ever put into text nodes.

const $ = (id) => document.getElementById(id);

/** The page's view of one job. */
export class View {
  #calls = [];
  #facts = new Map();

  begin(prompt) {
    this.clear();
    this.#facts.clear();
    this.#drawFacts();
    $("job").hidden = false;
    $("notice").hidden = true;
    $("prompt-shown").hidden = !prompt;
    $("prompt-shown").textContent = prompt ?? "";
    this.state("queued");
  }

  /** Forgets the output: a new attempt begins it anew. */
  clear() {
    for (const id of ["text", "reasoning", "refusal", "error"]) $(id).replaceChildren();
    for (const id of ["reasoning-box", "refusal", "error", "tools"]) $(id).hidden = true;
    $("tools").replaceChildren();
    this.#calls = [];
  }

  state(state) {
    $("state").textContent = state;
    $("state").dataset.state = state;
  }

  connection(connected) {
    $("connection").hidden = connected;
    $("connection").textContent = "reconnecting…";
  }

  notice(message) {
    $("notice").textContent = message;
    $("notice").hidden = false;
  }

  fact(name, value) {
    if (value === null || value === undefined || value === "") return;
    this.#facts.set(name, String(value));
    this.#drawFacts();
  }

  take(event) {
    const atEnd = window.innerHeight + window.scrollY >= document.documentElement.scrollHeight - 40;
    this.#apply(event);
    if (atEnd) window.scrollTo(0, document.documentElement.scrollHeight);
  }

  #apply(event) {
    switch (event.type) {
      case "meta":
        if (!event.continued) this.clear();
        $("error").hidden = true;
        this.state("running");
        this.fact("model", event.model);
        if (event.attempt > 1) {
          this.fact("attempt", `${event.attempt}${event.continued ? " (continued)" : " (started again)"}`);
        }
        break;
      case "text_delta":
        if (!event.choice) append($("text"), event.text);
        break;
      case "reasoning_delta":
        if (!event.choice) append($("reasoning"), event.text);
        $("reasoning-box").hidden = false;
        break;
      case "refusal_delta":
        if (!event.choice) append($("refusal"), event.text);
        $("refusal").hidden = false;
        break;
      case "tool_call_delta":
        if (!event.choice) this.#toolCall(event);
        break;
      case "tool_result":
        this.#toolResult(event);
        break;
      case "usage":
        this.#usage(event);
        break;
      case "error":
        $("error").textContent = `${event.message || event.code}${event.will_retry ? " (trying again)" : ""}`;
        $("error").hidden = false;
        if (event.will_retry) this.state("delayed");
        break;
      case "done":
        this.#done(event);
        break;
    }
  }

  #toolCall(event) {
    let call = this.#calls.findLast((c) => c.index === event.index);
    if (!call || (event.call_id && call.id && event.call_id !== call.id)) {
      call = { index: event.index, id: null, name: document.createElement("strong"), code: element("code") };
      const item = document.createElement("li");
      item.append(call.name, call.code);
      $("tools").append(item);
      $("tools").hidden = false;
      this.#calls.push(call);
    }
    call.id ??= event.call_id ?? null;
    if (event.name) call.name.textContent = event.name;
    append(call.code, event.arguments);
  }

  #toolResult(event) {
    const call = this.#calls.find((c) => c.id === event.call_id);
    const result = element("code");
    result.textContent = `→ ${event.error ?? (typeof event.result === "string" ? event.result : JSON.stringify(event.result))}`;
    if (call) call.code.after(result);
  }

  #usage(event) {
    if (event.prompt_tokens !== null && event.completion_tokens !== null) {
      const about = event.source === "estimated" ? "about " : "";
      this.fact("tokens", `${about}${event.prompt_tokens} in, ${event.completion_tokens} out`);
    }
    if (event.cost_usd) this.fact("cost", `$${event.cost_usd.toPrecision(2)}`);
  }

  #done(event) {
    const ends = { cancelled: "cancelled", expired: "expired", error: "failed" };
    this.state(ends[event.finish_reason] ?? "done");
    if (event.finish_reason !== "stop") this.fact("finish", event.finish_reason);
    const names = { queued: "queued", first_token: "first token", total: "total" };
    for (const [key, name] of Object.entries(names)) {
      const value = event.timings?.[key];
      if (value !== undefined) this.fact(name, value < 1000 ? `${Math.round(value)} ms` : `${(value / 1000).toFixed(1)} s`);
    }
  }

  #drawFacts() {
    const rows = [...this.#facts].map(([name, value]) => {
      const row = element("div");
      row.append(Object.assign(element("dt"), { textContent: name }), Object.assign(element("dd"), { textContent: value }));
      return row;
    });
    $("facts").replaceChildren(...rows);
  }
}

const element = (name) => document.createElement(name);

function append(parent, text) {
  if (parent.lastChild?.nodeType === Node.TEXT_NODE) parent.lastChild.appendData(text);
  else parent.append(text);
}
