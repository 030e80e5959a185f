/**
 * What a driver has tapped and the server has not yet confirmed. Kept in the browser's storage, so
 * that a reload or an empty battery loses no tap, and sent until there is an answer.
 *
 * Sending twice is safe: the status that an order already has changes nothing, and `If-Match` keeps
 * an old tap from moving an order that has changed since.
 */

import { send, viewer } from "./session.js";

const STORE = `ordertrack-taps-${viewer}`;
const LONGEST_PAUSE = 15_000;

/** Tells `changed`, `answered`, and `refused` with {tap, problem}. */
export class Taps extends EventTarget {
  #taps = new Map(); // order id → {id, status, note, version}
  #timer;
  #attempts = 0;
  #sending = false;

  constructor() {
    super();
    for (const tap of JSON.parse(localStorage.getItem(STORE) ?? "[]")) this.#taps.set(tap.id, tap);
    addEventListener("online", () => this.flush());
  }

  get all() {
    return [...this.#taps.values()];
  }

  add(tap) {
    this.#taps.set(tap.id, tap);
    this.#save();
    this.flush();
  }

  /** Send what is there, now. */
  async flush() {
    clearTimeout(this.#timer);
    if (this.#sending) return;
    this.#sending = true;
    let all = true;
    for (const tap of this.all) all = (await this.#send(tap)) && all;
    this.#sending = false;
    this.#attempts = all ? 0 : this.#attempts + 1;
    if (this.#taps.size === 0) return;
    const pause = all ? 0 : Math.min(LONGEST_PAUSE, 500 * 2 ** this.#attempts);
    this.#timer = setTimeout(() => this.flush(), pause);
  }

  /** False: no answer, or none that decides. */
  async #send(tap) {
    const { id, status, note, version } = tap;
    const body = note ? { status, note } : { status };
    let response;
    try {
      response = await send("PUT", `/api/orders/${id}/status`, body, { "If-Match": `"${version}"` });
    } catch {
      this.#mark(tap, "waiting");
      return false;
    }
    if (response.status >= 500 || response.status === 429 || response.status === 401) {
      this.#mark(tap, "waiting");
      return false;
    }
    this.#taps.delete(id);
    this.#save();
    if (!response.ok) {
      const problem = await response.json().catch(() => ({ detail: response.statusText }));
      this.dispatchEvent(new CustomEvent("refused", { detail: { tap, problem } }));
    }
    this.dispatchEvent(new Event("answered"));
    return true;
  }

  #mark(tap, state) {
    tap.state = state;
    this.#save();
  }

  #save() {
    localStorage.setItem(STORE, JSON.stringify(this.all));
    this.dispatchEvent(new Event("changed"));
  }
}
