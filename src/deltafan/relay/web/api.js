// The relay's HTTP API, as far as the pages need it.

export const BASE = new URL(".", location.href).href.replace(/\/$/, "");

/** What the relay said when it refused, in its words. */
export class Refused extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

/**
 * A JSON answer.
 *
 * @param {string} path below the page, such as "v1/jobs"
 * @param {{method?: string, body?: object, key?: string, signal?: AbortSignal, fetch?: typeof fetch}} options
 * @throws {Refused} the relay said no, or cannot be reached
 */
export async function ask(path, { method = "GET", body, key, signal, fetch = window.fetch } = {}) {
  const response = await send(path, { method, body, key, signal, fetch, accept: "application/json" });
  return response.json();
}

/** As `ask`, giving the response itself: a stream, say. */
export async function send(path, { method = "GET", body, key, signal, fetch = window.fetch, accept }) {
  const headers = { Accept: accept };
  if (key) headers.Authorization = `Bearer ${key}`;
  if (body !== undefined) headers["Content-Type"] = "application/json";
  let response;
  try {
    response = await fetch(`${BASE}/${path}`, { method, headers, signal, body: body && JSON.stringify(body), cache: "no-store" });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new Refused(0, "The relay cannot be reached.");
  }
  if (!response.ok) throw new Refused(response.status, await problem(response));
  return response;
}

async function problem(response) {
  try {
    const { message } = (await response.json()).error;
    return `${message[0].toUpperCase()}${message.slice(1)}.`.replace(/\.\.$/, ".");
  } catch {
    return `The relay answered ${response.status}.`;
  }
}
