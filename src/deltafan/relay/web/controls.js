// The buttons that break things, so that a visitor can see them mend.

import { ask } from "./api.js";
import { $ } from "./dom.js";

const OFFLINE_SECONDS = 10;

/**
 * @param {object} page
 * @param {import("./network.js").Network} page.network
 * @param {() => string | null} page.runningJob
 * @param {() => void} page.changed the network was cut or mended
 * @param {() => void} page.killed the worker of the running job is no more
 * @param {(kind: string, text: string) => void} page.note tells something in the chat
 */
export function addControls({ network, runningJob, changed, killed, note }) {
  let timer = null;

  function mend() {
    clearInterval(timer);
    timer = null;
    network.mend();
    tell();
  }

  function tell(seconds) {
    $("cut").setAttribute("aria-pressed", String(network.isCut));
    $("cut").textContent = network.isCut ? `Offline for ${seconds} s` : "Cut the network";
    changed();
  }

  $("cut").addEventListener("click", () => {
    if (network.isCut) return mend();
    let left = OFFLINE_SECONDS;
    network.cut();
    timer = setInterval(() => {
      left -= 1;
      if (left > 0) tell(left);
      else mend();
    }, 1000);
    tell(left);
  });

  $("reconnect").addEventListener("click", () => {
    if (network.isCut) mend();
    else network.blink();
  });

  $("kill").hidden = document.documentElement.dataset.devTools !== "yes";
  $("kill").addEventListener("click", async () => {
    const job = runningJob();
    if (job === null) return note("info", "Nothing runs now: send a prompt, and kill its worker while it answers.");
    try {
      const { pid } = await ask("dev/kill-worker", { method: "POST", body: { job } });
      killed();
      note("warn", `You killed the worker (process ${pid}). Another takes the job when it has been silent for its lease.`);
    } catch (error) {
      note("bad", error.message);
    }
  });
}
