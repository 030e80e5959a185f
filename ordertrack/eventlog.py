"""The log: the one home of ordering.

Every change of an order appends one row to ``order_events`` in the transaction that makes the
change; appending is the only way to announce anything. Readers of the log are the history
endpoint, replay for a client that comes back, and the relay that tails it.

Within an order, ``version`` counts 1, 2, 3 … without gaps, because it is taken under the order's
row lock. Between orders there is no order to keep: transactions become visible in whatever order
they commit, and `tail` loses none of them whatever that order is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from ordertrack import db
from ordertrack.lifecycle import Status
from ordertrack.models import Order, OrderEvent
from ordertrack.policy import Actor

_COLUMNS = """e.id, e.order_id, e.version, e.type, e.status, e.previous_status, e.actor_id,
    e.actor_name, e.actor_role, e.note, e.changes, e.customer_id, e.driver_id, e.created_at"""


@dataclass(frozen=True, slots=True)
class Event:
    """One row of the log. ``created_at`` is aware, in UTC; the client knows it as updated_at."""

    id: int
    order_id: int
    version: int
    type: str
    status: str
    previous_status: str | None
    actor_id: int
    actor_name: str
    actor_role: str
    note: str | None
    changes: dict[str, Any] | None
    customer_id: int
    driver_id: int | None
    created_at: datetime


def append(
    session: Session,
    order: Order,
    actor: Actor,
    type: str,
    *,
    status: Status | None = None,
    note: str | None = None,
    changes: dict[str, Any] | None = None,
) -> None:
    """Take the order's next version, set *status* if one is given, and append the event.

    The caller holds the order's row lock (or has just inserted the row) in this transaction, and
    has checked the step. Callers' status changes do not come through here:
    `services.orders.change_status` checks, moves and appends within its one statement.
    """
    if type == "created":
        previous_status = None
    else:
        order.version += 1
        order.previous_status = previous_status = order.status
        if status is not None:
            order.status = status.value
    event = OrderEvent(
        order_id=order.id,
        version=order.version,
        type=type,
        status=order.status,
        previous_status=previous_status,
        actor_id=actor.id,
        actor_name=actor.name,
        actor_role=actor.role.value,
        note=note,
        changes=changes,
        customer_id=order.customer_id,
        driver_id=order.driver_id,
        created_at=order.updated_at,
    )
    session.add(event)


# After a version and up to another: what the caller was shown as the order's present version, so
# that state and events of one answer agree although they are two statements.
_BETWEEN = db.Statement(
    f"""
    SELECT {_COLUMNS}
      FROM unnest(:orders, :after, :upto) AS wanted (order_id, after, upto)
      CROSS JOIN LATERAL (
           SELECT * FROM order_events
            WHERE order_id = wanted.order_id
              AND version > wanted.after AND version <= wanted.upto
            ORDER BY version LIMIT :limit) AS e
     ORDER BY e.order_id, e.version
    """,
    orders="bigint[]",
    after="integer[]",
    upto="integer[]",
    limit="integer",
)


@dataclass(frozen=True, slots=True)
class Span:
    """The events of one order with after < version ≤ upto."""

    order_id: int
    after: int
    upto: int


def between(spans: Sequence[Span], limit: int) -> dict[int, list[Event]]:
    """The events of each span in version order, at most *limit* per order, in one statement."""
    events: dict[int, list[Event]] = {span.order_id: [] for span in spans}
    if not spans:
        return events
    rows = _BETWEEN.all(
        orders=[span.order_id for span in spans],
        after=[span.after for span in spans],
        upto=[span.upto for span in spans],
        limit=limit,
    )
    for row in rows:
        events[row.order_id].append(Event(*row))
    return events


# --- tailing -----------------------------------------------------------------------------------
#
# A cursor is a snapshot: the set of transactions that were visible when the last read ran. A
# transaction that began later has xid >= xmax of that snapshot; one that was running then is in its
# xip list. Both index conditions stay cheap however long a foreign transaction is held open,
# because the list names that transaction and not everything since. What is visible now and was not
# visible then is exactly what the reader has not seen, in whatever order the ids came.

_NEW = """
    SELECT {columns} FROM {table} AS e
     WHERE e.xid >= pg_snapshot_xmax(%(seen)s::pg_snapshot)
       AND pg_visible_in_snapshot(e.xid, pg_current_snapshot())
    UNION ALL
    SELECT {columns} FROM {table} AS e
     WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip(%(seen)s::pg_snapshot)))
       AND pg_visible_in_snapshot(e.xid, pg_current_snapshot())
"""

SNAPSHOT = "SELECT pg_current_snapshot()::text"

# One statement is one snapshot under READ COMMITTED: the rows and the cursor agree. The outer join
# yields one row of NULLs when nothing is new.
TAIL = f"""
    SELECT s.snapshot, e.*
      FROM (SELECT pg_current_snapshot()::text AS snapshot) AS s
      LEFT JOIN ({_NEW.format(table="order_events", columns=_COLUMNS)}) AS e ON true
     ORDER BY e.id
"""
TAIL_ACCESS = f"""
    SELECT s.snapshot, e.*
      FROM (SELECT pg_current_snapshot()::text AS snapshot) AS s
      LEFT JOIN ({
    _NEW.format(table="access_changes", columns="e.id, e.user_id, e.session_id, e.reason")
}) AS e ON true
     ORDER BY e.id
"""


@dataclass(frozen=True, slots=True)
class AccessEnded:
    """A right that ended: of one session, or (``session_id`` None) of all of a user's."""

    id: int
    user_id: int
    session_id: int | None
    reason: str


def start(cursor: Any) -> str:
    """The cursor of a reader that wants what becomes visible from now on.

    *cursor* is a DB-API cursor on an autocommit connection of the reader's own.
    """
    cursor.execute(SNAPSHOT)
    snapshot: str = cursor.fetchone()[0]
    return snapshot


def tail(cursor: Any, seen: str) -> tuple[str, list[Event]]:
    """What became visible since *seen*, in id order, and the cursor to go on from.

    In id order an order's versions ascend, because ids are drawn under the order's row lock.
    """
    cursor.execute(TAIL, {"seen": seen})
    rows = cursor.fetchall()
    return rows[0][0], [Event(*row[1:]) for row in rows if row[1] is not None]


def tail_access(cursor: Any, seen: str) -> tuple[str, list[AccessEnded]]:
    """As `tail`, for the rights that ended."""
    cursor.execute(TAIL_ACCESS, {"seen": seen})
    rows = cursor.fetchall()
    return rows[0][0], [AccessEnded(*row[1:]) for row in rows if row[1] is not None]
