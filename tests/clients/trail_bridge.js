/**
 * The Trail of order-stream.js on a line: so that the tests can treat it as they treat Python's.
 * Each line in is [method, arguments…]; each line out is [answer, seen, known, behind].
 */

import { createInterface } from "node:readline";

import { Trail } from "../../static/js/order-stream.js";

let trail = new Trail();

const methods = {
  new: (after) => {
    trail = new Trail(after);
  },
  take: (events, version) => trail.take(events, version),
  answer: (ack) => trail.answer(ack),
  restart: () => trail.restart(),
};

for await (const line of createInterface({ input: process.stdin })) {
  const [name, ...args] = JSON.parse(line);
  const answer = methods[name](...args) ?? null;
  process.stdout.write(`${JSON.stringify([answer, trail.seen, trail.known, trail.behind])}\n`);
}
