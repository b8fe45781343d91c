// The page's network, which a visitor can cut: every connection made through it breaks at once, and no new one comes about
// until it is mended. The client library gets this `fetch` and this `WebSocket` instead of the browser's own.

const CONNECTING = 0;
const OPEN = 1;
const CLOSED = 3;

export class Network {
  isCut = false;
  #breaks = new Set(); // how to break each connection there is

  constructor() {
    this.fetch = (input, init = {}) => this.#fetch(input, init);
    const network = this;
    /** A WebSocket that can be broken without a closing handshake. */
    this.WebSocket = class extends Socket {
      constructor(url, protocols) {
        super(network, url, protocols);
      }
    };
  }

  /** Break everything, and let nothing through until `mend`. */
  cut() {
    this.isCut = true;
    this.#breakAll();
    window.dispatchEvent(new Event("offline"));
  }

  mend() {
    this.isCut = false;
    window.dispatchEvent(new Event("online"));
  }

  /** Break everything once; new connections may be made at once. */
  blink() {
    this.#breakAll();
    window.dispatchEvent(new Event("online"));
  }

  holds(breaking) {
    this.#breaks.add(breaking);
  }

  loses(breaking) {
    this.#breaks.delete(breaking);
  }

  #breakAll() {
    for (const breaking of [...this.#breaks]) breaking();
    this.#breaks.clear();
  }

  async #fetch(input, init) {
    if (this.isCut) throw new TypeError("the network is cut");
    const connection = new AbortController();
    const breaking = () => connection.abort(new TypeError("the network was cut"));
    this.holds(breaking);
    connection.signal.addEventListener("abort", () => this.loses(breaking));
    // A signal of the caller's ends the request, too, and then nothing is left to be broken.
    init.signal?.addEventListener("abort", () => this.loses(breaking));
    const signal = init.signal ? AbortSignal.any([init.signal, connection.signal]) : connection.signal;
    return window.fetch(input, { ...init, signal });
  }
}

class Socket extends EventTarget {
  onopen = null;
  onmessage = null;
  onclose = null;
  onerror = null;
  readyState = CONNECTING;
  #inner = null;
  #network;
  #breaking = () => this.#break();

  constructor(network, url, protocols) {
    super();
    this.url = String(url);
    this.#network = network;
    for (const type of ["open", "message", "close", "error"]) {
      this.addEventListener(type, (event) => this[`on${type}`]?.(event));
    }
    if (network.isCut) {
      setTimeout(this.#breaking);
      return;
    }
    network.holds(this.#breaking);
    this.#inner = protocols === undefined ? new window.WebSocket(url) : new window.WebSocket(url, protocols);
    this.#inner.onopen = () => this.#told(OPEN, new Event("open"));
    this.#inner.onmessage = ({ data }) => this.#told(OPEN, new MessageEvent("message", { data }));
    this.#inner.onerror = () => this.#told(this.readyState, new Event("error"));
    this.#inner.onclose = ({ code, reason, wasClean }) => {
      network.loses(this.#breaking);
      this.#told(CLOSED, new CloseEvent("close", { code, reason, wasClean }));
    };
  }

  send(data) {
    this.#inner?.send(data);
  }

  close(code, reason) {
    if (this.#inner === null) this.#break();
    else if (code === undefined) this.#inner.close();
    else this.#inner.close(code, reason);
  }

  #told(state, event) {
    if (this.readyState === CLOSED) return;
    this.readyState = state;
    this.dispatchEvent(event);
  }

  #break() {
    this.#network.loses(this.#breaking);
    if (this.readyState === CLOSED) return;
    this.dispatchEvent(new Event("error"));
    this.#told(CLOSED, new CloseEvent("close", { code: 1006, reason: "", wasClean: false }));
    this.#inner?.close();
  }
}
