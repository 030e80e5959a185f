"""Whether the log is whole: every order's events read again and held against the rules.

The database refuses to rewrite the log, but its superuser can do anything. This finds what was
done: a missing, doubled or altered event, a step that the lifecycle does not have or that its actor
could not take, an order's row that says something else than its events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session as Transaction

from ordertrack import lifecycle
from ordertrack.db import transaction
from ordertrack.lifecycle import Standing, Status
from ordertrack.models import EVENT_TYPES

# Orders that one transaction reads. Their events come through a server-side cursor, so that an
# order with a million of them fits, too.
BATCH = 500
_FETCH = 2000


@dataclass(frozen=True, slots=True)
class Checked:
    """How far the check has come: orders and events so far that are as they must be."""

    orders: int
    events: int


class LogDamaged(Exception):
    """The first row, by order and version, that is not as it must be. Its text names the row."""


def count_orders() -> int:
    """How many orders there are to check, hidden ones included."""
    with transaction() as t:
        return int(t.execute(text("SELECT count(*) FROM orders")).scalar_one())


def verify() -> Iterator[Checked]:
    """Check every order, in order of id; yields after each batch. Raises `LogDamaged`.

    Each batch is one snapshot, so a server may go on working meanwhile; an order that is placed
    after the check has passed its id is not checked.
    """
    orders = events = after = 0
    while True:
        with transaction() as t:
            t.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            found = t.execute(_ORDERS, {"after": after, "limit": BATCH}).all()
            # The last batch also takes what lies beyond the last order: events of no order.
            upto = found[-1].id if len(found) == BATCH else None
            events += _check_batch(t, found, after, upto)
        orders += len(found)
        yield Checked(orders, events)
        if upto is None:
            return
        after = upto


_ORDERS = text(
    """SELECT id, status, version, description, customer_id, driver_id, deleted_at
         FROM orders WHERE id > :after ORDER BY id LIMIT :limit"""
)
_EVENTS = text(
    """SELECT id, order_id, version, type, status, previous_status, actor_id, actor_role, changes,
              customer_id, driver_id
         FROM order_events
        WHERE order_id > :after AND (CAST(:upto AS bigint) IS NULL OR order_id <= :upto)
        ORDER BY order_id, version, id"""
)


def _check_batch(t: Transaction, orders: Sequence[Row[Any]], after: int, upto: int | None) -> int:
    """Hold the events of a batch against its orders; the number of events."""
    number = 0
    waiting = iter(orders)
    rows = t.execute(
        _EVENTS, {"after": after, "upto": upto}, execution_options={"yield_per": _FETCH}
    )
    for order_id, events in groupby(rows, key=lambda event: event.order_id):
        order = next(waiting, None)
        if order is not None and order.id < order_id:
            raise LogDamaged(f"Order {order.id} has no events.")
        if order is None or order.id > order_id:
            raise LogDamaged(f"Order {order_id} has events, but does not exist.")
        number += _check_order(order, events)
    order = next(waiting, None)
    if order is not None:
        raise LogDamaged(f"Order {order.id} has no events.")
    return number


def _check_order(order: Row[Any], events: Iterator[Row[Any]]) -> int:
    """Follow one order from its first event to its row; the number of events."""
    version, status, driver_id, deleted = 0, None, None, False
    description = None
    for event in events:
        if event.version != version + 1:
            raise _damaged(event, f"follows version {version}")
        version = event.version
        if deleted:
            raise _damaged(event, "comes after the order was deleted")
        if event.customer_id != order.customer_id:
            raise _damaged(event, "names another customer")
        if version == 1:
            _check_first(event)
        else:
            _check_step(event, status)
        _check_driver(event, driver_id)
        status, driver_id = event.status, event.driver_id
        deleted = event.type == "deleted"
        description = _changes(event).get("description", description)
    for column, stands, logged in (
        ("version", order.version, version),
        ("status", order.status, status),
        ("driver_id", order.driver_id, driver_id),
        ("description", order.description, description),
        ("deletion", order.deleted_at is not None, deleted),
    ):
        if stands != logged:
            raise LogDamaged(
                f"Order {order.id}: its row has {column} {stands!r}, its log {logged!r}."
            )
    return version


def _check_first(event: Row[Any]) -> None:
    if event.type != "created":
        raise _damaged(event, f"is {event.type}, but an order begins with created")
    if event.status != lifecycle.INITIAL or event.previous_status is not None:
        raise _damaged(
            event, f"begins as {event.status}, but an order begins as {lifecycle.INITIAL}"
        )


def _check_step(event: Row[Any], status: str | None) -> None:
    if event.type == "created" or event.type not in EVENT_TYPES:
        raise _damaged(event, f"is {event.type}, which is no change of an order")
    if event.status not in lifecycle.STEPS:
        raise _damaged(event, f"has the unknown status {event.status}")
    if event.previous_status != status:
        raise _damaged(
            event,
            f"has the previous status {event.previous_status}, but the order was {status}",
        )
    if event.type != "status_changed":
        if event.status != status:
            raise _damaged(event, f"changes the status, but is {event.type}")
        return
    before, after = Status(event.previous_status), Status(event.status)
    if not lifecycle.is_edge(before, after):
        raise _damaged(event, f"goes from {before} to {after}, which is no step")
    if after not in lifecycle.next_statuses(before, _standings(event)):
        who = f"user {event.actor_id} ({event.actor_role})"
        raise _damaged(event, f"goes from {before} to {after}, which {who} may not")


def _check_driver(event: Row[Any], driver_id: int | None) -> None:
    if event.type == "driver_assigned":
        shown = _changes(event).get("driver")
        told = shown.get("id") if isinstance(shown, dict) else None
        if told != (None if event.driver_id is None else str(event.driver_id)):
            raise _damaged(event, "names two different drivers")
    elif event.driver_id != driver_id:
        raise _damaged(event, "changes the driver in passing")


def _changes(event: Row[Any]) -> dict[str, Any]:
    return event.changes if isinstance(event.changes, dict) else {}


_STAFF = (Standing.DRIVER, Standing.ADMIN)


def _standings(event: Row[Any]) -> set[Standing]:
    """What the actor was to the order. Which drivers could see it then is not recorded."""
    held = {standing for standing in _STAFF if event.actor_role == standing}
    if event.actor_id == event.customer_id:
        held.add(Standing.OWNER)
    return held


def _damaged(event: Row[Any], how: str) -> LogDamaged:
    row = f"Order {event.order_id}, version {event.version} (row {event.id} of order_events)"
    return LogDamaged(f"{row} {how}.")
