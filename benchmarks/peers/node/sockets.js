// Watching orders: Socket.IO at /socket.io/, and raw WebSockets at /ws/orders/ID with ws.
import { STATUS_CODES } from "node:http";

import { Server } from "socket.io";
import { WebSocket, WebSocketServer } from "ws";

import { authenticate, bearer, Problem, readEvents, readLatest, readOrder } from "./orders.js";

const room = (id) => `order:${id}`;
const watchers = new Map(); // order id → Set of raw WebSockets

// Attaches both to the HTTP server; the function that tells an event to those who watch its order.
export function attach(server) {
  const io = new Server(server, { serveClient: false, destroyUpgrade: false });

  // From "Memory usage" in socket.io's documentation: the first request is not needed any more.
  io.engine.on("connection", (socket) => {
    socket.request = null;
  });

  io.use((socket, next) => {
    try {
      socket.data.actor = authenticate(socket.handshake.auth.token);
      next();
    } catch ({ status, code }) {
      next(Object.assign(new Error(code), { data: { status, code } }));
    }
  });

  io.on("connection", (socket) => {
    socket.on("subscribe", async (wish, ack) => {
      try {
        if (!wish.orders) return ack(await subscribe(socket, wish));
        ack({ ok: true, results: await Promise.all(wish.orders.map((one) => subscribe(socket, one))) });
      } catch ({ status = 500, code = "internal" }) {
        ack({ ok: false, error: { status, code } });
      }
    });
  });

  const raw = new WebSocketServer({ noServer: true, clientTracking: false });
  server.on("upgrade", (req, socket, head) => {
    const url = new URL(req.url, "http://localhost");
    if (url.pathname.startsWith("/ws/orders/")) upgrade(raw, url, req, socket, head);
  });

  return (event) => {
    io.to(room(event.order_id)).emit("order_update", event);
    const sockets = watchers.get(event.order_id);
    if (!sockets) return;
    const message = Buffer.from(JSON.stringify(event));
    for (const socket of sockets) {
      if (socket.readyState === WebSocket.OPEN) socket.send(message, { binary: false });
    }
  };
}

async function subscribe(socket, { order_id: id, after }) {
  const order = await readOrder(socket.data.actor, id);
  socket.join(room(id));
  const events = after === undefined ? [] : await readEvents(id, after);
  return { ok: true, order, version: order.version, events };
}

async function upgrade(raw, url, req, socket, head) {
  socket.on("error", () => socket.destroy());
  try {
    const id = url.pathname.slice("/ws/orders/".length);
    const after = url.searchParams.get("after");
    const actor = authenticate(bearer(req.headers));
    const latest = await readLatest(actor, id);
    const events = after === null ? [latest] : await readEvents(id, after);
    raw.handleUpgrade(req, socket, head, (client) => watch(client, id, events));
  } catch (error) {
    const status = error instanceof Problem ? error.status : 500;
    socket.end(`HTTP/1.1 ${status} ${STATUS_CODES[status]}\r\nConnection: close\r\n\r\n`);
  }
}

function watch(client, id, events) {
  let sockets = watchers.get(id);
  if (!sockets) watchers.set(id, (sockets = new Set()));
  sockets.add(client);
  client.on("error", console.error);
  client.on("close", () => {
    sockets.delete(client);
    if (!sockets.size) watchers.delete(id);
  });
  for (const event of events) client.send(JSON.stringify(event));
}
