// The dashboard: live numbers from /v1/stats, and the dead letters, to be run again or dropped.

import { SseParser } from "../client.js";
import { Refused, ask, send } from "./api.js";
import { $, count, dollars, duration, h } from "./dom.js";
import { Plot } from "./plot.js";
import { loadKey, saveKey } from "./store.js";

const AGAIN = 2000; // milliseconds until the next try after the connection broke
const LOOK_AGAIN = 10; // samples after which the dead letters are looked at whatever their number
const SILENCE = 10_000; // a relay that lives sends a sample every second
const STATES = { running: "streaming" };

const rate = (value) => (value >= 100 ? count(Math.round(value)) : String(Math.round(value * 10) / 10));
const plots = {
  speed: new Plot("Throughput", [{ name: "tokens/s", kind: "first" }, { name: "events/s", kind: "second" }], rate),
  jobs: new Plot("Jobs", [{ name: "waiting", kind: "first" }, { name: "running", kind: "second" }], rate),
  latency: new Plot("Latency, median of a minute", [{ name: "first token", kind: "first" }, { name: "total", kind: "second" }], duration),
};
let following = 0; // counts the loops: a new key ends the one before
let connection = null;
let queues = ["default"];
let deadCount = null; // of the dead letters shown; null when they have to be looked at again
let samplesSeen = 0;
let deaths = []; // [cell, time] of the dead letters shown

const key = () => $("key").value.trim();

function tell(words, state) {
  if ($("state").textContent !== words) $("state").textContent = words;
  $("state").dataset.state = state;
}

function notice(message) {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

// ------------------------------------------------------------------------------------------------------------ numbers

async function follow() {
  following += 1;
  const own = following;
  connection?.abort();
  for (;;) {
    connection = new AbortController();
    try {
      await samples(connection);
    } catch (error) {
      if (own !== following) return;
      if (error instanceof Refused) notice(error.message);
      if (error instanceof Refused && error.status >= 400 && error.status < 500) return tell("refused", "failed");
    }
    if (own === following) tell("reconnecting", "lost");
    await new Promise((resolve) => setTimeout(resolve, AGAIN));
    if (own !== following) return;
  }
}

async function samples(connection) {
  const { signal } = connection;
  const late = () => connection.abort();
  let timer = setTimeout(late, SILENCE);
  try {
    const response = await send("v1/stats", { key: key(), signal, accept: "text/event-stream" });
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const parser = new SseParser();
    notice("");
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      clearTimeout(timer);
      timer = setTimeout(late, SILENCE);
      const frame = parser.feed(value).at(-1);
      if (frame) show(JSON.parse(frame.data));
    }
  } finally {
    clearTimeout(timer);
    connection.abort();
  }
}

function show(sample) {
  tell("live", "live");
  const sum = (pick) => sample.queues.reduce((total, queue) => total + pick(queue), 0);
  const waitingOf = (queue) => Object.values(queue.waiting).reduce((total, number) => total + number, 0);
  const waiting = sum(waitingOf);
  const running = sum((queue) => queue.running);
  const dead = sum((queue) => queue.dead);
  const { rates, latency, streams, workers } = sample;
  $("waiting").textContent = count(waiting);
  $("waiting-more").textContent = `${count(sum((queue) => queue.delayed))} delayed`;
  $("running").textContent = count(running);
  $("workers").textContent = `on ${count(workers.length)} ${workers.length === 1 ? "worker" : "workers"}`;
  $("dead-count").textContent = count(dead);
  $("streams").textContent = count(streams.open);
  $("streams-more").textContent = `open; ${count(streams.cut)} too slow so far`;
  plots.speed.add(rates.tokens_per_second, rates.events_per_second);
  plots.jobs.add(waiting, running);
  plots.latency.add(latency.first_token.p50, latency.total.p50);
  patch($("queues"), sample.queues.map(queueRow));
  patch($("jobs"), sample.jobs.map((job) => jobRow(job, sample.time)));
  $("no-jobs").hidden = sample.jobs.length > 0;
  queues = sample.queues.map((queue) => queue.queue);
  tellDeaths();
  samplesSeen += 1;
  // One may go and another come between two samples: the number alone does not tell.
  if (dead !== deadCount || samplesSeen % LOOK_AGAIN === 0) {
    deadCount = dead;
    loadDead();
  }
}

/** Makes the rows of a table these. A row that was there stays, and only what has changed in it: focus is kept. */
function patch(body, rows) {
  const known = new Map([...body.rows].map((row) => [row.dataset.key, row]));
  const kept = rows.map((row) => {
    const old = known.get(row.dataset.key);
    if (!old) return row;
    known.delete(row.dataset.key);
    [...row.cells].forEach((cell, place) => {
      if (!cell.isEqualNode(old.cells[place])) old.cells[place].replaceWith(cell.cloneNode(true));
    });
    return old;
  });
  for (const row of known.values()) row.remove();
  kept.forEach((row, place) => {
    if (body.rows[place] !== row) body.insertBefore(row, body.rows[place] ?? null);
  });
}

const number = (value, shown = count(value)) => h("td", { class: value === 0 ? "number zero" : "number" }, shown);

function queueRow({ queue, waiting, delayed, running, dead }) {
  const counts = [waiting.takeover, waiting.high, waiting.normal, waiting.low, delayed, running, dead];
  return h("tr", { "data-key": queue }, h("td", {}, queue), ...counts.map((value) => number(value)));
}

function jobRow(job, now) {
  const time = (value) => h("td", { class: "number" }, value === undefined || value === null ? "–" : duration(value));
  const { completion_tokens: tokens, cost_usd: cost } = job;
  return h(
    "tr",
    { "data-key": job.id },
    h("td", {}, h("a", { href: `./#job=${encodeURIComponent(job.id)}`, title: job.id }, shortened(job.id))),
    h("td", {}, h("span", { class: "chip", "data-state": job.state, title: job.error }, STATES[job.state] ?? job.state)),
    h("td", {}, job.model),
    h("td", { class: "number" }, age(now - job.created)),
    time(job.timings.first_token),
    time(job.timings.total),
    h("td", { class: "number" }, String(job.attempt)),
    h("td", { class: "number" }, tokens === null ? "–" : count(tokens)),
    h("td", { class: "number" }, cost === null ? "–" : dollars(cost)),
  );
}

/** The end of an id tells jobs apart. */
const shortened = (id) => (id.length > 14 ? `…${id.slice(-10)}` : id);

function age(milliseconds) {
  const seconds = Math.max(0, Math.round(milliseconds / 1000));
  if (seconds < 100) return `${seconds} s`;
  if (seconds < 6000) return `${Math.round(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.round(seconds / 3600)} h` : `${Math.round(seconds / 86_400)} d`;
}

// -------------------------------------------------------------------------------------------------------- dead letters

async function loadDead() {
  try {
    const lists = await Promise.all(queues.map((queue) => ask(`v1/dead?queue=${encodeURIComponent(queue)}`, { key: key() })));
    const letters = lists.flatMap((list) => list.dead).sort((a, b) => b.died - a.died);
    deaths = [];
    $("dead").replaceChildren(...letters.map(deadRow));
    tellDeaths();
    $("no-dead").hidden = letters.length > 0;
  } catch (error) {
    notice(error.message);
  }
}

function tellDeaths() {
  for (const [cell, time] of deaths) cell.textContent = `${age(Date.now() - time)} ago`;
}

function deadRow(letter) {
  const last = letter.errors.at(-1)?.message;
  const row = h("tr", {});
  const died = h("td", { class: "number" });
  deaths.push([died, letter.died]);
  const action = (label, run) => {
    const button = h("button", { type: "button", "aria-label": `${label} ${letter.id}` }, label);
    button.addEventListener("click", async () => {
      for (const other of row.querySelectorAll("button")) other.disabled = true;
      try {
        await run();
        notice("");
      } catch (error) {
        notice(error.message);
      }
      await loadDead();
      deadCount = null;
    });
    return button;
  };
  const place = `v1/dead/${encodeURIComponent(letter.id)}`;
  const query = `?queue=${encodeURIComponent(letter.queue)}`;
  row.append(
    h("td", {}, h("a", { href: `./#job=${encodeURIComponent(letter.id)}`, title: letter.id }, shortened(letter.id))),
    h("td", {}, letter.queue),
    h("td", {}, letter.model ?? "–"),
    died,
    h("td", { class: "number" }, String(letter.errors.length)),
    h("td", { class: "reason" }, last ? `${letter.reason}: ${last}` : letter.reason),
    h(
      "td",
      { class: "actions" },
      action("Retry", () => ask(`${place}/retry${query}`, { method: "POST", key: key() })),
      action("Drop", () => ask(`${place}${query}`, { method: "DELETE", key: key() })),
    ),
  );
  return row;
}

// ------------------------------------------------------------------------------------------------------------- inputs

$("plots").append(...Object.values(plots).map((plot) => plot.element));
$("key-row").hidden = document.documentElement.dataset.needsKey !== "yes";
$("key").value = loadKey();
$("key").addEventListener("change", () => {
  saveKey(key());
  deadCount = null;
  notice("");
  follow();
});
follow();
