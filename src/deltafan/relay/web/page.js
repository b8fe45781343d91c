// Enqueues a prompt and follows its job. The job's id stands in the address, so that a reload goes on with it.

import { follow, problem, Refused } from "./follow.js";
import { View } from "./view.js";

const $ = (id) => document.getElementById(id);
const { needsKey, heartbeat } = document.documentElement.dataset;
const SILENCE = Number(heartbeat) * 3 * 1000; // a relay that lives sends a heartbeat in a third of that
const view = new View();

let current = null; // { id, following: AbortController }

function headers() {
  const key = $("key").value.trim();
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function enqueue(prompt, model) {
  const response = await fetch("v1/jobs", {
    method: "POST",
    headers: { ...headers(), "Content-Type": "application/json" },
    body: JSON.stringify({ model, prompt }),
  });
  if (!response.ok) throw new Error(await problem(response));
  return (await response.json()).id;
}

async function watch(id) {
  current?.following.abort();
  const job = { id, following: new AbortController() };
  current = job;
  view.begin(sessionStorage.getItem(`prompt:${id}`));
  view.fact("job", id);
  $("stop").hidden = false;
  $("stop").disabled = false;
  try {
    await follow(`v1/jobs/${encodeURIComponent(id)}/events`, {
      headers: headers(),
      silence: SILENCE,
      signal: job.following.signal,
      onEvent: (event) => current === job && view.take(event),
      onReset: () => current === job && view.clear(),
      onConnection: (connected) => current === job && view.connection(connected),
    });
  } catch (error) {
    if (current !== job) return;
    if (!(error instanceof Refused)) throw error;
    view.state("idle");
    view.notice(error.message);
  }
  if (current !== job) return;
  view.connection(true);
  $("stop").hidden = true;
}

async function stop() {
  $("stop").disabled = true;
  const url = `v1/jobs/${encodeURIComponent(current.id)}/cancel`;
  try {
    const response = await fetch(url, { method: "POST", headers: headers() });
    if (!response.ok) throw new Error(await problem(response));
  } catch (error) {
    view.notice(error.message);
    $("stop").disabled = false; // it still runs
  }
}

async function send() {
  const prompt = $("prompt").value;
  $("send").disabled = true;
  $("notice").hidden = true;
  try {
    const id = await enqueue(prompt, $("model").value.trim());
    sessionStorage.setItem(`prompt:${id}`, prompt);
    localStorage.setItem("model", $("model").value.trim());
    $("prompt").value = "";
    location.hash = `job=${id}`; // the listener below follows it
  } catch (error) {
    view.notice(error.message);
  } finally {
    $("send").disabled = false;
  }
}

function watchAddress() {
  const id = new URLSearchParams(location.hash.slice(1)).get("job");
  if (id && id !== current?.id) watch(id);
}

$("key-row").hidden = needsKey !== "yes";
$("key").value = sessionStorage.getItem("key") ?? "";
$("key").addEventListener("change", () => {
  sessionStorage.setItem("key", $("key").value.trim());
  if (current === null || $("notice").hidden) return;
  current = null; // the refused job, with the new key
  watchAddress();
});
$("model").value ||= localStorage.getItem("model") ?? "";
$("form").addEventListener("submit", (event) => {
  event.preventDefault();
  send();
});
$("prompt").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.metaKey || event.ctrlKey)) $("form").requestSubmit();
});
$("stop").addEventListener("click", stop);
window.addEventListener("hashchange", watchAddress);
watchAddress();
