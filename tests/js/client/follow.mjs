// Follows a job as a page would, says all that happens as lines of JSON, and judges it at the end.
//
// Its argument is JSON: {"job", "options", "check": false to judge nothing, "iterate": "live" or "late", "patience":
// milliseconds, beyond which no timer fires: what is to come at once must come without}. A token of {"function": ["a",
// "b"]} is a token function that gives one after the other. Commands come on standard input: {"do": "close"},
// {"do": "cancel"}, {"do": "iterate"}; "online" and "offline" are a window's events, "sleep" moves the clock on by an hour.

import { createInterface } from "node:readline";
import { follow } from "../../../src/deltafan/relay/js/deltafan.js";
import { checkOrder, checkWhole, textOf } from "./oracle.mjs";

const { job, options, check = true, iterate = "live", patience = null } = JSON.parse(process.argv[2]);
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
const flat = (error) => ({ code: error.code, status: error.status, fatal: error.fatal, message: error.message });

if (options.token?.function) {
  const tokens = options.token.function;
  options.token = (info) => {
    say({ asked_token: info });
    return tokens.shift();
  };
}
if (options.pusher?.client) {
  const { default: Pusher } = await import("pusher-js");
  options.pusher.client = new Pusher(options.pusher.client.key, options.pusher.client.options);
}

if (patience !== null) {
  const { setTimeout } = globalThis;
  globalThis.setTimeout = (act, wait, ...more) => setTimeout(wait > patience ? () => {} : act, wait, ...more);
}

const page = new EventTarget(); // what of a window matters
globalThis.addEventListener = page.addEventListener.bind(page);
globalThis.removeEventListener = page.removeEventListener.bind(page);

let events = [];
let text = "";
let after = options.after ?? null; // a reset makes it void
const stream = follow(job, {
  ...options,
  onEvent(event) {
    if (event.type === "reset") [events, after] = [[], null];
    else events.push(event);
    say({ event });
  },
  onText(whole, added) {
    text = added === "" ? "" : text + added;
    if (whole !== text) say({ wrong: `onText: ${whole} is not ${text}` });
  },
  onState: (state, connected) => say({ state, connected }),
  onError: (error) => say({ error: flat(error) }),
  onDone: (result) => say({ done: result }),
});

async function iterated(name) {
  say({ iterating: name });
  const found = [];
  try {
    for await (const event of stream) {
      if (event.type === "reset") found.length = 0;
      else found.push(event);
    }
    if (check && stream.gaps.length === 0) {
      checkOrder(found, name === "late" ? null : after);
      if (textOf(found) !== stream.text) throw new Error("iterated another text");
    }
    say({ iterated: found.length, by: name });
  } catch (error) {
    say({ iteration_failed: flat(error), by: name });
  }
}

const commands = createInterface({ input: process.stdin });
commands.on("line", async (line) => {
  const command = JSON.parse(line).do;
  if (command === "close") stream.close();
  if (command === "iterate") iterated("late");
  if (command === "online" || command === "offline") page.dispatchEvent(new Event(command));
  if (command === "sleep") {
    const now = Date.now.bind(Date);
    Date.now = () => now() + 3_600_000;
  }
  if (command === "cancel")
    stream.cancel().then(
      (answer) => say({ cancel: answer }),
      (error) => say({ cancel: flat(error) }),
    );
});

const iteration = iterate === "live" ? iterated("live") : null;
try {
  const result = await stream.done;
  await iteration;
  if (iterate === "late") await iterated("late");
  if (check) checkWhole(events, result.text, after);
  if (text !== result.text && !options.after) throw new Error("onText told another text");
  say({ whole: result.text, events: events.length, gaps: result.gaps });
} catch (error) {
  await iteration;
  say({ ended_by: flat(error) });
} finally {
  options.pusher?.client?.disconnect?.();
  commands.close();
  process.stdin.destroy();
}
// Nothing of ours may keep the process alive from here on: the test waits for its end.
