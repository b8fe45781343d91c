// What users write, checked with tsc --strict. It is never run.

import { DeltafanError, follow, type LogEvent, type StreamResult } from "deltafan";
import { useStream } from "deltafan/react";

async function chat(job: string, element: { textContent: string | null }): Promise<string> {
  const stream = follow(job, {
    relay: "https://relay.example",
    token: async ({ reason }) => (await fetch(`/token?reason=${reason}`)).text(),
    onText: (text, added) => {
      element.textContent = added === "" ? text : element.textContent + added;
    },
    onDone: (result: StreamResult) => console.log(result.finishReason, result.usage?.cost_usd),
    onError: (error) => error.fatal && console.error(error.code, error.status),
    onState: (state, connected) => console.log(state === "queued", connected),
  });
  for await (const event of stream) {
    if (event.type === "reset") continue;
    const seen: LogEvent = event;
    switch (event.type) {
      case "text_delta":
        element.textContent += event.text;
        break;
      case "tool_result":
        console.log(event.call_id, event.result);
        break;
      case "done":
        console.log(event.timings.total, seen.id);
    }
  }
  try {
    return (await stream.done).text;
  } catch (error) {
    if (error instanceof DeltafanError && error.code === "closed") return stream.text;
    throw error;
  } finally {
    stream.close();
  }
}

function Answer({ job }: { job: string | null }): string {
  const { text, state, toolCalls, error, cancel, connected } = useStream(job, { pusher: true, token: "t" });
  if (state === "idle") return "";
  void cancel().then(({ cancelled }) => cancelled);
  return `${text} ${toolCalls[0]?.arguments} ${error?.code} ${connected}`;
}

follow("job", {
  relay: null,
  pusher: { key: "k", cluster: "eu", channel: "c", authHeaders: () => ({ "X-CSRF": "1" }) },
});
follow("job", { after: "1-5", silence: 10_000, pusher: { channel: "private-x" } });
// @ts-expect-error a number is no token
follow("job", { token: 7 });
// @ts-expect-error there is no such event
const wrong: LogEvent["type"] = "nothing";

export { Answer, chat, wrong };
