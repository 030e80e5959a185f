// The peer in Node with fastify 5. Environment: PORT, and that of orders.js.
import { fastify } from "fastify";

import { authenticate, bearer, changeStatus, createOrder, readOrder } from "./orders.js";
import { attach } from "./sockets.js";

const text = { type: "string" };
const person = { type: ["object", "null"], properties: { id: text, name: text } };
// With a schema fastify compiles the function that writes the answer.
const order = {
  type: "object",
  properties: {
    id: text,
    description: text,
    status: text,
    version: { type: "integer" },
    customer: person,
    driver: person,
    created_at: { type: "string", format: "date-time" },
    updated_at: { type: "string", format: "date-time" },
    next_statuses: { type: "array", items: text },
  },
};
const body = (properties, required) => ({ type: "object", properties, required });

const app = fastify();
app.decorateRequest("actor", null);
app.addHook("onRequest", (req, _reply, done) => {
  req.actor = authenticate(bearer(req.headers));
  done();
});

app.get("/api/orders/:id", { schema: { response: { 200: order } } }, (req) =>
  readOrder(req.actor, req.params.id),
);

app.post(
  "/api/orders",
  { schema: { body: body({ description: text }, ["description"]), response: { 201: order } } },
  (req, reply) => {
    reply.code(201);
    return createOrder(req.actor, req.body.description);
  },
);

app.put(
  "/api/orders/:id/status",
  { schema: { body: body({ status: text, note: text }, ["status"]), response: { 200: order } } },
  async (req) => {
    const { order, event } = await changeStatus(req.actor, req.params.id, req.body);
    tell(event);
    return order;
  },
);

app.setErrorHandler((error, _req, reply) => {
  const { statusCode, status = statusCode ?? 500, code = "internal" } = error;
  reply.code(status).type("application/problem+json").send(JSON.stringify({ status, code }));
});

const tell = attach(app.server);
await app.listen({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096 });
