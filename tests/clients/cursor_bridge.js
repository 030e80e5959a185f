/**
 * Exposes the OrderCursor of order-stream.js on standard input and output, so that the same tests
 * drive it and Python's.
 * Each line in is [method, arguments…]; each line out is [answer, seen, known, behind].
 */

import { createInterface } from "node:readline";

import { OrderCursor } from "../../static/js/order-stream.js";

let cursor = new OrderCursor();

const methods = {
  new: (after) => {
    cursor = new OrderCursor(after);
  },
  take: (events, version) => cursor.take(events, version),
  answer: (ack) => cursor.answer(ack),
  restart: () => cursor.restart(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...args] = JSON.parse(line);
  const answer = methods[name](...args) ?? null;
  process.stdout.write(`${JSON.stringify([answer, cursor.seen, cursor.known, cursor.behind])}\n`);
}
