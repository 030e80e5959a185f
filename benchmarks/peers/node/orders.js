// Orders, their audit rows and who may see them: what both peers in Node share.
// Environment: JWT_SECRET, and libpq's PG* variables. CHANGE=transaction changes a status in five
// statements (BEGIN, lock, update, insert, COMMIT) instead of in one.
import { createSecretKey } from "node:crypto";

import jwt from "jsonwebtoken";
import pg from "pg";

const NEXT = { Pending: "Processing", Processing: "Shipped", Shipped: "Completed" };
const PREVIOUS = Object.fromEntries(Object.entries(NEXT).map(([from, to]) => [to, from]));

export class Problem extends Error {
  constructor(status, code) {
    super(code);
    this.status = status;
    this.code = code;
  }
}

// A KeyObject: with a string, jsonwebtoken would parse the secret anew for each token.
const key = createSecretKey(process.env.JWT_SECRET, "utf8");

// The token alone is trusted for who it is and what they may do.
export function authenticate(token) {
  try {
    const { sub, name, role } = jwt.verify(token, key, { algorithms: ["HS256"] });
    return { id: sub, name, role, staff: role === "driver" || role === "admin" };
  } catch {
    throw new Problem(401, "invalid_token");
  }
}

export const bearer = (headers) => headers.authorization?.slice("Bearer ".length);

const pool = new pg.Pool({ max: 10 });

// Named statements are prepared once per connection.
const ORDER = {
  name: "order",
  text: `SELECT o.*, u.name AS customer_name FROM orders o JOIN users u ON u.id = o.customer_id
          WHERE o.id = $1 AND ($2 OR o.customer_id = $3)`,
};
const LOCK = {
  name: "lock",
  text: `SELECT o.*, u.name AS customer_name FROM orders o JOIN users u ON u.id = o.customer_id
          WHERE o.id = $1 FOR NO KEY UPDATE OF o`,
};
const MOVE = {
  name: "move",
  text: `UPDATE orders SET status = $2, version = version + 1, updated_at = now()
          WHERE id = $1 RETURNING version, updated_at`,
};
const APPEND = {
  name: "append",
  text: `INSERT INTO order_events (order_id, version, type, status, previous_status,
                                   actor_id, actor_name, actor_role, note, updated_at)
         VALUES ($1, $2, 'status_changed', $3, $4, $5, $6, $7, $8, $9)`,
};
// The same three in one, which is its own transaction.
const CHANGE = {
  name: "change",
  text: `WITH o AS (
           UPDATE orders SET status = $2, version = version + 1, updated_at = now()
            WHERE id = $1 AND status = $3 RETURNING *),
         e AS (
           INSERT INTO order_events (order_id, version, type, status, previous_status,
                                     actor_id, actor_name, actor_role, note, updated_at)
           SELECT id, version, 'status_changed', status, $3, $4, $5, $6, $7, updated_at FROM o)
         SELECT o.*, u.name AS customer_name FROM o JOIN users u ON u.id = o.customer_id`,
};
const CREATE = {
  name: "create",
  text: `WITH o AS (
           INSERT INTO orders (customer_id, description) VALUES ($1, $2) RETURNING *),
         e AS (
           INSERT INTO order_events (order_id, version, type, status,
                                     actor_id, actor_name, actor_role, updated_at)
           SELECT id, version, 'created', status, $1, $3, $4, updated_at FROM o)
         SELECT * FROM o`,
};
const EVENTS = {
  name: "events",
  text: `SELECT * FROM order_events WHERE order_id = $1 AND version > $2 ORDER BY version`,
};
const LATEST = {
  name: "latest",
  text: `SELECT e.* FROM orders o JOIN order_events e ON e.order_id = o.id AND e.version = o.version
          WHERE o.id = $1 AND ($2 OR o.customer_id = $3)`,
};

async function run(connection, statement, ...values) {
  return (await connection.query({ ...statement, values })).rows;
}

const presentOrder = (actor, row) => ({
  id: row.id,
  description: row.description,
  status: row.status,
  version: row.version,
  customer: { id: row.customer_id, name: row.customer_name },
  driver: null,
  created_at: row.created_at,
  updated_at: row.updated_at,
  next_statuses: actor.staff && NEXT[row.status] ? [NEXT[row.status]] : [],
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

const eventOf = (actor, row, note) => ({
  order_id: row.id,
  version: row.version,
  type: "status_changed",
  status: row.status,
  previous_status: PREVIOUS[row.status],
  actor: { id: actor.id, name: actor.name, role: actor.role },
  note,
  updated_at: row.updated_at,
});

export async function readOrder(actor, id) {
  const [row] = await run(pool, ORDER, id, actor.staff, actor.id);
  if (!row) throw new Problem(404, "not_found");
  return presentOrder(actor, row);
}

export async function createOrder(actor, description) {
  if (typeof description !== "string") throw new Problem(422, "validation_failed");
  const [row] = await run(pool, CREATE, actor.id, description, actor.name, actor.role);
  return presentOrder(actor, { ...row, customer_name: actor.name });
}

// The order as it is now, and the event to tell its watchers.
export async function changeStatus(actor, id, { status, note = null } = {}) {
  if (!Object.hasOwn(PREVIOUS, status)) throw new Problem(422, "validation_failed");
  if (!actor.staff) throw new Problem(403, "forbidden");
  const row = await change(actor, id, status, note);
  return { order: presentOrder(actor, row), event: eventOf(actor, row, note) };
}

async function changeInOne(actor, id, status, note) {
  const { id: by, name, role } = actor;
  const [row] = await run(pool, CHANGE, id, status, PREVIOUS[status], by, name, role, note);
  if (row) return row;
  await readOrder(actor, id); // or it is not there
  throw new Problem(409, "invalid_transition");
}

async function changeInTransaction(actor, id, status, note) {
  const client = await pool.connect();
  try {
    await client.query("BEGIN");
    const [row] = await run(client, LOCK, id);
    if (!row) throw new Problem(404, "not_found");
    if (NEXT[row.status] !== status) throw new Problem(409, "invalid_transition");
    const [moved] = await run(client, MOVE, id, status);
    await run(client, APPEND, id, moved.version, status, row.status,
              actor.id, actor.name, actor.role, note, moved.updated_at);
    await client.query("COMMIT");
    return { ...row, ...moved, status };
  } catch (error) {
    await client.query("ROLLBACK");
    throw error;
  } finally {
    client.release();
  }
}

const change = process.env.CHANGE === "transaction" ? changeInTransaction : changeInOne;

// The events after a version.
export async function readEvents(id, after) {
  return (await run(pool, EVENTS, id, after)).map(presentEvent);
}

// The latest event of an order that the actor may see.
export async function readLatest(actor, id) {
  const [row] = await run(pool, LATEST, id, actor.staff, actor.id);
  if (!row) throw new Problem(404, "not_found");
  return presentEvent(row);
}
