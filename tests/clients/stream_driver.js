/**
 * Drives an OrderStream for the tests. Commands come as JSON lines on standard input; the stream's
 * callbacks go out as JSON lines on standard output: [callback, order, argument].
 *
 *   node stream_driver.js '{"url": …, "token": …, "renewals": [tokens that onRenew gives] or null, …}'
 */

import { createInterface } from "node:readline";
import { io } from "socket.io-client";

import { OrderStream } from "../../static/js/order-stream.js";

const { url, token: firstToken, renewals = null, ...options } = JSON.parse(process.argv[2]);

let token = firstToken;
const stops = new Map();

function report(what, order, argument) {
  process.stdout.write(`${JSON.stringify([what, order, argument])}\n`);
}

function onRenew(problem) {
  report("renew", null, problem);
  if (renewals.length === 0) return false;
  token = renewals.shift();
  return true;
}

const stream = new OrderStream({
  io,
  url,
  auth: () => ({ token }),
  onRenew: renewals === null ? undefined : onRenew,
  ...options,
});
stream.addEventListener("state", ({ detail }) => report("state", null, detail));

const commands = {
  watch(order, after) {
    const stop = stream.watch(order, after, {
      onEvent: (event) => report("event", order, event),
      onReset: (state) => report("reset", order, state),
      onError: (problem) => report("error", order, problem),
    });
    stops.set(order, stop);
  },
  stop(order) {
    stops.get(order)();
  },
  feed() {
    const stop = stream.feed({
      onEvent: (event) => report("event", "feed", event),
      onResume: (how) => report("resume", "feed", how),
      onError: (problem) => report("error", "feed", problem),
    });
    stops.set("feed", stop);
  },
  token(value) {
    token = value;
  },
  reconnect() {
    stream.reconnect();
  },
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...args] = JSON.parse(line);
  commands[name](...args);
}
stream.close();
process.stdout.write("", () => process.exit()); // a poll that hangs would keep Node alive
