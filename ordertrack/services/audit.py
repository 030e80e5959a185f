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
        _require(event, event.version == version + 1, f"follows version {version}")
        version = event.version
        _require(event, event.type in EVENT_TYPES, f"has the unknown type {event.type}")
        _require(event, event.customer_id == order.customer_id, "names another customer")
        _require(event, not deleted, "comes after the order was deleted")
        if version == 1:
            _check_first(event)
        else:
            _check_step(event, status)
        if event.type == "driver_assigned":
            shown = (event.changes or {}).get("driver")
            told = None if shown is None else int(shown["id"])
            _require(event, event.driver_id == told, "names two different drivers")
        else:
            _require(event, event.driver_id == driver_id, "changes the driver in passing")
        status, driver_id = event.status, event.driver_id
        deleted = event.type == "deleted"
        description = (event.changes or {}).get("description", description)
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
    _require(event, event.type == "created", f"is {event.type}, but an order begins with created")
    _require(
        event,
        event.status == lifecycle.INITIAL and event.previous_status is None,
        f"begins as {event.status}, but an order begins as {lifecycle.INITIAL}",
    )


def _check_step(event: Row[Any], status: str | None) -> None:
    _require(event, event.type != "created", "creates the order a second time")
    _require(
        event,
        event.previous_status == status,
        f"has the previous status {event.previous_status}, but the order was {status}",
    )
    if event.type != "status_changed":
        _require(event, event.status == status, f"changes the status, but is {event.type}")
        return
    before, after = Status(event.previous_status), Status(event.status)
    _require(
        event, lifecycle.is_edge(before, after), f"goes from {before} to {after}, which is no step"
    )
    _require(
        event,
        after in lifecycle.next_statuses(before, _standings(event)),
        f"goes from {before} to {after}, which user {event.actor_id} ({event.actor_role}) may not",
    )


_STAFF = (Standing.DRIVER, Standing.ADMIN)


def _standings(event: Row[Any]) -> set[Standing]:
    """What the actor was to the order. Which drivers could see it then is not recorded."""
    held = {standing for standing in _STAFF if event.actor_role == standing}
    if event.actor_id == event.customer_id:
        held.add(Standing.OWNER)
    return held


def _require(event: Row[Any], holds: bool, otherwise: str) -> None:
    if not holds:
        raise LogDamaged(f"{_name(event)} {otherwise}.")


def _name(event: Row[Any]) -> str:
    return f"Order {event.order_id}, version {event.version} (row {event.id} of order_events)"
