// The peer in Node: express 5, socket.io 4.8 and pg, as their documentation recommends for production.
// Environment: PORT, JWT_SECRET, and libpq's PG* variables. Prints "ready" when it listens.
import { createSecretKey } from "node:crypto";
import { createServer } from "node:http";

import express from "express";
import jwt from "jsonwebtoken";
import pg from "pg";
import { Server } from "socket.io";

const NEXT = { Pending: "Processing", Processing: "Shipped", Shipped: "Completed" };
const STAFF = new Set(["driver", "admin"]);

const pool = new pg.Pool({ max: 10 });
// A KeyObject: with a string, jsonwebtoken would parse the secret anew for each token.
const key = createSecretKey(process.env.JWT_SECRET, "utf8");

function authenticate(token) {
  const { sub, name, role } = jwt.verify(token, key, { algorithms: ["HS256"] });
  return { id: sub, name, role };
}

const room = (orderId) => `order:${orderId}`;

const ORDER = `SELECT o.id, o.description, o.status, o.version, o.created_at, o.updated_at,
                      u.id AS customer_id, u.name AS customer_name
                 FROM orders o JOIN users u ON u.id = o.customer_id`;
// Named statements are prepared once per connection.
const readOrder = (id) => ({ name: "order", text: `${ORDER} WHERE o.id = $1`, values: [id] });
const lockOrder = (id) => ({
  name: "lock",
  text: `${ORDER} WHERE o.id = $1 FOR NO KEY UPDATE OF o`,
  values: [id],
});
const moveOrder = (id, status) => ({
  name: "move",
  text: `UPDATE orders SET status = $2, version = version + 1, updated_at = now()
          WHERE id = $1 RETURNING version, updated_at`,
  values: [id, status],
});
const appendEvent = (event) => ({
  name: "append",
  text: `INSERT INTO order_events (order_id, version, type, status, previous_status,
                                   actor_id, actor_name, actor_role, note, updated_at)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10)`,
  values: [
    event.order_id, event.version, event.type, event.status, event.previous_status,
    event.actor.id, event.actor.name, event.actor.role, event.note, event.updated_at,
  ],
});
const readEvents = (id, after) => ({
  name: "events",
  text: `SELECT * FROM order_events WHERE order_id = $1 AND version > $2 ORDER BY version`,
  values: [id, after],
});

const maySee = (actor, row) => row && (STAFF.has(actor.role) || row.customer_id === actor.id);

const presentOrder = (actor, row) => ({
  id: row.id,
  description: row.description,
  status: row.status,
  version: row.version,
  customer: { id: row.customer_id, name: row.customer_name },
  driver: null,
  created_at: row.created_at,
  updated_at: row.updated_at,
  next_statuses: STAFF.has(actor.role) && NEXT[row.status] ? [NEXT[row.status]] : [],
});

const presentEvent = (row) => ({
  order_id: row.order_id,
  version: row.version,
  type: row.type,
  status: row.status,
  previous_status: row.previous_status,
  actor: { id: row.actor_id, name: row.actor_name, role: row.actor_role },
  note: row.note,
  updated_at: row.updated_at,
});

class Problem extends Error {
  constructor(status, code) {
    super(code);
    this.status = status;
    this.code = code;
  }
}

async function changeStatus(actor, id, status, note) {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const { rows: [row] } = await client.query(lockOrder(id));
    if (!maySee(actor, row)) throw new Problem(404, "not_found");
    if (!STAFF.has(actor.role)) throw new Problem(403, "forbidden");
    if (NEXT[row.status] !== status) throw new Problem(409, "invalid_transition");
    const { rows: [moved] } = await client.query(moveOrder(id, status));
    const event = {
      order_id: row.id,
      version: moved.version,
      type: "status_changed",
      status,
      previous_status: row.status,
      actor: { id: actor.id, name: actor.name, role: actor.role },
      note,
      updated_at: moved.updated_at,
    };
    await client.query(appendEvent(event));
    await client.query("COMMIT");
    return { row: { ...row, ...moved, status }, event };
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  } finally {
    client.release();
  }
}

const app = express();
app.disable("x-powered-by");
app.use(express.json());
app.use((req, _res, next) => {
  try {
    req.actor = authenticate(req.get("authorization")?.slice("Bearer ".length));
  } catch {
    return next(new Problem(401, "invalid_token"));
  }
  next();
});

app.get("/api/orders/:id", async (req, res) => {
  const { rows: [row] } = await pool.query(readOrder(req.params.id));
  if (!maySee(req.actor, row)) throw new Problem(404, "not_found");
  res.set("ETag", `"${row.version}"`).json(presentOrder(req.actor, row));
});

app.put("/api/orders/:id/status", async (req, res) => {
  const { status, note = null } = req.body ?? {};
  if (typeof status !== "string") throw new Problem(422, "validation_failed");
  const { row, event } = await changeStatus(req.actor, req.params.id, status, note);
  io.to(room(row.id)).emit("order_update", event);
  res.set("ETag", `"${row.version}"`).json(presentOrder(req.actor, row));
});

app.use((error, _req, res, _next) => {
  const status = error.status ?? 500;
  res.status(status).type("application/problem+json");
  res.send(JSON.stringify({ title: error.message, status, code: error.code ?? "internal" }));
});

const server = createServer(app);
const io = new Server(server);

// From "Memory usage" in socket.io's documentation: the first request is not needed any more.
io.engine.on("connection", (socket) => {
  socket.request = null;
});

io.use((socket, next) => {
  try {
    socket.data.actor = authenticate(socket.handshake.auth.token);
    next();
  } catch {
    next(Object.assign(new Error("invalid_token"), { data: { status: 401, code: "invalid_token" } }));
  }
});

async function subscribe(socket, { order_id: id, after }) {
  const { actor } = socket.data;
  const { rows: [row] } = await pool.query(readOrder(id));
  if (!maySee(actor, row)) return { ok: false, error: { status: 404, code: "not_found" } };
  const missed = after === undefined ? [] : (await pool.query(readEvents(id, after))).rows;
  socket.join(room(row.id));
  return {
    ok: true,
    order: presentOrder(actor, row),
    version: row.version,
    events: missed.map(presentEvent),
  };
}

io.on("connection", (socket) => {
  socket.on("subscribe", async (wish, ack) => {
    try {
      if (!wish.orders) return ack(await subscribe(socket, wish));
      ack({ ok: true, results: await Promise.all(wish.orders.map((one) => subscribe(socket, one))) });
    } catch {
      ack({ ok: false, error: { status: 500, code: "internal" } });
    }
  });
});

server.listen({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096 }, () => {
  console.log("ready");
});
