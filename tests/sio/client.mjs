// The stock JavaScript client, told on its command line what to do; prints what it saw as JSON.
//   node client.mjs URL '{"transports": […], "auth": {…}, "count": N, "rooms": […], …}'

import { io } from "socket.io-client";

const [url, options] = [process.argv[2], JSON.parse(process.argv[3])];
const seen = { numbers: [], disconnects: [], connects: 0, binary: null };
const socket = io(url, {
  auth: options.auth ?? { token: "good" },
  transports: options.transports,
  reconnectionDelay: 100,
  reconnectionDelayMax: 300,
});
const when = (emitter, event) => new Promise((resolve) => emitter.once(event, resolve));
const finish = (code) => {
  process.stdout.write(`${JSON.stringify(seen)}\n`, () => process.exit(code));
};
setTimeout(() => finish(1), 20_000).unref();

socket.on("number", (number) => seen.numbers.push(number));
socket.on("blob", (blob) => { seen.binary = [...blob.data]; });
socket.on("disconnect", (reason) => seen.disconnects.push(reason));
socket.on("connect", () => { seen.connects += 1; });
socket.on("connect_error", (error) => {
  seen.error = { message: error.message, data: error.data };
  if (options.auth) finish(0);
});

await when(socket, "connect");
// Numbers are on their way while the transport is changed under them.
const acknowledged = socket.emitWithAck("numbers", options.count);
const { engine } = socket.io;
if (options.upgrade && engine.transport.name !== "websocket") await when(engine, "upgrade");
seen.transport = engine.transport.name;
seen.joined = await socket.emitWithAck("join", options.rooms);
seen.acknowledged = await acknowledged;
seen.numbersAtAcknowledgement = seen.numbers.length;
socket.emit("bytes");
await when(socket, "blob");

if (options.restart) {
  process.stdout.write("ready\n");
  await when(socket, "disconnect");
} else {
  socket.emit("leave me", "disconnect");
  await when(socket, "disconnect");
}
finish(0);
