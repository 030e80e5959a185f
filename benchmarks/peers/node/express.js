// The peer in Node with express 5. Environment: PORT, and that of orders.js.
import { createServer } from "node:http";

import express from "express";

import { authenticate, bearer, changeStatus, createOrder, readOrder } from "./orders.js";
import { attach } from "./sockets.js";

const app = express();
app.disable("x-powered-by");
app.disable("etag");
app.use(express.json());
app.use((req, _res, next) => {
  req.actor = authenticate(bearer(req.headers));
  next();
});

app.get("/api/orders/:id", async (req, res) => {
  res.json(await readOrder(req.actor, req.params.id));
});

app.post("/api/orders", async (req, res) => {
  res.status(201).json(await createOrder(req.actor, req.body?.description));
});

app.put("/api/orders/:id/status", async (req, res) => {
  const { order, event } = await changeStatus(req.actor, req.params.id, req.body);
  tell(event);
  res.json(order);
});

app.use((error, _req, res, _next) => {
  const { status = 500, code = "internal" } = error;
  res.status(status).type("application/problem+json").send(JSON.stringify({ status, code }));
});

const server = createServer(app);
const tell = attach(server);
server.listen({ host: "127.0.0.1", port: Number(process.env.PORT), backlog: 4096 });
