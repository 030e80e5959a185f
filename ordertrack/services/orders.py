"""Orders: placing, reading, changing, and catching up after having been away."""

import hashlib
import json
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum, StrEnum, auto
from typing import Any, Final

from sqlalchemy import Row, func, select, text
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session as Transaction

from ordertrack import db, eventlog, lifecycle, policy
from ordertrack.errors import (
    Conflict,
    DomainError,
    Forbidden,
    IdempotencyKeyReused,
    InvalidTransition,
    NotFound,
    Unavailable,
    ValidationFailed,
    VersionMismatch,
)
from ordertrack.eventlog import Event, Span
from ordertrack.lifecycle import Standing, Status
from ordertrack.models import IdempotencyKey, User
from ordertrack.policy import Actor, Caller, Role
from ordertrack.services import callers
from ordertrack.services.row_queue import RowQueue

# More missed events than this are not worth replaying: the client takes the present state instead.
REPLAY_LIMIT = 500

# Of how many events at a time the log is asked, when several orders were missed.
_READ_AT_ONCE = 250

# What an event takes as JSON beside its texts.
_EVENT_BYTES = 300


class Start(Enum):
    """Where a client that names no version begins."""

    LATEST = auto()  # with the latest event


LATEST: Final = Start.LATEST

# By order id, the last version that the client has seen; None: only what comes from now on.
Wanted = Mapping[int, int | Start | None]


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


@dataclass(frozen=True, slots=True)
class History:
    """A page of an order's events: those after a version, and the version that is the latest."""

    events: list[Event]
    version: int
    has_more: bool


@dataclass(frozen=True, slots=True)
class Budget:
    """What the missed events of one answer may come to, however many orders it is about."""

    events: int = 2_000
    bytes: int = 500_000


class Reset(StrEnum):
    """Why missed events are not in an answer."""

    TOO_MANY = "too_many"  # of this order alone: nobody gets them replayed
    ANSWER_FULL = "answer_full"  # those of the orders before it took the room: ask again


@dataclass(frozen=True, slots=True)
class CaughtUp:
    """Where a watcher stands: the order at ``version``, and what it missed up to there.

    ``reset``: what was missed is not replayed; ``order`` is the new state. ``size`` is about what
    the events take in bytes.
    """

    order: OrderView
    version: int
    events: list[Event]
    reset: Reset | None = None
    size: int = 0


# --- reading -----------------------------------------------------------------------------------

ORDER_COLUMNS = """o.id, o.description, o.status, o.version, o.customer_id,
    c.name AS customer_name, o.driver_id, d.name AS driver_name, o.created_at, o.updated_at,
    o.deleted_at"""
NAMES = "JOIN users c ON c.id = o.customer_id LEFT JOIN users d ON d.id = o.driver_id"

# The caller and the orders in one statement. The caller's row comes even when no order does, so
# that "signed out" and "no such order" can be told apart. Rights are for `policy` to judge.
_READ_SQL = f"""
    WITH {callers.ACTOR_CTE}
    SELECT a.id AS actor_id, a.name AS actor_name, a.role AS actor_role, {ORDER_COLUMNS}
      FROM actor a
      LEFT JOIN (orders o {NAMES}) ON o.id = ANY (:ids)
"""
_READ = db.Statement(_READ_SQL, **callers.CALLER, ids="bigint[]")


def get(caller: Caller, order_id: int) -> OrderView:
    """One order. Raises `NotFound` when it does not exist for this caller, `InvalidToken`."""
    actor, rows = _read(caller, [order_id])
    return view_of(actor, _seen(actor, rows.get(order_id)))


def _read(caller: Caller, ids: Sequence[int]) -> tuple[Actor, dict[int, "Facts"]]:
    rows = _READ.all(**callers.parameters(caller), ids=list(ids))
    if not rows:
        raise callers.session_revoked()
    return actor_of(caller, rows[0]), {row.id: facts_of(row) for row in rows if row.id is not None}


def _seen(actor: Actor, order: "Facts | None") -> "Facts":
    if order is None or not policy.can_see(actor, order):
        raise no_such_order()
    return order


def no_such_order() -> NotFound:
    return NotFound("There is no such order.")


def history(caller: Caller, order_id: int, *, after: int, limit: int) -> History:
    """The events with version > *after*, at most *limit*: audit trail and offline recovery.

    Raises `NotFound` when the caller may not read it. Of a deleted order admins may.
    """
    actor, rows = _read(caller, [order_id])
    order = rows.get(order_id)
    if order is None or not policy.can_read_history(actor, order):
        raise no_such_order()
    events = eventlog.between([Span(order_id, after, order.version)], limit)[order_id]
    last = events[-1].version if events else max(after, order.version)
    return History(events, order.version, has_more=last < order.version)


def catch_up(
    caller: Caller, wanted: Wanted, budget: Budget = Budget()
) -> tuple[Actor, dict[int, CaughtUp | DomainError]]:
    """Where each order stands and what was missed since a version: the read half of a subscription.

    *wanted* maps order ids to the last version seen, `LATEST` to get the latest event too, or None
    for "only from now on". An order that the caller may not see yields a `NotFound`, a version that
    the order has not reached a `ValidationFailed`. One statement however many orders, two when
    something was missed, more when that was much; state and events agree.

    Raises `InvalidToken` when the caller's session has ended.
    """
    actor, rows = _read(caller, list(wanted))
    answers: dict[int, CaughtUp | DomainError] = {}
    spans = []
    for order_id, since in wanted.items():
        try:
            order = _seen(actor, rows.get(order_id))
        except NotFound as error:
            answers[order_id] = error
            continue
        after = order.version - 1 if isinstance(since, Start) else since
        if after is not None and after > order.version:
            answers[order_id] = ValidationFailed.at(
                "/after", f"must be at most {order.version}, the order's version"
            )
            continue
        missed = 0 if after is None else order.version - after
        reset = Reset.TOO_MANY if missed > REPLAY_LIMIT else None
        answers[order_id] = CaughtUp(view_of(actor, order), order.version, [], reset)
        if after is not None and 0 < missed <= REPLAY_LIMIT:
            spans.append(Span(order_id, after, order.version))
    _replay(answers, spans, budget)
    return actor, fit(answers, budget)


def _replay(
    answers: dict[int, CaughtUp | DomainError], spans: Sequence[Span], budget: Budget
) -> None:
    """Read what was missed into the *answers*, until there is more of it than the *budget*."""
    unread = deque(spans)
    number = size = 0
    while unread and number <= budget.events and size <= budget.bytes:
        for order_id, events in eventlog.between(_some_of(unread), REPLAY_LIMIT).items():
            answer = answers[order_id]
            assert isinstance(answer, CaughtUp)
            answers[order_id] = replace(answer, events=events, size=sum(map(_size, events)))
            number += len(events)
            size += sum(map(_size, events))
    for span in unread:
        answer = answers[span.order_id]
        assert isinstance(answer, CaughtUp)
        answers[span.order_id] = replace(answer, reset=Reset.ANSWER_FULL)


def _some_of(unread: deque[Span]) -> list[Span]:
    """Take what to read next: one span at least, else up to `_READ_AT_ONCE` events."""
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
    """The same answers with no more events than the *budget* allows: the first ones come first.

    So whoever asks again for those that found the answer full gets further each time.
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


# --- changing ----------------------------------------------------------------------------------

_row_queue = RowQueue()

_INSERT = text(
    f"""
    WITH {callers.ACTOR_CTE},
    o AS (
        INSERT INTO orders (customer_id, description)
        SELECT id, :description FROM actor
        RETURNING *),
    event AS (
        INSERT INTO order_events (order_id, version, type, status, actor_id, actor_name,
                                  actor_role, changes, customer_id)
        SELECT o.id, o.version, 'created', o.status, a.id, a.name, a.role,
               jsonb_build_object('description', o.description), o.customer_id
          FROM o CROSS JOIN actor a)
    SELECT a.id AS actor_id, a.name AS actor_name, a.role AS actor_role,
           o.id, o.description, o.status, o.version, o.customer_id, a.name AS customer_name,
           o.driver_id, CAST(NULL AS text) AS driver_name, o.created_at, o.updated_at, o.deleted_at
      FROM o CROSS JOIN actor a
    """
)


_NAMED = f"SELECT {ORDER_COLUMNS} FROM orders o {NAMES} WHERE o.id = :id"


def create(caller: Caller, description: str, *, key: str | None = None) -> OrderView:
    """Place an order for the caller.

    *key* is the client's Idempotency-Key: the same key with the same description yields the order
    that the first call made, at its present state. Raises `IdempotencyKeyReused` when the
    description differs, `Conflict` when that order has been deleted, `InvalidToken`.
    """
    parameters = {**callers.parameters(caller), "description": description}
    with db.transaction() as t:
        actor = callers.resolve(t, caller)
        if key is not None:
            made = _claim(t, actor, key, description)
            if made is not None:
                return _again(t, actor, made)
        row = t.execute(_INSERT, parameters).one_or_none()
        if row is None:  # signed out since the actor was read
            raise callers.session_revoked()
        db.appends(t)
        if key is not None:
            t.get_one(IdempotencyKey, (actor.id, key)).order_id = row.id
        return view_of(actor, facts_of(row))


def _claim(t: Transaction, actor: Actor, key: str, description: str) -> int | None:
    """Take the key for this transaction, or find the id of the order that was made under it.

    A second request with the key waits at the unique index until the first has ended.
    """
    fingerprint = hashlib.sha256(description.encode()).hexdigest()
    taken = t.execute(
        insert(IdempotencyKey)
        .values(user_id=actor.id, key=key, request_hash=fingerprint)
        .on_conflict_do_nothing()
        .returning(IdempotencyKey.key)
    ).scalar()
    if taken is not None:
        return None
    earlier = t.get_one(IdempotencyKey, (actor.id, key))
    if earlier.request_hash != fingerprint:
        raise IdempotencyKeyReused("This Idempotency-Key was used with another body.")
    return earlier.order_id


def _again(t: Transaction, actor: Actor, order_id: int) -> OrderView:
    row = t.execute(text(_NAMED), {"id": order_id}).one()
    if row.deleted_at is not None:
        raise Conflict("The order that was placed with this Idempotency-Key has been deleted.")
    return view_of(actor, facts_of(row))


# For a change: others that would change the order wait until this transaction ends. Inserts that
# refer to it do not.
_LOCK_ROW = "SELECT id FROM orders WHERE id = :id FOR NO KEY UPDATE"

# The hot path. The statement is the whole check: who asks, what it may do, from which states, at
# which version. It sees one moment of the database, so it must not wait: after a wait that moment
# is past, the caller's rights with it. Hence SKIP LOCKED: a row that somebody holds is as good as
# not there, and `_move_after_waiting` comes next. A row that was changed since that moment is
# judged again as it is now (READ COMMITTED), so of two conflicting changes one finds no row.
_MOVE_SQL = f"""
    WITH {callers.ACTOR_CTE},
    free AS ({_LOCK_ROW} SKIP LOCKED),
    o AS (
        UPDATE orders o
           SET status = :target, previous_status = o.status, version = o.version + 1
          FROM actor a, free
         WHERE o.id = free.id AND o.deleted_at IS NULL
           AND (a.role = 'admin' AND o.status = ANY (:as_admin)
                OR a.role = 'driver' AND o.status = ANY (:as_driver)
                   AND {callers.STAFF_SEES}
                OR o.customer_id = a.id AND o.status = ANY (:as_owner))
           AND (:if_version IS NULL OR o.version = :if_version)
        RETURNING o.*),
    event AS (
        INSERT INTO order_events (order_id, version, type, status, previous_status, actor_id,
                                  actor_name, actor_role, note, customer_id, driver_id)
        SELECT o.id, o.version, 'status_changed', o.status, o.previous_status, a.id,
               a.name, a.role, :note, o.customer_id, o.driver_id
          FROM o CROSS JOIN actor a)
    SELECT a.id AS actor_id, a.name AS actor_name, a.role AS actor_role, {ORDER_COLUMNS}
      FROM actor a CROSS JOIN (o {NAMES})
"""
_MOVE = db.Statement(
    _MOVE_SQL,
    **callers.CALLER,
    id="bigint",
    target="text",
    note="text",
    as_admin="text[]",
    as_driver="text[]",
    as_owner="text[]",
    if_version="integer",
)
_SOURCES: dict[Status, dict[str, list[str]]] = {
    target: {
        f"as_{standing.value}": [s.value for s in lifecycle.predecessors(target, standing)]
        for standing in Standing
    }
    for target in Status
}


def change_status(
    caller: Caller,
    order_id: int,
    target: Status,
    *,
    note: str | None = None,
    if_version: int | None = None,
) -> OrderView:
    """Move an order to *target*, appending its event, in one statement (when nobody holds it).

    Setting the status that the order already has changes nothing and yields the order as it is.

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
        **_SOURCES[target],
    }
    # Between the statement and the explanation of its failure the order may move on, and what then
    # stands there may allow the change after all: ask again, a few times at the most.
    move = _MOVE.one
    for _ in range(5):
        row = move(**parameters)
        if row is not None:
            return view_of(actor_of(caller, row), facts_of(row))
        unchanged = _why_not(caller, order_id, target, if_version)
        if unchanged is not None:
            return unchanged
        move = _move_after_waiting
    raise Unavailable("The order is being changed by many at once. Try again.")


def _move_after_waiting(**parameters: Any) -> Any:
    """`_MOVE` when somebody else holds the order: wait first, then judge by what is true then.

    Only this needs a turn. The statement by itself never waits, and would make a stuck queue look
    as if it moved.
    """
    with _row_queue.take(parameters["id"]), db.transaction() as t:
        t.execute(text(_LOCK_ROW), {"id": parameters["id"]})
        row = t.execute(text(_MOVE_SQL), parameters).one_or_none()
        if row is not None:
            db.appends(t)
        return row


def _why_not(
    caller: Caller, order_id: int, target: Status, if_version: int | None
) -> OrderView | None:
    """Explain a refused move by raising; the order when it is there already; None to try again."""
    actor, rows = _read(caller, [order_id])
    order = _seen(actor, rows.get(order_id))
    held = policy.standings(actor, order)
    somebody_may = lifecycle.may_ever_set(target, Standing)
    if somebody_may and not lifecycle.may_ever_set(target, held):
        raise Forbidden(f"You may not set an order to {target}.")
    if order.status == target:
        return view_of(actor, order)
    _require_version(order.version, if_version)
    allowed = lifecycle.next_statuses(lifecycle.status_of(order.status), held)
    if target in allowed:
        return None
    raise InvalidTransition(
        f"An order that is {order.status} cannot become {target}"
        + (f"; you may set {' or '.join(allowed)}." if allowed else "."),
        current=order.status,
        allowed=[status.value for status in allowed],
    )


def edit(
    caller: Caller,
    order_id: int,
    description: str,
    *,
    if_version: int | None = None,
) -> OrderView:
    """Change the description. The same description again changes nothing.

    Raises `NotFound`, `Forbidden` (a driver), `Conflict` (no longer editable), `VersionMismatch`.
    """
    with _row_queue.take(order_id), db.transaction() as t:
        actor, order, held = _locked(t, caller, order_id)
        if not policy.may_touch(held):
            raise Forbidden("Only the customer and admins may edit an order.")
        if order.description == description:
            return view_of(actor, order)
        _require_version(order.version, if_version)
        if not policy.can_edit(held, lifecycle.status_of(order.status)):
            raise Conflict(
                f"An order that is {order.status} can no longer be edited by you.",
                current=order.status,
            )
        changed = eventlog.append(
            t,
            order_id,
            actor,
            "description_changed",
            setting={"description": description},
            changes={"description": description},
        )
        return view_of(actor, _as_changed(order, changed, description=description))


def delete(caller: Caller, order_id: int, *, if_version: int | None = None) -> None:
    """Hide the order; its history stays.

    Raises `NotFound` (also the second time), `Forbidden`, `Conflict`, `VersionMismatch`.
    """
    with _row_queue.take(order_id), db.transaction() as t:
        actor, order, held = _locked(t, caller, order_id)
        if not policy.may_touch(held):
            raise Forbidden("Only the customer and admins may delete an order.")
        _require_version(order.version, if_version)
        if not policy.can_delete(held, lifecycle.status_of(order.status)):
            raise Conflict(
                f"An order that is {order.status} can no longer be deleted by you.",
                current=order.status,
            )
        # The database puts the time of the change in its place.
        eventlog.append(t, order_id, actor, "deleted", setting={"deleted_at": func.now()})


def assign_driver(
    caller: Caller,
    order_id: int,
    driver_id: int | None,
    *,
    if_version: int | None = None,
) -> OrderView:
    """Give the order to a driver, or to none. The same driver again changes nothing.

    Raises `NotFound`, `Forbidden` unless the caller is an admin, `ValidationFailed` when
    *driver_id* is not an active driver, `Conflict` when the order is final, `VersionMismatch`.
    """
    with _row_queue.take(order_id), db.transaction() as t:
        actor, order, _ = _locked(t, caller, order_id)
        callers.require_admin(actor)
        if order.driver_id == driver_id:
            return view_of(actor, order)
        _require_version(order.version, if_version)
        if lifecycle.status_of(order.status) in lifecycle.TERMINAL:
            raise Conflict(
                f"An order that is {order.status} needs no driver.", current=order.status
            )
        driver = None
        if driver_id is not None:
            driver = _active_driver(t, driver_id)
            # The driver's row, too, may have been waited for.
            callers.require_admin(callers.resolve(t, caller))
        shown = {"id": str(driver_id), "name": driver} if driver is not None else None
        changed = eventlog.append(
            t,
            order_id,
            actor,
            "driver_assigned",
            setting={"driver_id": driver_id},
            changes={"driver": shown},
        )
        facts = _as_changed(order, changed, driver_id=driver_id, driver_name=driver)
        return view_of(actor, facts)


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


def _locked(
    t: Transaction, caller: Caller, order_id: int
) -> tuple[Actor, "Facts", frozenset[Standing]]:
    """The order under its row lock, for a change.

    The caller is judged when the lock was won, not before: rights may end while it is waited for.
    """
    t.execute(text(_LOCK_ROW), {"id": order_id})
    rows = t.execute(text(_READ_SQL), {**callers.parameters(caller), "ids": [order_id]}).all()
    if not rows:
        raise callers.session_revoked()
    actor = actor_of(caller, rows[0])
    found = facts_of(rows[0]) if rows[0].id is not None else None
    order = _seen(actor, found)
    return actor, order, policy.standings(actor, order)


def _as_changed(order: "Facts", changed: eventlog.Changed, **values: Any) -> "Facts":
    """*order* after `eventlog.append`, with *values* in the place of what was there."""
    return replace(order, version=changed.version, updated_at=changed.updated_at, **values)


def _require_version(current: int, wanted: int | None) -> None:
    if wanted is not None and wanted != current:
        raise VersionMismatch(f"The order is at version {current}, not {wanted}.", current=current)


# --- rows to views: for the statements here and in `services.screens` ---------------------------


@dataclass(frozen=True, slots=True)
class Facts:
    """An order's row with the names that are shown beside it."""

    id: int
    description: str
    status: str
    version: int
    customer_id: int
    customer_name: str
    driver_id: int | None
    driver_name: str | None
    created_at: datetime
    updated_at: datetime
    is_deleted: bool


def facts_of(row: Row[Any]) -> Facts:
    return Facts(
        row.id,
        row.description,
        row.status,
        row.version,
        row.customer_id,
        row.customer_name,
        row.driver_id,
        row.driver_name,
        row.created_at,
        row.updated_at,
        row.deleted_at is not None,
    )


def actor_of(caller: Caller, row: Row[Any]) -> Actor:
    return Actor(row.actor_id, row.actor_name, Role(row.actor_role), caller.scope)


def view_of(actor: Actor, order: Facts) -> OrderView:
    held = policy.standings(actor, order)
    status = lifecycle.status_of(order.status)
    return OrderView(
        id=order.id,
        description=order.description,
        status=status,
        version=order.version,
        customer_id=order.customer_id,
        customer_name=order.customer_name,
        driver_id=order.driver_id,
        driver_name=order.driver_name,
        created_at=order.created_at,
        updated_at=order.updated_at,
        next_statuses=lifecycle.next_statuses(status, held),
        can_edit=policy.can_edit(held, status),
        can_delete=policy.can_delete(held, status),
    )
