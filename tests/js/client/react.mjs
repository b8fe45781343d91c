// Renders a component with useStream, in StrictMode, and says each rendering as a line of JSON. Runs beside a packed
// `deltafan`. Commands on standard input: {"job": "…"} renders with another job, {"do": "unmount"}, {"do": "cancel"}.

import { createInterface } from "node:readline";
import { createElement, StrictMode } from "react";
import { create } from "react-test-renderer";
import { useStream } from "deltafan/react";

const { job, relay } = JSON.parse(process.argv[2]);
const say = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);
let cancel;
let told = 0;

function Answer({ job }) {
  // Everything here is made anew with each rendering, as pages do.
  const stream = useStream(job, { relay, token: () => "any", onEvent: () => (told += 1) });
  cancel = stream.cancel;
  const { text, state, connected, toolCalls, usage, error } = stream;
  say({ text, state, connected, toolCalls, usage, error: error?.code ?? null, told });
  return createElement("p", null, text);
}

const page = (job) => createElement(StrictMode, null, createElement(Answer, { job }));
const root = create(page(job), { unstable_isConcurrent: true });

const commands = createInterface({ input: process.stdin });
commands.on("line", async (line) => {
  const command = JSON.parse(line);
  if ("job" in command) root.update(page(command.job));
  if (command.do === "cancel") say({ cancel: await cancel() });
  if (command.do === "unmount") {
    root.unmount();
    commands.close();
    process.stdin.destroy();
  }
});
