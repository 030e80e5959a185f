"""The append-only log of changes: appends an event, and reads the events between two versions.

Every change of an order appends one row to ``order_events`` in the transaction that makes the
change; nothing is announced in any other way. The log is read by version here (history, and replay
for a client that reconnects), and as it grows in `log_tail` (the relay).

Within an order, ``version`` counts 1, 2, 3 … without gaps, because it is taken under the order's
row lock. Events of different orders have no order among each other: their transactions become
visible in whatever order they commit.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Text, event, insert, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, object_session

from ordertrack import db
from ordertrack.models import Order, OrderEvent, Revocation
from ordertrack.policy import Actor

EVENT_COLUMNS = """e.id, e.order_id, e.version, e.type, e.status, e.previous_status, e.actor_id,
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

    @property
    def is_deleted(self) -> bool:
        """Whether the order is deleted from now on: with this an event is `policy.OrderFacts`."""
        return self.type == "deleted"


@dataclass(frozen=True, slots=True)
class Changed:
    """An order's version and time after a change."""

    version: int
    updated_at: datetime


def append(
    session: Session,
    order_id: int,
    actor: Actor,
    type: str,
    *,
    setting: Mapping[str, Any],
    note: str | None = None,
    changes: dict[str, Any] | None = None,
) -> Changed:
    """Change the order's columns as *setting* says, and append the event, in one statement.

    The caller holds the order's row lock in this transaction, and has checked that the change is
    allowed. The database sets the event's transaction id and time (migration 0003). Status changes
    do not use this function: `services.orders.change_status` checks, updates and appends in one
    statement of its own.
    """
    changed = (
        update(Order)
        .where(Order.id == order_id)
        .values(previous_status=Order.status, version=Order.version + 1, **setting)
        .returning(*Order.__table__.columns)
        .cte("o")
    )
    row = {
        "order_id": changed.c.id,
        "version": changed.c.version,
        "type": literal(type),
        "status": changed.c.status,
        "previous_status": changed.c.previous_status,
        "actor_id": literal(actor.id),
        "actor_name": literal(actor.name),
        "actor_role": literal(actor.role.value),
        "note": literal(note, Text),
        "changes": literal(changes, JSONB(none_as_null=True)),
        "customer_id": changed.c.customer_id,
        "driver_id": changed.c.driver_id,
    }
    appended = insert(OrderEvent).from_select(
        list(row), select(*row.values()), include_defaults=False
    )
    answer = session.execute(
        select(changed.c.version, changed.c.updated_at).add_cte(appended.cte("event"))
    ).one()
    db.mark_appended(session)
    return Changed(*answer)


@event.listens_for(Revocation, "after_insert")
def _on_revocation(_mapper: object, _connection: object, row: Revocation) -> None:
    session = object_session(row)
    if session is not None:
        db.mark_appended(session)


# The events of several orders between two versions each. The upper one is the version that the
# caller was shown as the present one, so that the state and the events of one answer agree although
# they are two statements.
_BETWEEN = db.Statement(
    f"""
    SELECT {EVENT_COLUMNS}
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


# The events that an order's page shows: all status changes, and the latest events of any type.
_SUMMARY = db.Statement(
    f"""
    SELECT {EVENT_COLUMNS}
      FROM order_events AS e
     WHERE e.order_id = :order AND e.version <= :upto
       AND (e.version > :upto - :recent OR e.type IN ('created', 'status_changed'))
     ORDER BY e.version
    """,
    order="bigint",
    upto="integer",
    recent="integer",
)


def summary(order_id: int, upto: int, recent: int) -> list[Event]:
    """The status changes of an order and its last *recent* events, up to a version, ascending."""
    return [Event(*row) for row in _SUMMARY.all(order=order_id, upto=upto, recent=recent)]
