"""The peer in FastAPI: asyncpg, and uvicorn with uvloop and httptools, which it recommends.

Environment: PORT, JWT_SECRET, and libpq's PG* variables. REST only.
"""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any, Literal

import asyncpg
import jwt
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel

SECRET = os.environ["JWT_SECRET"]
NEXT = {"Pending": "Processing", "Processing": "Shipped", "Shipped": "Completed"}
STAFF = {"driver", "admin"}

ORDER = """
    SELECT o.id, o.description, o.status, o.version, o.created_at, o.updated_at,
           u.id AS customer_id, u.name AS customer_name
      FROM orders o JOIN users u ON u.id = o.customer_id
     WHERE o.id = $1
"""
MOVE = """
    UPDATE orders SET status = $2, version = version + 1, updated_at = now()
     WHERE id = $1 RETURNING version, updated_at
"""
APPEND = """
    INSERT INTO order_events (order_id, version, type, status, previous_status,
                              actor_id, actor_name, actor_role, note, updated_at)
    VALUES ($1, $2, 'status_changed', $3, $4, $5, $6, $7, $8, $9)
"""


class Actor(BaseModel):
    id: int
    name: str
    role: str


class Change(BaseModel):
    status: Literal["Pending", "Processing", "Shipped", "Completed", "Cancelled"]
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
    return Actor(id=claims["sub"], name=claims["name"], role=claims["role"])


async def pool(request: Request) -> asyncpg.Pool:
    return request.app.state.pool


Caller = Annotated[Actor, Depends(authenticate)]
Pool = Annotated[asyncpg.Pool, Depends(pool)]


def check_visible(actor: Actor, row: asyncpg.Record | None) -> asyncpg.Record:
    if row is None or (actor.role not in STAFF and row["customer_id"] != actor.id):
        raise HTTPException(404, "not_found")
    return row


def next_statuses(actor: Actor, status: str) -> list[str]:
    return [NEXT[status]] if actor.role in STAFF and status in NEXT else []


def present(actor: Actor, row: dict[str, Any]) -> JSONResponse:
    # A response of our own, as the documentation advises for speed: no model to validate it with.
    return JSONResponse(
        {
            "id": str(row["id"]),
            "description": row["description"],
            "status": row["status"],
            "version": row["version"],
            "customer": {"id": str(row["customer_id"]), "name": row["customer_name"]},
            "driver": None,
            "created_at": row["created_at"].isoformat(),
            "updated_at": row["updated_at"].isoformat(),
            "next_statuses": next_statuses(actor, row["status"]),
        },
        headers={"ETag": f'"{row["version"]}"'},
    )


@app.get("/api/orders/{order_id}")
async def read_order(order_id: int, actor: Caller, pool: Pool) -> JSONResponse:
    return present(actor, check_visible(actor, await pool.fetchrow(ORDER, order_id)))


@app.put("/api/orders/{order_id}/status")
async def change_status(order_id: int, change: Change, actor: Caller, pool: Pool) -> JSONResponse:
    async with pool.acquire() as connection, connection.transaction():
        row = await connection.fetchrow(f"{ORDER} FOR NO KEY UPDATE OF o", order_id)
        row = check_visible(actor, row)
        if actor.role not in STAFF:
            raise HTTPException(403, "forbidden")
        if NEXT.get(row["status"]) != change.status:
            raise HTTPException(409, "invalid_transition")
        moved = await connection.fetchrow(MOVE, order_id, change.status)
        await connection.execute(
            APPEND, order_id, moved["version"], change.status, row["status"],
            actor.id, actor.name, actor.role, change.note, moved["updated_at"],
        )  # fmt: skip
    return present(actor, {**row, **moved, "status": change.status})


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
