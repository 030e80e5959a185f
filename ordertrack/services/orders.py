"""Orders: placing, reading and changing one, and catching up after a disconnection."""

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Any, Final

import psycopg2
from sqlalchemy import exc, func, select, text
from sqlalchemy.orm import Session as Transaction

from ordertrack import db, eventlog, lifecycle, policy
from ordertrack.errors import (
    Conflict,
    DomainError,
    Forbidden,
    IdempotencyKeyReused,
    InvalidTransition,
    Unavailable,
    ValidationFailed,
    VersionMismatch,
)
from ordertrack.eventlog import Event, Span
from ordertrack.lifecycle import Standing, Status
from ordertrack.models import User
from ordertrack.policy import Actor, Caller, OrderFacts, Role
from ordertrack.services import accounts, callers, order_writes
from ordertrack.services.accounts import Driver
from ordertrack.services.order_rows import (
    COLUMNS,
    OrderRow,
    OrderView,
    no_such_order,
    split,
    view_of,
)
from ordertrack.services.order_writes import LOCK_ROW, MOVE_SQL
from ordertrack.services.row_queue import RowQueue

# A client that missed more events than this gets the order's present state instead of a replay.
REPLAY_LIMIT = 500

# How many events one statement reads when several orders are caught up with.
_READ_AT_ONCE = 250

# The size of an event's JSON without its texts.
_EVENT_BYTES = 300

# Events on an order's page besides its status changes; the whole history has pages of its own.
RECENT_EVENTS: Final = 50

# Events on one page of the history.
HISTORY_PAGE: Final = 200


class Start(Enum):
    """Where a client that names no version begins."""

    LATEST = auto()  # with the latest event


LATEST: Final = Start.LATEST

# By order id: the last version that the client has seen, `LATEST`, or None for later events only.
Wanted = Mapping[int, int | Start | None]


@dataclass(frozen=True, slots=True)
class History:
    """A page of an order's events: those after a version, and the latest version there is."""

    events: list[Event]
    version: int
    has_more: bool


@dataclass(frozen=True, slots=True)
class OrderPage:
    """What the pages of one order show.

    held        what the viewer is to the order
    events      some of its events, ascending
    drivers     the drivers that the viewer may assign
    deleted_at  None unless it was deleted; admins may read its history then
    """

    actor: Actor
    order: OrderView
    held: frozenset[Standing]
    events: list[Event]
    drivers: list[Driver]
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits the missed events in one answer, however many orders it is about."""

    events: int = 2_000
    bytes: int = 500_000


class Reset(StrEnum):
    """Why missed events are not in an answer."""

    TOO_MANY = "too_many"  # of this order alone: asking again does not help
    ANSWER_FULL = "answer_full"  # those of the orders before it used up the budget: ask again


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """The present state of an order, and the events that a watcher missed up to it.

    With ``reset`` the missed events are left out, and the watcher takes ``order`` as the new state.
    ``size`` is the approximate size of the events in bytes.
    """

    order: OrderView
    version: int
    events: list[Event]
    reset: Reset | None = None
    size: int = 0


# --- reading -----------------------------------------------------------------------------------

# Reads the caller and the orders in one statement. The caller's row comes even when no order does,
# so that a revoked session and an order that does not exist can be told apart.
_READ_SQL = f"""
    WITH {callers.ACTOR_CTE}
    SELECT {COLUMNS} FROM actor a LEFT JOIN orders o ON o.id = ANY (:ids)
"""
_READ = db.Statement(_READ_SQL, **callers.CALLER, ids="bigint[]")


def get(caller: Caller, order_id: int) -> OrderView:
    """One order. Raises `NotFound` when it does not exist for this caller, `InvalidToken`."""
    return view_of(*_read_one(caller, order_id))


def _read(caller: Caller, ids: Sequence[int]) -> tuple[Actor, dict[int, OrderRow]]:
    actor, rows = split(caller, _READ.all(**callers.parameters(caller), ids=list(ids)))
    return actor, {row.id: row for row in rows}


def _read_one(
    caller: Caller, order_id: int, may_read: Callable[[Actor, OrderFacts], bool] = policy.can_see
) -> tuple[Actor, OrderRow]:
    actor, rows = _read(caller, [order_id])
    row = rows.get(order_id)
    if row is None or not may_read(actor, row):
        raise no_such_order()
    return actor, row


def history(caller: Caller, order_id: int, *, after: int, limit: int) -> History:
    """The events with version > *after*, at most *limit*: audit trail and offline recovery.

    Raises `NotFound` when the caller may not read it. Admins may read that of a deleted order.
    """
    _, row = _read_one(caller, order_id, policy.can_read_history)
    return _history(row, after, limit)


def _history(row: OrderRow, after: int, limit: int) -> History:
    events = eventlog.between([Span(row.id, after, row.version)], limit)[row.id]
    last = events[-1].version if events else max(after, row.version)
    return History(events, row.version, has_more=last < row.version)


def page(caller: Caller, order_id: int) -> OrderPage:
    """The order's page: its status changes and its latest other events.

    Raises `NotFound` when it does not exist for this caller.
    """
    actor, row = _read_one(caller, order_id)
    drivers = accounts.drivers() if actor.role is Role.ADMIN else []
    events = eventlog.summary(order_id, row.version, RECENT_EVENTS)
    return _page(actor, row, events, drivers)


def history_page(caller: Caller, order_id: int, *, after: int = 0) -> OrderPage:
    """A page of the order's history: the events after a version.

    There is more when the last event's version is not the order's. Raises `NotFound` when the
    caller may not read it.
    """
    actor, row = _read_one(caller, order_id, policy.can_read_history)
    return _page(actor, row, _history(row, after, HISTORY_PAGE).events, [])


def _page(actor: Actor, row: OrderRow, events: list[Event], drivers: list[Driver]) -> OrderPage:
    held = policy.standings(actor, row)
    return OrderPage(actor, view_of(actor, row), held, events, drivers, row.deleted_at)


# --- catching up -------------------------------------------------------------------------------


def catch_up(
    caller: Caller, wanted: Wanted, budget: Budget = Budget()
) -> tuple[Actor, dict[int, CaughtUp | DomainError]]:
    """The present state of each order, and the events since a version: what a subscription reads.

    An order that the caller may not see yields a `NotFound`, a version that the order has not
    reached a `ValidationFailed`. Takes one statement however many orders, and more when events were
    missed; state and events agree, because only events up to the state's version are read.

    Raises `InvalidToken` when the caller's session was revoked.
    """
    actor, rows = _read(caller, list(wanted))
    answers: dict[int, CaughtUp | DomainError] = {}
    spans = []
    for order_id, since in wanted.items():
        row = rows.get(order_id)
        if row is None or not policy.can_see(actor, row):
            answers[order_id] = no_such_order()
            continue
        after = row.version - 1 if isinstance(since, Start) else since
        if after is not None and after > row.version:
            answers[order_id] = ValidationFailed.at(
                "/after", f"must be at most {row.version}, the order's version"
            )
            continue
        missed = 0 if after is None else row.version - after
        reset = Reset.TOO_MANY if missed > REPLAY_LIMIT else None
        answers[order_id] = CaughtUp(view_of(actor, row), row.version, [], reset)
        if after is not None and 0 < missed <= REPLAY_LIMIT:
            spans.append(Span(order_id, after, row.version))
    _replay(answers, spans, budget)
    return actor, fit(answers, budget)


def _replay(
    answers: dict[int, CaughtUp | DomainError], spans: Sequence[Span], budget: Budget
) -> None:
    """Add the missed events to *answers*, until they exceed *budget*."""
    unread = deque(spans)
    number = size = 0
    while unread and number <= budget.events and size <= budget.bytes:
        for order_id, events in eventlog.between(_next_spans(unread), REPLAY_LIMIT).items():
            answer = answers[order_id]
            assert isinstance(answer, CaughtUp)
            answers[order_id] = replace(answer, events=events, size=sum(map(_size, events)))
            number += len(events)
            size += sum(map(_size, events))
    for span in unread:
        answer = answers[span.order_id]
        assert isinstance(answer, CaughtUp)
        answers[span.order_id] = replace(answer, reset=Reset.ANSWER_FULL)


def _next_spans(unread: deque[Span]) -> list[Span]:
    """Take what one statement reads: one span at least, else up to `_READ_AT_ONCE` events."""
    taken = [unread.popleft()]
    number = taken[0].upto - taken[0].after
    while unread and number + unread[0].upto - unread[0].after <= _READ_AT_ONCE:
        taken.append(unread.popleft())
        number += taken[-1].upto - taken[-1].after
    return taken


def _size(event: Event) -> int:
    return _EVENT_BYTES + len(json.dumps((event.actor_name, event.note, event.changes)))


def fit(
    answers: Mapping[int, CaughtUp | DomainError], budget: Budget
) -> dict[int, CaughtUp | DomainError]:
    """The same answers with no more events than *budget* allows: the first orders keep theirs.

    So a client that asks again for those with `Reset.ANSWER_FULL` gets further each time.
    """
    fitting = dict(answers)
    number = size = 0
    full = False
    for order_id, answer in answers.items():
        if not isinstance(answer, CaughtUp) or not answer.events:
            continue
        number += len(answer.events)
        size += answer.size
        full = full or number > budget.events or size > budget.bytes
        if answer.size > budget.bytes:
            reset = Reset.TOO_MANY
        elif full:
            reset = Reset.ANSWER_FULL
        else:
            continue
        fitting[order_id] = replace(answer, events=[], size=0, reset=reset)
    return fitting


# --- placing -----------------------------------------------------------------------------------

# Places an order with the client's key, if none was placed with it. As `MOVE` it does not wait, for
# the same reason: while another transaction places the order of this key, which is what the
# advisory lock says, there is no row. Two things it cannot see, and then the key's index refuses
# the second row (`_is_taken`): a transaction that committed since the snapshot, and one of an
# older release, which takes no advisory lock.
_PLACE_ONCE_SQL = f"""
    WITH {callers.ACTOR_CTE},
    free AS (
        SELECT a.id FROM actor a
         WHERE NOT EXISTS (SELECT FROM idempotency_keys k WHERE k.user_id = a.id AND k.key = :key)
           AND pg_try_advisory_xact_lock(:lock)),
    o AS (
        INSERT INTO orders (customer_id, description)
        SELECT id, :description FROM free
        RETURNING *),
    {order_writes.CREATED},
    key AS (
        INSERT INTO idempotency_keys (user_id, key, request_hash, order_id)
        SELECT o.customer_id, :key, :fingerprint, o.id FROM o)
    SELECT {COLUMNS} FROM o CROSS JOIN actor a
"""
_PLACE_ONCE = db.Statement(
    _PLACE_ONCE_SQL,
    **callers.CALLER,
    description="text",
    key="text",
    fingerprint="text",
    lock="bigint",
)

# The order that was placed with a key, as it is now, and the fingerprint of its first description.
# LATERAL with LIMIT: PostgreSQL shall look one order up, and not merge the tables.
_PLACED_BEFORE = db.Statement(
    f"""
    WITH {callers.ACTOR_CTE}
    SELECT {COLUMNS}, k.request_hash
      FROM actor a
      LEFT JOIN idempotency_keys k ON k.user_id = a.id AND k.key = :key
      LEFT JOIN LATERAL (SELECT * FROM orders WHERE id = k.order_id LIMIT 1) o ON true
    """,
    **callers.CALLER,
    key="text",
)

# So that requests with a key that is in use do not take the connections of all others.
_key_queue = RowQueue()


def create(caller: Caller, description: str, *, key: str | None = None) -> OrderView:
    """Place an order for the caller, in one statement unless *key* is in use.

    *key* is the client's Idempotency-Key: the same key with the same description yields the order
    that the first call made, in its present state. Raises `IdempotencyKeyReused` when the
    description differs, `Conflict` when that order has been deleted, `InvalidToken`, `Unavailable`.
    """
    if key is not None:
        return _create_once(caller, description, key)
    row = order_writes.place({**callers.parameters(caller), "description": description})
    return view_of(callers.actor_of(caller, row), row)


def _create_once(caller: Caller, description: str, key: str) -> OrderView:
    fingerprint = hashlib.sha256(description.encode()).hexdigest()
    parameters = {
        **callers.parameters(caller),
        "description": description,
        "key": key,
        "fingerprint": fingerprint,
        "lock": _lock_of(caller.user_id, key),
    }
    # The call that was in the way may be rolled back, and another one be quicker after it.
    place = _PLACE_ONCE.one
    for _ in range(5):
        try:
            row = place(**parameters)
        except (psycopg2.IntegrityError, exc.IntegrityError) as error:
            if not _is_taken(error):
                raise
            row = None
        if row is not None:
            return view_of(callers.actor_of(caller, row), row)
        placed = _placed_before(caller, key, fingerprint)
        if placed is not None:
            return placed
        place = _place_after_waiting
    raise Unavailable("An order is being placed with this Idempotency-Key. Try again.")


def _lock_of(user_id: int, key: str) -> int:
    """The number of the advisory lock of a user's key. Two keys with one number do no harm."""
    digest = hashlib.sha256(f"{user_id} {key}".encode()).digest()
    return int.from_bytes(digest[:8], signed=True)


def _is_taken(error: psycopg2.IntegrityError | exc.IntegrityError) -> bool:
    """Whether the database refused an idempotency key because it is stored already."""
    original: Any = error.orig if isinstance(error, exc.IntegrityError) else error
    return bool(original.diag.constraint_name == "pk_idempotency_keys")


def _place_after_waiting(**parameters: Any) -> Any:
    """`_PLACE_ONCE` for a key in use: waits for its lock first, so that its snapshot is later."""
    with _key_queue.take(parameters["lock"]), db.transaction() as t:
        t.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": parameters["lock"]})
        row = t.execute(text(_PLACE_ONCE_SQL), parameters).one_or_none()
        if row is not None:
            db.mark_appended(t)
        return row


def _placed_before(caller: Caller, key: str, fingerprint: str) -> OrderView | None:
    """The order that was placed with *key*; None if there is none."""
    row = _PLACED_BEFORE.one(**callers.parameters(caller), key=key)
    actor = callers.actor_of(caller, row)
    if row.request_hash is None:
        return None
    if row.request_hash != fingerprint:
        raise IdempotencyKeyReused("This Idempotency-Key was used with another body.")
    assert row.id is not None, "orders are never deleted from their table"
    if row.is_deleted:
        raise Conflict("The order that was placed with this Idempotency-Key has been deleted.")
    return view_of(actor, row)


# --- changing the status -----------------------------------------------------------------------

_row_queue = RowQueue()


def change_status(
    caller: Caller,
    order_id: int,
    target: Status,
    *,
    note: str | None = None,
    if_version: int | None = None,
) -> OrderView:
    """Move an order to *target* and append its event, in one statement unless the row is locked.

    Idempotent: the status that the order already has changes nothing and yields the order as it is.

    Raises `NotFound` when the caller may not see it, `Forbidden` when the caller may never set
    *target*, `VersionMismatch` when *if_version* is stale, `InvalidTransition` (with ``current``
    and ``allowed``) when the order's status does not lead there, `InvalidToken`, `Unavailable`.
    """
    parameters = {
        **callers.parameters(caller),
        "id": order_id,
        "target": target.value,
        "if_version": if_version,
        "note": note,
        **order_writes.PREDECESSORS[target],
    }
    # Between the statement and the explanation of its failure the order may change, and its new
    # state may allow the change after all. So it is tried again, but not for ever.
    move: Callable[[Mapping[str, Any]], Any] = order_writes.move
    for _ in range(5):
        row = move(parameters)
        if row is not None:
            return view_of(callers.actor_of(caller, row), row)
        unchanged = _explain(caller, order_id, target, if_version)
        if unchanged is not None:
            return unchanged
        move = _move_after_waiting
    raise Unavailable("The order is being changed by many at once. Try again.")


def _move_after_waiting(parameters: Mapping[str, Any]) -> Any:
    """`MOVE` for a locked row: waits for the lock first, so that its snapshot is taken after.

    Only this passes through the queue. The statement by itself never waits, and its successes would
    make a stuck queue look as if it moved.
    """
    with _row_queue.take(parameters["id"]), db.transaction() as t:
        t.execute(text(LOCK_ROW), {"id": parameters["id"]})
        row = t.execute(text(MOVE_SQL), parameters).one_or_none()
        if row is not None:
            db.mark_appended(t)
        return row


def _explain(
    caller: Caller, order_id: int, target: Status, if_version: int | None
) -> OrderView | None:
    """Raise why a move failed. The order when it has the status already; None: try again."""
    actor, row = _read_one(caller, order_id)
    held = policy.standings(actor, row)
    is_settable = lifecycle.may_ever_set(target, Standing)
    if is_settable and not lifecycle.may_ever_set(target, held):
        raise Forbidden(f"You are not allowed to set an order to {target}.")
    if row.status == target:
        return view_of(actor, row)
    _require_version(row.version, if_version)
    allowed = lifecycle.next_statuses(lifecycle.status_of(row.status), held)
    if target in allowed:
        return None
    raise InvalidTransition(
        f"An order that is {row.status} cannot become {target}"
        + (f"; you may set {' or '.join(allowed)}." if allowed else "."),
        current=row.status,
        allowed=[status.value for status in allowed],
    )


# --- other changes -----------------------------------------------------------------------------


@contextmanager
def _locked(caller: Caller, order_id: int) -> Iterator[tuple[Transaction, Actor, OrderRow]]:
    """A transaction that holds the order's row lock, for a change. Raises `NotFound`.

    The caller is read after the lock was taken: rights may end during the wait for it.
    """
    with _row_queue.take(order_id), db.transaction() as t:
        t.execute(text(LOCK_ROW), {"id": order_id})
        actor, row = _read_in(t, caller, order_id)
        if row is None or not policy.can_see(actor, row):
            raise no_such_order()
        yield t, actor, row


def _read_in(t: Transaction, caller: Caller, order_id: int) -> tuple[Actor, OrderRow | None]:
    rows = t.execute(text(_READ_SQL), {**callers.parameters(caller), "ids": [order_id]}).all()
    actor, found = split(caller, rows)
    return actor, found[0] if found else None


def edit(
    caller: Caller, order_id: int, description: str, *, if_version: int | None = None
) -> OrderView:
    """Change the description. Idempotent: the same description changes nothing.

    Raises `NotFound`, `Forbidden` (a driver), `Conflict` (no longer editable), `VersionMismatch`.
    """
    with _locked(caller, order_id) as (t, actor, row):
        held = policy.standings(actor, row)
        if not policy.can_ever_edit(held):
            raise Forbidden("Only the customer and admins may edit an order.")
        if row.description == description:
            return view_of(actor, row)
        _require_version(row.version, if_version)
        if not policy.can_edit(held, lifecycle.status_of(row.status)):
            raise Conflict(
                f"An order that is {row.status} can no longer be edited by you.", current=row.status
            )
        told = {"description": description}
        changed = eventlog.append(
            t, order_id, actor, "description_changed", setting=told, changes=told
        )
        return _as_changed(view_of(actor, row), changed, description=description)


def delete(caller: Caller, order_id: int, *, if_version: int | None = None) -> None:
    """Hide the order; its history stays.

    Raises `NotFound` (also the second time), `Forbidden`, `Conflict`, `VersionMismatch`.
    """
    with _locked(caller, order_id) as (t, actor, row):
        held = policy.standings(actor, row)
        if not policy.can_ever_edit(held):
            raise Forbidden("Only the customer and admins may delete an order.")
        _require_version(row.version, if_version)
        if not policy.can_delete(held, lifecycle.status_of(row.status)):
            raise Conflict(
                f"An order that is {row.status} can no longer be deleted by you.",
                current=row.status,
            )
        # A trigger replaces it with the time of the event.
        eventlog.append(t, order_id, actor, "deleted", setting={"deleted_at": func.now()})


def assign_driver(
    caller: Caller, order_id: int, driver_id: int | None, *, if_version: int | None = None
) -> OrderView:
    """Give the order to a driver, or to none. Idempotent: the same driver changes nothing.

    Raises `NotFound`, `Forbidden` unless the caller is an admin, `ValidationFailed` when
    *driver_id* is not an active driver, `Conflict` when the order is final, `VersionMismatch`.
    """
    with _locked(caller, order_id) as (t, actor, row):
        callers.require_admin(actor)
        if row.driver_id == driver_id:
            return view_of(actor, row)
        _require_version(row.version, if_version)
        if lifecycle.status_of(row.status) in lifecycle.TERMINAL:
            raise Conflict(f"An order that is {row.status} needs no driver.", current=row.status)
        driver = None
        if driver_id is not None:
            driver = _active_driver(t, driver_id)
            # Again: the wait for the driver's row may have been long, too.
            callers.require_admin(callers.resolve(t, caller))
        setting = {"driver_id": driver_id}
        shown = {"id": str(driver_id), "name": driver} if driver is not None else None
        changed = eventlog.append(
            t, order_id, actor, "driver_assigned", setting=setting, changes={"driver": shown}
        )
        # What the caller may do stays the same: an admin's rights do not depend on the driver.
        view = view_of(actor, row)
        return _as_changed(view, changed, driver_id=driver_id, driver_name=driver)


def _active_driver(t: Transaction, user_id: int) -> str:
    """The driver's name. FOR SHARE: it stays a driver, and active, until this transaction ends."""
    name = t.scalar(
        select(User.name)
        .where(User.id == user_id, User.role == Role.DRIVER.value, User.active)
        .with_for_update(read=True)
    )
    if name is None:
        raise ValidationFailed.at("/driver_id", "must be the id of an active driver")
    return name


def _as_changed(view: OrderView, changed: eventlog.Changed, **values: Any) -> OrderView:
    """*view* after `eventlog.append`, with *values* changed. They must not bear on rights."""
    return replace(view, version=changed.version, updated_at=changed.updated_at, **values)


def _require_version(current: int, wanted: int | None) -> None:
    if wanted is not None and wanted != current:
        raise VersionMismatch(f"The order is at version {current}, not {wanted}.", current=current)
