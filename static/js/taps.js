/**
 * The queue of a driver's taps that the server has not yet confirmed. It is kept in the browser's
 * storage, so that a reload or an empty battery loses no tap, and each tap is sent until it is
 * answered.
 *
 * All windows of a browser share that storage: each shows the taps of all, the first one that can
 * sends them, and a tap that was undone in one is sent by none.
 *
 * A tap is held for some seconds before it is sent: until then it can be undone. Leaving the page
 * ends the wait, so that a phone that is put away sends its taps.
 *
 * Sending twice is safe: setting a status is idempotent, and `If-Match` keeps an old tap from moving
 * an order that has changed since.
 */

import { send, viewer } from "./session.js";

const STORE = `ordertrack-taps-${viewer}`;
const LONGEST_PAUSE = 15_000;

/** Milliseconds in which a tap can be undone. */
const HOLD = 5000;

/** Statuses of answers that say: the order has changed since this page showed it. */
const STALE = new Set([404, 409, 412]);

/**
 * A tap is {id, status, note, version, due, state}. Its state is `held` until the time `due`, then
 * `sending`, or `waiting` for the network; at last `done` or `refused`, until it is forgotten.
 *
 * Dispatches `changed`, `confirmed` with {tap}, and `refused` with {tap, problem}.
 */
export class Taps extends EventTarget {
  #taps = new Map(); // order id → tap
  #timer;
  #attempts = 0;
  #sending = false;

  constructor() {
    super();
    for (const tap of stored()) this.#taps.set(tap.id, tap);
    addEventListener("storage", ({ key }) => key === STORE && this.#readOtherWindows());
    addEventListener("online", () => this.flush());
    document.addEventListener("visibilitychange", () => document.hidden && this.#sendHeld());
    addEventListener("pagehide", () => this.#sendHeld()); // older Safari dispatches only this
  }

  get all() {
    return [...this.#taps.values()];
  }

  get(id) {
    return this.#taps.get(id);
  }

  add({ id, status, note, version }) {
    if (this.#taps.has(id)) return;
    this.#taps.set(id, { id, status, note, version, due: Date.now() + HOLD, state: "held" });
    this.#save(id);
    this.flush();
  }

  /** Undo a tap that has not been sent. */
  undo(id) {
    if (this.#taps.get(id)?.state === "held") this.forget(id);
  }

  /** Remove a tap: it was undone, or the page shows its result. */
  forget(id) {
    if (this.#taps.delete(id)) this.#save(id);
  }

  /** Send all taps that are due. */
  async flush() {
    clearTimeout(this.#timer);
    if (this.#sending) return;
    this.#sending = true;
    this.#dropSettledElsewhere();
    let all = true;
    for (const tap of this.#unsent()) {
      if (remaining(tap) === 0) all = (await this.#send(tap)) && all;
    }
    this.#sending = false;
    this.#attempts = all ? 0 : this.#attempts + 1;
    const pauses = this.#unsent().map(remaining).filter((left) => left > 0);
    if (!all) pauses.push(Math.min(LONGEST_PAUSE, 500 * 2 ** this.#attempts));
    if (pauses.length > 0) this.#timer = setTimeout(() => this.flush(), Math.min(...pauses));
  }

  /** Send all held taps, because the user leaves the page: later may be too late. */
  #sendHeld() {
    this.#dropSettledElsewhere();
    const held = this.#unsent().filter((one) => one.state === "held");
    for (const tap of held) tap.due = 0;
    Promise.all(held.map((tap) => this.#send(tap))).then(() => this.flush());
  }

  #unsent() {
    return this.all.filter((tap) => tap.state !== "done" && tap.state !== "refused");
  }

  /** Send a tap. False: no answer, or one that does not settle it; it stays in the queue. */
  async #send(tap) {
    const { id, status, note, version } = tap;
    if (tap.state === "held") this.#mark(tap, "sending");
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
    if (this.#taps.get(id) !== tap || tap.state === "done") return true; // answered twice
    if (response.ok) {
      this.#mark(tap, "done");
      this.#dispatch("confirmed", { tap });
      return true;
    }
    const unknown = { detail: response.statusText };
    const problem = { ...(await response.json().catch(() => unknown)), status: response.status };
    if (STALE.has(response.status)) this.#mark(tap, "refused");
    else this.forget(id);
    this.#dispatch("refused", { tap, problem });
    return true;
  }

  #dispatch(type, detail) {
    this.dispatchEvent(new CustomEvent(type, { detail }));
  }

  #mark(tap, state) {
    tap.state = state;
    this.#save(tap.id);
  }

  /** Store the state of one tap. The others in the storage may be another window's. */
  #save(id) {
    const taps = stored().filter((tap) => tap.id !== id);
    taps.push(...this.#unsent().filter((tap) => tap.id === id));
    localStorage.setItem(STORE, JSON.stringify(taps));
    this.dispatchEvent(new Event("changed"));
  }

  /** Apply what another window has added, undone or sent. */
  #readOtherWindows() {
    this.#dropSettledElsewhere();
    for (const tap of stored()) {
      const own = this.#taps.get(tap.id);
      if (!own) this.#taps.set(tap.id, tap);
      else if (own.state === "held") own.state = tap.state; // once sent, it cannot be undone here
    }
    this.dispatchEvent(new Event("changed"));
    this.flush();
  }

  /** Drop taps that are not stored any more: another window has undone them or got the answer. */
  #dropSettledElsewhere() {
    const ids = new Set(stored().map((tap) => tap.id));
    for (const { id, state } of this.#unsent()) {
      if (!ids.has(id) && state !== "sending") this.#taps.delete(id);
    }
  }
}

const stored = () => JSON.parse(localStorage.getItem(STORE) ?? "[]");

/** Milliseconds until a tap is due; 0 where a clock that was set back would hold it for longer. */
function remaining({ due }) {
  const left = due - Date.now();
  return left > 0 && left <= HOLD ? left : 0;
}
