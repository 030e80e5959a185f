"""Turns database rows into orders, the same way for every statement that reads or changes orders.

A statement that yields orders selects `COLUMNS`, from the caller's row `a` (`callers.ACTOR_CTE`)
and an order `o`. `split` and `view_of` read such rows; `ordertrack.policy` adds what the caller may
do with the order.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ordertrack import lifecycle, policy
from ordertrack.errors import NotFound
from ordertrack.lifecycle import Status
from ordertrack.policy import Actor, Caller
from ordertrack.services import callers

# The names come from subqueries, not joins: PostgreSQL cannot know how few orders a prepared
# statement yields, and would read all users to join them.
COLUMNS = f"""{callers.ACTOR_COLUMNS},
    o.id, o.description, o.status, o.version, o.created_at, o.updated_at, o.deleted_at,
    o.deleted_at IS NOT NULL AS is_deleted,
    o.customer_id, (SELECT c.name FROM users c WHERE c.id = o.customer_id) AS customer_name,
    o.driver_id, (SELECT d.name FROM users d WHERE d.id = o.driver_id) AS driver_name"""

# A row with `COLUMNS`. It is a `policy.OrderFacts`.
OrderRow = Any


@dataclass(frozen=True, slots=True)
class OrderView:
    """An order as one caller sees it. Times are aware, in UTC."""

    id: int
    description: str
    status: Status
    version: int
    customer_id: int
    customer_name: str
    driver_id: int | None
    driver_name: str | None
    created_at: datetime
    updated_at: datetime
    next_statuses: list[Status]
    can_edit: bool
    can_delete: bool


def split(caller: Caller, rows: Sequence[OrderRow]) -> tuple[Actor, list[OrderRow]]:
    """The caller, and those rows that hold an order (an outer join yields one that does not).

    Raises `InvalidToken` when there is no row at all: then the caller's session was revoked.
    """
    actor = callers.actor_of(caller, rows[0] if rows else None)
    return actor, [row for row in rows if row.id is not None]


def no_such_order() -> NotFound:
    """The error for an order that does not exist, or not for this caller: they look alike."""
    return NotFound("There is no such order.")


def view_of(actor: Actor, row: OrderRow) -> OrderView:
    """The order of *row* as *actor* sees it."""
    held = policy.standings(actor, row)
    status = lifecycle.status_of(row.status)
    return OrderView(
        id=row.id,
        description=row.description,
        status=status,
        version=row.version,
        customer_id=row.customer_id,
        customer_name=row.customer_name,
        driver_id=row.driver_id,
        driver_name=row.driver_name,
        created_at=row.created_at,
        updated_at=row.updated_at,
        next_statuses=lifecycle.next_statuses(status, held),
        can_edit=policy.can_edit(held, status),
        can_delete=policy.can_delete(held, status),
    )
