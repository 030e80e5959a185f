"""Verifies the log: reads every order's events again and checks them against the rules.

The database refuses to change the log, but its superuser can do anything. This finds a missing,
duplicated or altered event, one that its actor had no right to, one that is dated or was written
before the one it follows, and an order's row that disagrees with its events.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from itertools import groupby
from typing import Any

from sqlalchemy import Row, text
from sqlalchemy.orm import Session as Transaction

from ordertrack import lifecycle, policy
from ordertrack.db import transaction
from ordertrack.lifecycle import Standing, Status
from ordertrack.models import EVENT_TYPES

# Orders per transaction. Their events come through a server-side cursor, so that an order may have
# a million of them.
BATCH = 500
_FETCH = 2000

# How far in the future an event may be: the clock may have been set back since.
_CLOCKS_DISAGREE = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Checked:
    """The progress of a check: how many orders and events are valid so far.

    ``upto`` is the id of the last order among them.
    """

    orders: int
    events: int
    upto: int


class LogDamaged(Exception):
    """The first invalid row, by order and version. Its text names it."""


def last_order() -> int:
    """The id of the last order, 0 for none: the measure of progress.

    Not their number, because counting a hundred million orders exceeds the statement timeout.
    """
    with transaction() as t:
        return int(t.execute(text("SELECT coalesce(max(id), 0) FROM orders")).scalar_one())


def verify() -> Iterator[Checked]:
    """Check every order, by id; yields after each batch. Raises `LogDamaged`.

    Each batch is one snapshot, so servers may go on working meanwhile; an order that is placed
    after the last batch was read is not checked.
    """
    orders = events = after = 0
    while True:
        with transaction() as t:
            t.connection(execution_options={"isolation_level": "REPEATABLE READ"})
            found = t.execute(_ORDERS, {"after": after, "limit": BATCH}).all()
            # The last batch includes all later events, which belong to no order.
            upto = found[-1].id if len(found) == BATCH else None
            events += _check_batch(_Batch(t), found, after, upto)
        orders += len(found)
        yield Checked(orders, events, found[-1].id if found else after)
        if upto is None:
            return
        after = upto


# A batch of orders in the order of their ids.
_ORDERS = text(
    """SELECT id, status, version, description, customer_id, driver_id, created_at, updated_at,
              deleted_at
         FROM orders WHERE id > :after ORDER BY id LIMIT :limit"""
)
# The events of a batch of orders, each order's by version.
_EVENTS = text(
    """SELECT id, order_id, version, type, status, previous_status, actor_id, actor_role, changes,
              customer_id, driver_id, created_at,
              pg_visible_in_snapshot(xid, pg_current_snapshot()) AS is_past
         FROM order_events
        WHERE order_id > :after AND (CAST(:upto AS bigint) IS NULL OR order_id <= :upto)
        ORDER BY order_id, version, id"""
)


# The roles that a user has and had. A change of role that does not say which yields NULL.
_ROLES = text(
    """SELECT r.role
         FROM users u
         CROSS JOIN LATERAL (
              SELECT u.role
              UNION ALL
              SELECT unnest(ARRAY[c.old_role, c.new_role]) FROM access_changes c
               WHERE c.user_id = u.id AND c.reason = 'role_changed') AS r
        WHERE u.id = :user"""
)


class _Batch:
    """The transaction of a batch, with a cache of the actors' roles."""

    def __init__(self, t: Transaction) -> None:
        self.t = t
        self.now = t.execute(text("SELECT clock_timestamp()")).scalar_one()
        self._roles: dict[int, set[str | None]] = {}

    def could_act_as(self, user_id: int, role: str) -> bool:
        """Whether the user exists, and has *role* now, had it once, or had an unknown one."""
        if user_id not in self._roles:
            self._roles[user_id] = set(self.t.scalars(_ROLES, {"user": user_id}))
        return not self._roles[user_id].isdisjoint({role, None})


def _check_batch(batch: _Batch, orders: Sequence[Row[Any]], after: int, upto: int | None) -> int:
    """Check a batch's events against its orders; the number of events."""
    number = 0
    waiting = iter(orders)
    rows = batch.t.execute(
        _EVENTS, {"after": after, "upto": upto}, execution_options={"yield_per": _FETCH}
    )
    for order_id, events in groupby(rows, key=lambda event: event.order_id):
        order = next(waiting, None)
        if order is not None and order.id < order_id:
            raise LogDamaged(f"Order {order.id} has no events.")
        if order is None or order.id > order_id:
            raise LogDamaged(f"Order {order_id} has events, but does not exist.")
        number += _check_order(batch, order, events)
    order = next(waiting, None)
    if order is not None:
        raise LogDamaged(f"Order {order.id} has no events.")
    return number


def _check_order(batch: _Batch, order: Row[Any], events: Iterator[Row[Any]]) -> int:
    """Check one order from its first event to its row; the number of events."""
    version, status, driver_id, deleted = 0, None, None, False
    description = None
    before: Row[Any] | None = None
    for event in events:
        if event.version != version + 1:
            raise _damaged(event, f"follows version {version}")
        version = event.version
        if deleted:
            raise _damaged(event, "comes after the order was deleted")
        if event.customer_id != order.customer_id:
            raise _damaged(event, "names another customer")
        if before is None:
            _check_first(event, order)
        else:
            _check_step(event, status)
            _check_right(event)
        _check_position(batch, event, before)
        if not batch.could_act_as(event.actor_id, event.actor_role):
            raise _damaged(event, f"is by {_actor(event)}, who never had that role")
        _check_driver(event, driver_id)
        status, driver_id = event.status, event.driver_id
        deleted = event.type == "deleted"
        description = _changes(event).get("description", description)
        before = event
    last = before.created_at if before is not None and version > 1 else order.updated_at
    for column, stored, logged in (
        ("version", order.version, version),
        ("time", order.updated_at, last),
        ("status", order.status, status),
        ("driver_id", order.driver_id, driver_id),
        ("description", order.description, description),
        ("deletion", order.deleted_at is not None, deleted),
    ):
        if stored != logged:
            raise LogDamaged(
                f"Order {order.id}: its row has {column} {stored!r}, its log {logged!r}."
            )
    return version


def _check_first(event: Row[Any], order: Row[Any]) -> None:
    if event.type != "created":
        raise _damaged(event, f"is {event.type}, but an order begins with created")
    if event.status != lifecycle.INITIAL or event.previous_status is not None:
        raise _damaged(
            event, f"begins as {event.status}, but an order begins as {lifecycle.INITIAL}"
        )
    if event.actor_id != event.customer_id:
        raise _damaged(event, f"is by {_actor(event)}, but customers place their orders themselves")
    if event.created_at != order.created_at:
        raise _damaged(event, f"is of {event.created_at}, but the order of {order.created_at}")
    if event.driver_id is not None:
        raise _damaged(event, "begins with a driver")


def _check_position(batch: _Batch, event: Row[Any], before: Row[Any] | None) -> None:
    """Times and row numbers ascend with versions, and none is in the future."""
    if not event.is_past:
        raise _damaged(event, "is of a transaction in the future")
    if event.created_at > batch.now + _CLOCKS_DISAGREE:
        raise _damaged(event, f"is of {event.created_at}, which is in the future")
    if before is None:
        return
    if event.created_at <= before.created_at:
        raise _damaged(event, f"is of {event.created_at}, but follows one of {before.created_at}")
    if event.id <= before.id:
        raise _damaged(event, f"was written before version {before.version}")


def _check_right(event: Row[Any]) -> None:
    """The actor was allowed to make this change (of status changes: `_check_step`)."""
    held = frozenset(_standings(event))
    status = lifecycle.status_of(event.status)
    allowed = {
        "description_changed": policy.can_edit(held, status),
        "deleted": policy.can_delete(held, status),
        "driver_assigned": Standing.ADMIN in held and status not in lifecycle.TERMINAL,
    }.get(event.type, True)
    if not allowed:
        raise _damaged(event, f"is {event.type} at {status}, which {_actor(event)} may not")


def _check_step(event: Row[Any], status: str | None) -> None:
    if event.type == "created" or event.type not in EVENT_TYPES:
        raise _damaged(event, f"is {event.type}, which is not a type of change")
    if event.status not in lifecycle.TRANSITIONS:
        raise _damaged(event, f"has the unknown status {event.status}")
    if event.previous_status != status:
        raise _damaged(
            event, f"has the previous status {event.previous_status}, but the order was {status}"
        )
    if event.type != "status_changed":
        if event.status != status:
            raise _damaged(event, f"changes the status, but is {event.type}")
        return
    before, after = Status(event.previous_status), Status(event.status)
    if after not in lifecycle.TRANSITIONS[before]:
        raise _damaged(event, f"goes from {before} to {after}, which is not a transition")
    if after not in lifecycle.next_statuses(before, _standings(event)):
        raise _damaged(event, f"goes from {before} to {after}, which {_actor(event)} may not")


def _check_driver(event: Row[Any], driver_id: int | None) -> None:
    if event.type == "driver_assigned":
        shown = _changes(event).get("driver")
        told = shown.get("id") if isinstance(shown, dict) else None
        if told != (None if event.driver_id is None else str(event.driver_id)):
            raise _damaged(event, "names two different drivers")
    elif event.driver_id != driver_id:
        raise _damaged(event, "changes the driver, but is not driver_assigned")


def _changes(event: Row[Any]) -> dict[str, Any]:
    return event.changes if isinstance(event.changes, dict) else {}


_STAFF = (Standing.DRIVER, Standing.ADMIN)


def _standings(event: Row[Any]) -> set[Standing]:
    """What the actor was to the order. The driver scope of that time is not recorded."""
    held = {standing for standing in _STAFF if event.actor_role == standing}
    if event.actor_id == event.customer_id:
        held.add(Standing.OWNER)
    return held


def _actor(event: Row[Any]) -> str:
    return f"user {event.actor_id} ({event.actor_role})"


def _damaged(event: Row[Any], how: str) -> LogDamaged:
    row = f"Order {event.order_id}, version {event.version} (row {event.id} of order_events)"
    return LogDamaged(f"{row} {how}.")
