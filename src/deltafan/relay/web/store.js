// What the page keeps in this tab: the conversation, the API key. Nothing of it leaves the tab, and it goes with the tab.

const TURNS = "deltafan.turns";
const KEY = "deltafan.key";
const MODEL = "deltafan.model";
const SOURCE = "deltafan.source";

/**
 * A turn: `{prompt, model, job, token, pusher, sentAt, text, state, firstToken}`. `text` is that of an answer that has
 * ended; `sentAt` and `firstToken` are this browser's clock and milliseconds.
 */
export function loadTurns() {
  try {
    const turns = JSON.parse(sessionStorage.getItem(TURNS) ?? "[]");
    return Array.isArray(turns) ? turns.filter((turn) => typeof turn?.job === "string") : [];
  } catch {
    return [];
  }
}

export function saveTurns(turns) {
  try {
    sessionStorage.setItem(TURNS, JSON.stringify(turns));
  } catch {
    // The tab's storage is full or forbidden: the relay still has the answers, for as long as it keeps them.
  }
}

export const loadKey = () => sessionStorage.getItem(KEY) ?? "";

export const saveKey = (key) => (key ? sessionStorage.setItem(KEY, key) : sessionStorage.removeItem(KEY));

/** Which way the chat reads from: "sse" or "pusher". */
export const loadSource = () => sessionStorage.getItem(SOURCE) ?? "sse";

export const saveSource = (source) => sessionStorage.setItem(SOURCE, source);

export const loadModel = () => localStorage.getItem(MODEL) ?? "";

export const saveModel = (model) => localStorage.setItem(MODEL, model);
