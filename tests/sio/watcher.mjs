// The stock JavaScript client, told line by line on standard input what to do.
//   node watcher.mjs URL '{"auth": {…}, "transports": […]}'
// Commands: {"emit": EVENT, "data": …}; each is answered by {"ack": …}. What happens is printed as
// {"on": EVENT, "data": …}, one JSON object a line.

import { createInterface } from "node:readline";
import { io } from "socket.io-client";

const tell = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);
const socket = io(process.argv[2], { reconnection: false, ...JSON.parse(process.argv[3]) });

socket.on("connect", () => tell({ on: "connect", data: null }));
socket.on("connect_error", ({ message, data }) =>
  tell({ on: "connect_error", data: { message, data } }));
socket.on("disconnect", (reason) => tell({ on: "disconnect", data: reason }));
socket.onAny((event, data) => tell({ on: event, data }));
socket.io.engine.on("upgrade", ({ name }) => tell({ on: "upgrade", data: name }));

for await (const line of createInterface({ input: process.stdin })) {
  const { emit, data } = JSON.parse(line);
  tell({ ack: await socket.emitWithAck(emit, data) });
}
socket.disconnect();
