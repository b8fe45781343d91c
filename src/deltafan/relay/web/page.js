// The chat: sends prompts, follows their jobs over SSE and over Pusher at once, and keeps the conversation in this tab.
// The running job's id stands in the address, so that a reload, or another tab, goes on with it.

import { follow } from "../client.js";
import { BASE, Refused, ask } from "./api.js";
import { addControls } from "./controls.js";
import { $, stickToEnd } from "./dom.js";
import { Inspector } from "./inspector.js";
import { Network } from "./network.js";
import * as store from "./store.js";
import { TurnView } from "./turn.js";

const { needsKey, heartbeat, pusher: pusherIsOn } = document.documentElement.dataset;
const SILENCE = Number(heartbeat) * 3 * 1000; // a relay that lives sends a heartbeat in a third of that
const QUIET = 5_000; // without an event: whoever waits for an answer wants to hear of that
const ENDED = new Set(["done", "failed", "cancelled", "expired", "closed"]);
const WORDS = { connecting: "connecting", running: "streaming", retrying: "trying again", cancelled: "stopped", closed: "idle" };

const network = new Network();
const inspector = new Inspector();
let saved = store.loadTurns(); // the whole conversation
let turns = []; // what is shown of it: all, or the turns up to the one that the address names; or another's job
let views = [];
let current = null; // the job that is followed, and how far that is; see `watch`

const jobInAddress = () => new URLSearchParams(location.hash.slice(1)).get("job");

// -------------------------------------------------------------------------------------------------------------- state

function tellState(words, state = words) {
  if ($("state").textContent !== words) $("state").textContent = words;
  $("state").dataset.state = state;
}

function refreshState() {
  const stream = current && inspector.lanes[current.source].stream;
  if (!stream) return tellState(network.isCut ? "offline" : "idle", network.isCut ? "lost" : "idle");
  const { state, connected } = stream;
  if (stream.error?.code === "job_gone") tellState("lost", "failed");
  else if (ENDED.has(state)) tellState(WORDS[state] ?? state, state);
  else if (network.isCut) tellState("offline", "lost");
  else if (!connected && current.hasConnected) tellState("reconnecting", "lost");
  else if (current.stopping) tellState("stopping", "retrying");
  else if (current.isOrphan) tellState("waiting for another worker", "lost");
  else if (current.isQuiet && state === "running") tellState("waiting for news", "quiet");
  else tellState(WORDS[state] ?? state, state);
}

function notice(message) {
  $("notice").textContent = message;
  $("notice").hidden = !message;
}

function showButtons() {
  const runs = current !== null && !current.isOver;
  $("stop").hidden = !runs;
  $("stop").disabled = current?.stopping ?? false;
  $("send").hidden = runs;
  $("new").hidden = runs || turns.length === 0;
  views.forEach((view, place) => (view.canRegenerate = !runs && place === views.length - 1));
}

// ------------------------------------------------------------------------------------------------------- conversation

function addView(turn) {
  const view = new TurnView(turn, { onRegenerate: regenerate });
  views.push(view);
  $("turns").append(view.element);
  $("welcome").hidden = true;
  return view;
}

function showTurns(shown) {
  turns = shown;
  views = [];
  $("turns").replaceChildren();
  $("welcome").hidden = turns.length > 0;
  for (const turn of turns) addView(turn).restore();
}

/** What the model is asked: the turns before, and the prompt. */
function messages(before, prompt) {
  const said = before.flatMap((turn) => [
    { role: "user", content: turn.prompt },
    ...(turn.text ? [{ role: "assistant", content: turn.text }] : []),
  ]);
  return [...said.filter((message) => message.content), { role: "user", content: prompt }];
}

async function send(prompt, before) {
  notice("");
  $("send").disabled = true;
  tellState("sending", "connecting");
  const model = $("model").value.trim();
  const sentAt = Date.now();
  try {
    const body = { model, messages: messages(before, prompt) };
    if (pusherIsOn === "yes") body.sinks = ["pusher"];
    const { id, token, pusher } = await ask("v1/jobs", { method: "POST", body, key: $("key").value.trim(), fetch: network.fetch });
    store.saveModel(model);
    for (const view of views.splice(before.length)) view.element.remove();
    const turn = { prompt, model, job: id, token: token ?? null, pusher: Boolean(pusher), sentAt };
    turns = saved = [...before, turn];
    store.saveTurns(saved);
    history.pushState(null, "", `#job=${id}`);
    watch(turn, addView(turn), true);
    showEnd(true);
    return true;
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    notice(error.message);
    refreshState();
    return false;
  } finally {
    $("send").disabled = false;
  }
}

async function regenerate() {
  const last = turns.at(-1);
  if (last?.prompt && (current === null || current.isOver)) await send(last.prompt, turns.slice(0, -1));
}

function newChat() {
  endWatching();
  saved = [];
  store.saveTurns(saved);
  showTurns([]);
  history.pushState(null, "", location.pathname);
  notice("");
  showButtons();
  refreshState();
  $("prompt").focus();
}

// ---------------------------------------------------------------------------------------------------------- following

/** The job's own token first; when it has expired, the key that made the job. A relay without keys wants neither. */
function tokenOf(turn) {
  const key = () => $("key").value.trim();
  if (needsKey !== "yes") return null;
  return ({ reason }) => (reason === "initial" && turn.token ? turn.token : key() || turn.token);
}

/** Heartbeats say that the relay lives, not that anything reaches it: Redis may be away. */
function heard(watched) {
  clearTimeout(watched.quietTimer);
  watched.quietTimer = setTimeout(() => quiet(watched, true), QUIET);
  quiet(watched, false);
}

function quiet(watched, isQuiet) {
  if (current !== watched || watched.isQuiet === isQuiet) return;
  watched.isQuiet = isQuiet;
  refreshState();
}

function endWatching() {
  clearTimeout(current?.quietTimer);
  current = null;
  for (const lane of Object.values(inspector.lanes)) {
    lane.stream?.close();
    lane.stream = null;
  }
}

function watch(turn, view, live) {
  endWatching();
  const source = document.querySelector("input[name=source]:checked").value;
  const watched = { turn, view, source, stopping: false, isOver: false, hasConnected: false, isOrphan: false, isQuiet: false };
  current = watched;
  view.busy = true;
  view.restart();
  inspector.begin(turn, live, (milliseconds) => {
    turn.firstToken = milliseconds;
    store.saveTurns(saved);
  });
  followOver("sse", watched, {});
  if (turn.pusher) followOver("pusher", watched, { pusher: true, WebSocket: network.WebSocket });
  else inspector.lanes.pusher.say(pusherIsOn === "yes" ? "not asked for by this job" : "off");
  if (!inspector.lanes[source].stream) watched.source = "sse";
  read(watched);
  showButtons();
  refreshState();
}

function followOver(name, watched, options) {
  const lane = inspector.lanes[name];
  const isCurrent = () => current === watched;
  lane.stream = follow(watched.turn.job, {
    relay: BASE,
    token: tokenOf(watched.turn),
    silence: SILENCE,
    fetch: network.fetch,
    onEvent(event) {
      if (!isCurrent()) return;
      lane.take(event);
      if (name === "sse") inspector.measure(event);
      if (name === watched.source) heard(watched);
      if (watched.isOrphan && event.type === "meta") {
        watched.isOrphan = false;
        refreshState();
      }
    },
    onState(state, connected) {
      if (!isCurrent()) return;
      lane.connection(state, connected);
      if (name === watched.source) {
        watched.hasConnected ||= connected;
        refreshState();
      }
      inspector.compare();
    },
    onError(error) {
      if (isCurrent() && error.fatal) lane.say(error.message, "failed");
    },
    ...options,
  });
}

/** Show one way's events as the answer, from the first on. */
async function read(watched) {
  const { source, view } = watched;
  const { stream } = inspector.lanes[source];
  const isCurrent = () => current === watched && watched.source === source;
  let failure = null;
  try {
    for await (const event of stream) {
      if (!isCurrent()) return;
      view.take(event);
    }
  } catch (error) {
    failure = error;
  }
  if (isCurrent()) over(watched, stream, failure);
}

function over(watched, stream, failure) {
  const { turn, view } = watched;
  watched.isOver = true;
  view.answer.stop();
  clearTimeout(watched.quietTimer);
  if (failure === null || failure.code === "job_gone") {
    Object.assign(turn, { text: stream.text, state: stream.state });
    store.saveTurns(saved);
  } else if (turn.text) {
    view.restore(); // the relay no longer has the events, but this tab has the answer
  }
  if (failure !== null) view.answer.note("bad", sentence(failure.message));
  view.busy = false;
  showButtons();
  refreshState();
}

const sentence = (text) => `${text[0].toUpperCase()}${text.slice(1)}${/[.!?]$/.test(text) ? "" : "."}`;

async function stop() {
  if (current === null || current.isOver || current.stopping) return;
  const watched = current;
  watched.stopping = true;
  showButtons();
  refreshState();
  try {
    await inspector.lanes.sse.stream.cancel();
  } catch (error) {
    watched.stopping = false; // it still runs
    notice(sentence(error.message));
    showButtons();
    refreshState();
  }
}

/** Shows the job that the address names: one of this tab's conversation, or any other by itself. */
async function open() {
  const job = jobInAddress();
  if (job !== null && job === current?.turn.job) return;
  endWatching();
  notice("");
  const place = job === null ? saved.length - 1 : saved.findIndex((turn) => turn.job === job);
  if (place >= 0) {
    showTurns(saved.slice(0, place + 1));
    if (job === null) history.replaceState(null, "", `#job=${turns.at(-1).job}`);
    watch(turns.at(-1), views.at(-1), false);
  } else {
    showTurns([]);
    if (job !== null) await openAlone(job);
  }
  showButtons();
  refreshState();
}

/** A job that another tab or program has sent. */
async function openAlone(job) {
  try {
    const found = await ask(`v1/jobs/${encodeURIComponent(job)}`, { key: $("key").value.trim(), fetch: network.fetch });
    if (jobInAddress() !== job) return;
    const turn = { job, model: found.model, pusher: Boolean(found.pusher), sentAt: found.created };
    showTurns([turn]);
    watch(turn, views[0], false);
  } catch (error) {
    if (!(error instanceof Refused)) throw error;
    notice(error.message);
  }
}

// ------------------------------------------------------------------------------------------------------------- inputs

function fitPrompt() {
  $("prompt").style.height = "auto";
  $("prompt").style.height = `${Math.min($("prompt").scrollHeight + 2, window.innerHeight * 0.4)}px`;
}

function addSwitch(selector, name, target) {
  const buttons = document.querySelectorAll(`${selector} [data-${name}]`);
  for (const button of buttons) {
    button.addEventListener("click", () => {
      target(button.dataset[name]);
      for (const other of buttons) other.setAttribute("aria-pressed", String(other === button));
    });
  }
}

$("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  if ((current !== null && !current.isOver) || $("send").disabled) return;
  const prompt = $("prompt").value;
  const known = turns.filter((turn) => turn.prompt); // a job of others' is no part of a conversation
  if (await send(prompt, known.length === turns.length ? turns : [])) {
    $("prompt").value = "";
    fitPrompt();
  }
});
$("prompt").addEventListener("input", fitPrompt);
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) $("form").requestSubmit();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !event.isComposing) stop();
});
$("stop").addEventListener("click", stop);
$("new").addEventListener("click", newChat);
for (const button of document.querySelectorAll("#examples button")) {
  button.addEventListener("click", () => {
    $("prompt").value = button.textContent;
    fitPrompt();
    $("prompt").focus();
  });
}
for (const radio of document.querySelectorAll("input[name=source]")) {
  radio.disabled = radio.value === "pusher" && pusherIsOn !== "yes";
  radio.checked = radio.value === (pusherIsOn === "yes" ? store.loadSource() : "sse");
  radio.addEventListener("change", () => {
    store.saveSource(radio.value);
    if (!current || !inspector.lanes[radio.value].stream) return;
    current.source = radio.value;
    current.isOver = false;
    current.view.restart();
    read(current);
    refreshState();
  });
}
$("pusher").querySelector(".lane-off").hidden = pusherIsOn === "yes";
$("key-row").hidden = needsKey !== "yes";
$("key").value = store.loadKey();
$("key").addEventListener("change", () => {
  store.saveKey($("key").value.trim());
  if (jobInAddress() !== null && (current === null || current.isOver)) {
    current = null; // the refused job, with the new key
    open();
  }
});
$("model").value ||= store.loadModel();
addControls({
  network,
  runningJob: () => (current && !current.isOver ? current.turn.job : null),
  changed: refreshState,
  killed() {
    if (current) current.isOrphan = true;
    refreshState();
  },
  note: (kind, text) => (current ? current.view.answer.note(kind, text) : notice(text)),
});
addSwitch(".bar", "show", (view) => (document.body.dataset.view = view));
addSwitch("#inspector", "lane", (lane) => ($("lanes").dataset.lane = lane));
const showEnd = stickToEnd($("transcript"), $("turns"));
window.addEventListener("popstate", open);
open();
