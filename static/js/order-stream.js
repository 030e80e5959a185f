/**
 * Watches orders live: each order's events in version order, each once, none missing. A plain ES
 * module on the stock socket.io-client; runs in browsers and in Node 20 or later.
 *
 *   import { io } from "socket.io-client";
 *   import { OrderStream } from "./order-stream.js";
 *
 *   const stream = new OrderStream({ io });
 *   stream.addEventListener("state", (e) => show(e.detail.state));
 *   const stop = stream.watch("42", page.version, { onEvent: apply, onReset: replace });
 *
 * How it works. Push is a hint; the server's log is the truth. For each order an `OrderCursor` keeps
 * the last version that was passed on, and lets only the next one pass. Anything else (a repeat, an
 * event after a gap) is dropped; a gap is filled by subscribing again `after` the last version. The
 * same happens after each reconnect, and while no socket can be opened the history is polled. So one
 * rule serves live events, replays and polls, in any order of arrival. clients/README.md describes
 * the rest; clients/python/ is the same library in Python.
 */

/** Orders in one subscribe call; the server takes no more. */
const BATCH = 200;

/** Orders polled at the same time. */
const POLLERS = 4;

/** Milliseconds to an answer that show, after a sleep, whether the connection is still alive. */
const PROBE_TIMEOUT = 2000;

/**
 * Milliseconds after which a long poll is given up; the server says something every 25 seconds. The
 * library never would, and each poll that hangs keeps one of the browser's few connections.
 */
const POLL_TIMEOUT = 40000;

/** Fresh credentials refused in a row, after which the stream is signed out. */
const REFUSALS = 3;

const ABOUT_CREDENTIALS = new Set(["invalid_token", "token_expired"]);

/**
 * The position of a client in one order's log: lets only the next version pass. Pure: no clock, no
 * I/O.
 *
 * seen   the version up to which events were passed on; null while the order's state is unknown
 * known  the highest version that the server has mentioned
 */
export class OrderCursor {
  constructor(after = null) {
    this.seen = after;
    this.known = after ?? 0;
  }

  /** Whether events are missing. */
  get behind() {
    return this.seen !== null && this.known > this.seen;
  }

  /** Take events and the order's latest version, if it is known; returns the events to pass on. */
  take(events, version = 0) {
    const next = [];
    this.known = Math.max(this.known, version);
    for (const event of events) {
      this.known = Math.max(this.known, event.version);
      if (this.seen !== null && event.version === this.seen + 1) {
        this.seen = event.version;
        next.push(event);
      }
    }
    return next;
  }

  /** Take the acknowledgement of a subscription: `order` replaces the present state, or is null. */
  answer({ order, version, events, reset = false }) {
    if (!reset && this.seen !== null) {
      return { order: null, events: this.take(events, version) };
    }
    this.known = Math.max(this.known, version);
    if (this.seen !== null && version <= this.seen) {
      return { order: null, events: [] }; // an old answer: the cursor is past it
    }
    this.seen = version;
    return { order, events: [] };
  }

  /** Forget the position: the next answer's state becomes the start. */
  restart() {
    this.seen = null;
    this.known = 0;
  }
}

/** The name of `OrderCursor` in version 0.1.0, kept for code that imports it. */
export { OrderCursor as Trail };

/** An HTTP answer that is an error. `problem` is the problem object (RFC 9457). */
export class ProblemError extends Error {
  constructor(problem) {
    super(problem.detail ?? problem.title ?? problem.code);
    this.name = "ProblemError";
    this.problem = problem;
  }
}

/** What is to be subscribed to. `asked` and `joined` hold the socket for which they are true. */
class Subscription {
  asked = null;
  joined = null;
  attempts = 0;
  alone = false; // asked for by itself, because a batch with it was refused as a whole
}

class Watch extends Subscription {
  constructor(id, after, handlers, handOn) {
    super();
    this.id = id;
    this.cursor = new OrderCursor(after);
    this.handlers = handlers;
    this.handOn = handOn;
  }

  get request() {
    const { seen } = this.cursor;
    return seen === null ? { order_id: this.id } : { order_id: this.id, after: seen };
  }

  /** Take the server's answer; false when it brought no progress. */
  accept(answer) {
    const before = this.cursor.seen;
    if (before !== null && answer.reset_reason === "answer_full") {
      // The orders before it filled the answer. Being behind, it is asked for again.
      this.cursor.take([], answer.version);
      return true;
    }
    const { order, events } = this.cursor.answer(answer);
    if (order !== null) tell(this.handlers.onReset, order);
    this.handOn(this, events);
    return !this.cursor.behind || this.cursor.seen !== before;
  }

  /** Take the server's refusal; false when it is final. */
  refuse(problem) {
    // A version that the order has not reached: its database was restored from a backup.
    if (problem.code !== "validation_failed" || this.cursor.seen === null) return false;
    this.cursor.restart();
    return true;
  }
}

class Feed extends Subscription {
  alone = true;
  request = { feed: "orders" };
  listeners = new Set();
  #seen = new Map(); // order id → version

  /** Pass on each event once. After a gap the listeners are told to read the list again. */
  handOn(event) {
    if (this.listeners.size === 0) return;
    const seen = this.#seen.get(event.order_id);
    if (seen !== undefined && event.version <= seen) return;
    this.#seen.set(event.order_id, event.version);
    for (const { handlers } of this.listeners) tell(handlers.onEvent, event);
    if (seen !== undefined && event.version > seen + 1) this.resume();
  }

  resume() {
    for (const listener of this.listeners) {
      const first = !listener.begun;
      listener.begun = true;
      tell(listener.handlers.onResume, { first });
    }
  }

  accept() {
    this.#seen.clear();
    this.resume();
    return true;
  }

  refuse() {
    return false;
  }
}

export class OrderStream extends EventTarget {
  #io;
  #url;
  #auth;
  #onRenew;
  #history;
  #order;
  #times;
  #options;

  #state = "connecting";
  #closed = false;
  #watches = new Map(); // order id → Watch
  #feed = new Feed();

  #socket = null;
  #up = false; // it is connected, or was until just now
  #pollsFirst = false;
  #turn = 0; // counts connection attempts; what belongs to an older one is ignored
  #timer; // until the next attempt, or until the present one is given up
  #timers = new Set();
  #failures = 0;
  #silences = 0; // requests in a row that were not answered
  #refusals = 0;
  #token = null; // the one that the present attempt uses
  #problem = null; // why the server ended the session
  #patience; // until polling begins
  #polling = null;
  #pumping = false;
  #listening = new AbortController();

  /**
   * io            socket.io-client's `io`
   * url           where the server is; "/" is where the page came from
   * auth          () => ({token}) or a promise of it: an access token, asked for at each attempt.
   *               Without it the browser's cookies count.
   * onRenew       async (problem) => boolean: the credentials were refused; get new ones if you can.
   *               Without it `auth` is asked once more, and must give another token.
   * history       async (orderId, after) => {events, version, has_more}, and
   * order         async (orderId) => order: how to poll. By default GET /api/orders/… with the
   *               token, or the cookies. They throw an error with a `problem` when they are refused.
   * pollInterval  ms between two rounds of polling
   * pollAfter     ms without a live connection after which polling begins
   * ackTimeout, connectTimeout   ms to wait for an answer, for a connection
   * maxDelay      ms: the longest pause between two attempts to connect
   * options       further options for `io`
   */
  constructor({
    io,
    url = "/",
    auth,
    onRenew,
    history,
    order,
    pollInterval = 3000,
    pollAfter = 3000,
    ackTimeout = 10000,
    connectTimeout = 5000,
    maxDelay = 1500,
    options = {},
  }) {
    super();
    this.#io = io;
    this.#url = url;
    this.#auth = auth;
    this.#onRenew = onRenew;
    this.#history =
      history ?? ((id, after) => this.#get(`/api/orders/${id}/history?after=${after}`));
    this.#order = order ?? ((id) => this.#get(`/api/orders/${id}`));
    this.#times = { pollInterval, pollAfter, ackTimeout, connectTimeout, maxDelay };
    this.#options = options;
    this.#listenToTheBrowser();
    this.#waitForPolling();
    this.#connect();
  }

  /** "connecting" | "live" | "reconnecting" | "polling" | "offline" | "signed_out" | "closed" */
  get state() {
    return this.#state;
  }

  /**
   * Watch one order from the version `after` on; null: from its present state, which `onReset` gets.
   *
   * onEvent(event)    the next event: versions ascend by one
   * onReset(order)    too much was missed to replay; this is the new state
   * onError(problem)  the order cannot be watched (any more): there is none, or it is another's
   *
   * Returns a function that stops watching. An order is watched once at a time.
   */
  watch(orderId, after, handlers) {
    const id = String(orderId);
    if (!/^[1-9][0-9]{0,18}$/.test(id)) throw new TypeError(`not an order id: ${id}`);
    if (this.#watches.has(id)) throw new Error(`order ${id} is being watched already`);
    const watch = new Watch(id, after ?? null, handlers, (...args) => this.#handOn(...args));
    this.#watches.set(id, watch);
    this.#pump();
    return () => {
      if (this.#watches.get(id) === watch) this.#forget(watch);
    };
  }

  /**
   * Watch all orders that the caller may see. Events come while connected, each once.
   *
   * onEvent(event)
   * onResume({first})  the feed (re)starts here, and events may have been missed before: read the
   *                    list anew. Also called for every round of polling. `first` the first time.
   * onError(problem)
   */
  feed(handlers) {
    const listener = { handlers, begun: false };
    this.#feed.listeners.add(listener);
    if (this.#feed.joined !== null && this.#feed.joined === this.#socket) {
      queueMicrotask(() => {
        if (this.#feed.listeners.has(listener) && !listener.begun) {
          listener.begun = true;
          tell(handlers.onResume, { first: true });
        }
      });
    }
    this.#pump();
    return () => {
      if (!this.#feed.listeners.delete(listener) || this.#feed.listeners.size > 0) return;
      this.#leave(this.#feed);
    };
  }

  /** Try to connect now: after a new login, or because the user pressed a button. */
  reconnect() {
    if (this.#closed) return;
    this.#failures = 0;
    this.#refusals = 0;
    this.#say(online() ? "reconnecting" : "offline");
    this.#waitForPolling();
    this.#connect();
  }

  /** Stop everything, for good. */
  close() {
    this.#closed = true;
    this.#drop();
    this.#stopPolling();
    this.#listening.abort();
    for (const timer of this.#timers) clearTimeout(timer);
    this.#watches.clear();
    this.#feed.listeners.clear();
    this.#say("closed");
  }

  // --- the connection ---------------------------------------------------------------------------
  // Each attempt has a socket of its own, so that nothing of an older one can be mistaken for the
  // present one's. The library's own reconnecting is off: it ends when the server disconnects.

  async #connect() {
    this.#drop();
    const turn = this.#turn;
    let auth;
    try {
      auth = await this.#auth?.();
    } catch {
      if (turn === this.#turn) this.#failed();
      return;
    }
    if (turn !== this.#turn) return;
    this.#token = auth?.token ?? null;
    if (this.#auth && this.#token === null) {
      this.#signedOut({ code: "invalid_token", detail: "There is no access token." });
      return;
    }
    const transports = ["websocket", "polling"];
    if (this.#pollsFirst) transports.reverse();
    const socket = this.#io(this.#url, {
      transports,
      tryAllTransports: true,
      timeout: this.#times.connectTimeout,
      requestTimeout: POLL_TIMEOUT,
      ...this.#options,
      forceNew: true,
      reconnection: false,
      auth: auth ?? {},
    });
    this.#socket = socket;
    this.#timer = setTimeout(() => this.#failed(), 2 * this.#times.connectTimeout);
    const on = (name, handle) =>
      socket.on(name, (argument) => {
        if (socket === this.#socket) handle(argument);
      });
    on("connect", () => this.#connected());
    on("connect_error", (error) => this.#failed(error?.data));
    on("disconnect", () => this.#failed());
    on("order_update", (event) => this.#update(event));
    on("signed_out", (problem) => {
      // The token may have been renewed meanwhile, or only a role has changed: try again.
      this.#problem = problem;
      this.#failed();
    });
  }

  #drop() {
    this.#turn += 1;
    this.#up = false;
    clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    for (const subscription of [this.#feed, ...this.#watches.values()]) {
      subscription.asked = subscription.joined = null;
    }
    socket?.off();
    socket?.disconnect();
  }

  #connected() {
    clearTimeout(this.#timer);
    this.#up = true;
    this.#silences = 0;
    this.#refusals = 0;
    this.#problem = null;
    this.#pump();
    this.#settle();
  }

  /** The connection is lost, or could not be made. */
  #failed(problem) {
    if (this.#up) {
      // Reconnect with the transport that worked.
      this.#pollsFirst = this.#socket.io.engine?.transport.name === "polling";
    } else if (!problem) {
      // Where a proxy swallows WebSockets, always trying them first would take too long.
      this.#pollsFirst = !this.#pollsFirst;
    }
    this.#drop();
    this.#down();
    if (ABOUT_CREDENTIALS.has(problem?.code)) {
      this.#renew(problem);
      return;
    }
    const pause = this.#pause(this.#failures, problem);
    this.#failures += 1;
    this.#timer = setTimeout(() => this.#connect(), pause);
  }

  /** Half to all of a time that doubles: the clients of a lost server return one by one. */
  #pause(attempts, problem) {
    const most = Math.min(this.#times.maxDelay, 200 * 2 ** Math.min(attempts, 20));
    const asked = Math.min(problem?.retry_after ?? 0, 30) * 1000;
    return Math.max(asked, most / 2) + Math.random() * (most / 2);
  }

  async #renew(problem) {
    const turn = this.#turn;
    const refused = this.#token;
    let renewed = false;
    try {
      if (this.#refusals < REFUSALS) {
        renewed = this.#onRenew
          ? await this.#onRenew(problem)
          : this.#auth && ![null, undefined, refused].includes((await this.#auth())?.token);
      }
    } catch {
      if (turn === this.#turn) this.#failed(); // whether it would have worked is not known
      return;
    }
    if (turn !== this.#turn) return;
    if (renewed) {
      this.#refusals += 1;
      this.#connect();
    } else {
      this.#signedOut(problem);
    }
  }

  #signedOut(problem) {
    this.#drop();
    this.#stopPolling();
    this.#say("signed_out", this.#problem ?? problem);
  }

  #listenToTheBrowser() {
    if (typeof document === "undefined") return;
    const { signal } = this.#listening;
    const ended = () => this.#state === "signed_out" || this.#closed;
    window.addEventListener("online", () => ended() || this.reconnect(), { signal });
    window.addEventListener("offline", () => ended() || this.#failed(), { signal });
    document.addEventListener(
      "visibilitychange",
      () => {
        if (document.visibilityState === "hidden" || ended()) return;
        if (this.#socket?.connected) this.#probe();
        else this.reconnect();
      },
      { signal },
    );
  }

  /** After a sleep a dead connection may look alive for most of a minute. */
  #probe() {
    const joined = [this.#feed, ...this.#watches.values()].find(
      ({ joined, asked }) => joined === this.#socket && asked === null,
    );
    if (joined) this.#ask(this.#socket, [joined], PROBE_TIMEOUT);
  }

  // --- subscriptions ----------------------------------------------------------------------------

  /** Subscribe to what is not joined or has a gap: soon, so that many calls make one batch. */
  #pump() {
    if (this.#pumping) return;
    this.#pumping = true;
    queueMicrotask(() => {
      this.#pumping = false;
      this.#subscribe();
    });
  }

  #subscribe() {
    const socket = this.#socket;
    if (!socket?.connected) return;
    const feed = this.#feed;
    if (feed.listeners.size > 0 && feed.joined === null && feed.asked === null) {
      this.#ask(socket, [feed]);
    }
    let batch = [];
    for (const watch of this.#watches.values()) {
      if (watch.asked !== null || (watch.joined !== null && !watch.cursor.behind)) continue;
      if (watch.alone) {
        this.#ask(socket, [watch]);
      } else if (batch.push(watch) === BATCH) {
        this.#ask(socket, batch);
        batch = [];
      }
    }
    if (batch.length > 0) this.#ask(socket, batch);
  }

  async #ask(socket, batch, probing = 0) {
    for (const one of batch) one.asked = socket;
    const requests = batch.map((one) => one.request);
    const request = requests.length === 1 ? requests[0] : { orders: requests };
    const ack = await new Promise((resolve) => {
      socket
        .timeout(probing || this.#times.ackTimeout)
        .emit("subscribe", request, (error, answer) => resolve(error ? null : answer));
    });
    if (socket !== this.#socket) return;
    this.#silences = ack === null ? this.#silences + 1 : 0;
    if (this.#silences > 1 || (probing && ack === null)) {
      this.#failed(); // the connection looks alive, and is dead
      return;
    }
    const together = batch.length > 1;
    const again = [];
    let slowest = null;
    for (const [index, one] of batch.entries()) {
      one.asked = null;
      if (one instanceof Watch && this.#watches.get(one.id) !== one) continue; // stopped meanwhile
      const answer = together && ack?.ok ? ack.results[index] : ack;
      const problem = answer?.error;
      if (answer?.ok) {
        one.joined = socket;
        if (one.accept(answer)) one.attempts = 0;
        else again.push(one);
      } else if (ABOUT_CREDENTIALS.has(problem?.code)) {
        this.#failed(); // a new connection shows why, by the usual rules
        return;
      } else if (!problem || problem.status >= 500 || problem.status === 429) {
        again.push(one);
        if (problem?.retry_after > (slowest?.retry_after ?? 0)) slowest = problem;
      } else if (together && !ack.ok) {
        one.alone = true;
      } else if (!one.refuse(problem)) {
        this.#end(one, problem);
      }
      if (socket !== this.#socket) return; // a handler has closed or reconnected us
    }
    if (again.length > 0) this.#askLater(socket, again, slowest);
    this.#pump();
    this.#settle();
  }

  #askLater(socket, batch, problem) {
    const pause = this.#pause(Math.max(...batch.map((one) => one.attempts)), problem);
    for (const one of batch) {
      one.attempts += 1;
      one.asked = socket; // so that it is not asked for twice
    }
    const timer = setTimeout(() => {
      this.#timers.delete(timer);
      if (socket !== this.#socket) return;
      for (const one of batch) one.asked = null;
      this.#pump();
    }, pause);
    this.#timers.add(timer);
  }

  /** The server refuses the subscription. */
  #end(subscription, problem) {
    if (subscription === this.#feed) {
      const listeners = [...this.#feed.listeners];
      this.#feed.listeners.clear();
      for (const { handlers } of listeners) tell(handlers.onError, problem);
    } else {
      this.#watches.delete(subscription.id);
      tell(subscription.handlers.onError, problem);
    }
  }

  #forget(watch) {
    this.#watches.delete(watch.id);
    this.#leave(watch);
  }

  #leave(subscription) {
    const { order_id, feed } = subscription.request;
    const socket = this.#socket;
    if (socket?.connected && (subscription.joined ?? subscription.asked) !== null) {
      socket.emit("unsubscribe", feed ? { feed } : { order_id });
    }
    subscription.asked = subscription.joined = null;
    this.#settle();
  }

  // --- events -----------------------------------------------------------------------------------

  #update(event) {
    const watch = this.#watches.get(String(event.order_id));
    if (watch) {
      this.#handOn(watch, watch.cursor.take([event]));
      if (watch.cursor.behind) this.#pump();
    }
    this.#feed.handOn(event);
  }

  /** The feed gets them too: events in an acknowledgement are not sent again. */
  #handOn(watch, events) {
    for (const event of events) {
      if (this.#watches.get(watch.id) === watch) tell(watch.handlers.onEvent, event);
      this.#feed.handOn(event);
    }
  }

  // --- the state --------------------------------------------------------------------------------

  #say(state, problem = undefined) {
    if (state === this.#state) return;
    this.#state = state;
    const detail = problem === undefined ? { state } : { state, problem };
    this.dispatchEvent(new CustomEvent("state", { detail }));
  }

  /** Live means connected and subscribed to everything that is watched. */
  #settle() {
    if (!this.#socket?.connected) return;
    const live = this.#state === "live";
    const wanted = [...this.#watches.values()];
    if (this.#feed.listeners.size > 0) wanted.push(this.#feed);
    // A subscription that was just added does not end "live", unless it fails.
    const lagging = wanted.some((one) => (live ? one.attempts > 0 : one.joined === null));
    if (!lagging) {
      this.#failures = 0;
      this.#stopPolling();
      this.#say("live");
    } else if (live) {
      this.#down();
    }
  }

  #down() {
    if (!online()) this.#say("offline");
    else if (this.#state === "live" || this.#state === "signed_out") this.#say("reconnecting");
    this.#waitForPolling();
  }

  // --- polling ----------------------------------------------------------------------------------

  #waitForPolling() {
    if (this.#polling !== null) return;
    this.#patience ??= setTimeout(() => {
      this.#polling = {};
      this.#poll(this.#polling);
    }, this.#times.pollAfter);
  }

  #stopPolling() {
    clearTimeout(this.#patience);
    this.#patience = undefined;
    this.#polling = null;
  }

  async #poll(polling) {
    const queue = this.#watches.values(); // shared: each takes the next
    const poller = async () => {
      for (const watch of queue) await this.#catchUp(watch);
    };
    let state = "polling";
    let problem;
    try {
      if (this.#watches.size === 0) await this.#get("/api/me"); // does the server answer?
      await Promise.all(Array.from({ length: POLLERS }, poller));
    } catch (error) {
      problem = error.problem;
      state = problem ? "reconnecting" : "offline";
    }
    if (polling !== this.#polling) return;
    if (ABOUT_CREDENTIALS.has(problem?.code)) {
      this.#stopPolling();
      this.#failed(problem);
      return;
    }
    if (state === "polling") this.#feed.resume();
    this.#say(state);
    this.#patience = setTimeout(() => this.#poll(polling), this.#times.pollInterval);
  }

  async #catchUp(watch) {
    const { id, cursor } = watch;
    const watched = () => this.#watches.get(id) === watch;
    if (!watched()) return;
    try {
      if (cursor.seen === null) {
        const order = await this.#order(id);
        if (watched()) watch.accept({ order, version: order.version, events: [] });
        return;
      }
      for (let more = true; more && watched(); ) {
        const { events, version, has_more } = await this.#history(id, cursor.seen);
        if (!watched()) return;
        this.#handOn(watch, cursor.take(events, version));
        more = has_more && events.length > 0;
      }
    } catch (error) {
      const status = error.problem?.status;
      if (status !== 403 && status !== 404) throw error;
      if (watched()) this.#end(watch, error.problem);
    }
  }

  async #get(path) {
    const auth = await this.#auth?.();
    const base = new URL(this.#url, globalThis.location?.href);
    const response = await fetch(new URL(path, base), {
      headers: auth ? { Authorization: `Bearer ${auth.token}` } : {},
      credentials: "same-origin",
      cache: "no-store",
      signal: AbortSignal.timeout(this.#times.connectTimeout),
    });
    if (response.ok) return response.json();
    const unknown = { status: response.status, title: response.statusText, code: "unknown" };
    throw new ProblemError(await response.json().catch(() => unknown));
  }
}

/** Whether the browser reports a network; elsewhere, true. */
function online() {
  return globalThis.navigator?.onLine !== false;
}

/** Call a handler, if there is one. An exception in it must not stop the stream. */
function tell(handler, argument) {
  try {
    handler?.(argument);
  } catch (error) {
    queueMicrotask(() => {
      throw error;
    });
  }
}
