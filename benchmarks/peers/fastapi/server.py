"""The peer in FastAPI: asyncpg, and uvicorn with uvloop and httptools, which it recommends.

Environment: PORT, JWT_SECRET, and libpq's PG* variables. REST only.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Annotated, Literal

import asyncpg
import jwt
import orjson
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from pydantic import BaseModel

SECRET = os.environ["JWT_SECRET"]
NEXT = {"Pending": "Processing", "Processing": "Shipped", "Shipped": "Completed"}
PREVIOUS = {after: before for before, after in NEXT.items()}
STAFF = {"driver", "admin"}

ORDER = """
    SELECT o.*, u.name AS customer_name FROM orders o JOIN users u ON u.id = o.customer_id
     WHERE o.id = $1 AND ($2 OR o.customer_id = $3)
"""
# The order's row and the audit row in one statement, which is its own transaction.
CHANGE = """
    WITH o AS (
        UPDATE orders SET status = $2, version = version + 1, updated_at = now()
         WHERE id = $1 AND status = $3 RETURNING *),
    e AS (
        INSERT INTO order_events (order_id, version, type, status, previous_status,
                                  actor_id, actor_name, actor_role, note, updated_at)
        SELECT id, version, 'status_changed', status, $3, $4, $5, $6, $7, updated_at FROM o)
    SELECT o.*, u.name AS customer_name FROM o JOIN users u ON u.id = o.customer_id
"""
CREATE = """
    WITH o AS (
        INSERT INTO orders (customer_id, description) VALUES ($1, $2) RETURNING *),
    e AS (
        INSERT INTO order_events (order_id, version, type, status,
                                  actor_id, actor_name, actor_role, updated_at)
        SELECT id, version, 'created', status, $1, $3, $4, updated_at FROM o)
    SELECT o.*, $3::text AS customer_name FROM o
"""


@dataclass(slots=True)
class Actor:
    id: int
    name: str
    role: str

    @property
    def is_staff(self) -> bool:
        return self.role in STAFF


class NewOrder(BaseModel):
    description: str


class Change(BaseModel):
    status: Literal["Processing", "Shipped", "Completed"]
    note: str | None = None


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with asyncpg.create_pool(min_size=10, max_size=10) as pool:
        app.state.pool = pool
        yield


app = FastAPI(lifespan=lifespan)


# Coroutines throughout: FastAPI would run plain functions in a thread pool.
async def authenticate(authorization: Annotated[str, Header()] = "") -> Actor:
    try:
        claims = jwt.decode(authorization.removeprefix("Bearer "), SECRET, algorithms=["HS256"])
    except jwt.PyJWTError:
        raise HTTPException(401, "invalid_token") from None
    return Actor(id=int(claims["sub"]), name=claims["name"], role=claims["role"])


async def pool(request: Request) -> asyncpg.Pool:
    return request.app.state.pool


Caller = Annotated[Actor, Depends(authenticate)]
Pool = Annotated[asyncpg.Pool, Depends(pool)]


def present(actor: Actor, row: asyncpg.Record, status_code: int = 200) -> Response:
    # A response of our own, as the documentation advises for speed: no model to validate it with.
    status = row["status"]
    content = {
        "id": str(row["id"]),
        "description": row["description"],
        "status": status,
        "version": row["version"],
        "customer": {"id": str(row["customer_id"]), "name": row["customer_name"]},
        "driver": None,
        "created_at": row["created_at"],
        "updated_at": row["updated_at"],
        "next_statuses": [NEXT[status]] if actor.is_staff and status in NEXT else [],
    }
    return Response(orjson.dumps(content), status_code, media_type="application/json")


@app.get("/api/orders/{order_id}")
async def read_order(order_id: int, actor: Caller, pool: Pool) -> Response:
    row = await pool.fetchrow(ORDER, order_id, actor.is_staff, actor.id)
    if row is None:
        raise HTTPException(404, "not_found")
    return present(actor, row)


@app.post("/api/orders")
async def create_order(order: NewOrder, actor: Caller, pool: Pool) -> Response:
    row = await pool.fetchrow(CREATE, actor.id, order.description, actor.name, actor.role)
    return present(actor, row, 201)


@app.put("/api/orders/{order_id}/status")
async def change_status(order_id: int, change: Change, actor: Caller, pool: Pool) -> Response:
    if not actor.is_staff:
        raise HTTPException(403, "forbidden")
    row = await pool.fetchrow(
        CHANGE, order_id, change.status, PREVIOUS[change.status],
        actor.id, actor.name, actor.role, change.note,
    )  # fmt: skip
    if row is None:
        await read_order(order_id, actor, pool)  # or it is not there
        raise HTTPException(409, "invalid_transition")
    return present(actor, row)


if __name__ == "__main__":
    uvicorn.run(
        app,
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_level="warning",
    )
