// The stock JavaScript client, which obeys commands on standard input, one JSON object a line.
//   node client.mjs URL '{"auth": {…}, "transports": […]}'
// {"emit": EVENT, "arguments": […]} is answered by {"ack": …}, and {} by the transport's name as an
// ack. What happens is printed as {"on": EVENT, "data": …}.

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
  const { emit, arguments: given } = JSON.parse(line);
  // Not awaited: commands may be sent before the client is connected, and one behind the other.
  if (emit) socket.emit(emit, ...given, (ack = null) => tell({ ack }));
  else tell({ ack: socket.io.engine.transport.name });
}
socket.disconnect();
