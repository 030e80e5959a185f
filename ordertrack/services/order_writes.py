"""The statements that place orders and change their status, each for one call and for several.

Calls that come while such a statement runs go out together in the next one (`batching`): one round
trip and one commit for all of them, and less than half of the database's work for each. A call that
comes alone is not delayed, and runs the statement for one.

| what becomes of a group | what each call gets |
|---|---|
| it is committed | its row, or None: as from the statement for one |
| PostgreSQL refuses it (a constraint, a timeout, a full disk) | nothing was done: it runs alone |
| the connection is lost | `Unavailable`, its outcome is unknown: nothing is tried again |

A call that runs alone after all, because its group was refused or because another change of the
same order was in it, does so in its own request, beside the others.
"""

import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Engine

from ordertrack import db, lifecycle
from ordertrack.batching import Batcher
from ordertrack.extensions import db as extension
from ordertrack.extensions import state
from ordertrack.lifecycle import Standing, Status
from ordertrack.services import callers
from ordertrack.services.order_rows import COLUMNS, OrderRow

log = logging.getLogger(__name__)

# The parameters of a statement for one call, by name.
Values = Mapping[str, Any]


# --- groups --------------------------------------------------------------------------------------

# Calls in one statement. From 64 callers at once on, 32 do twice as many changes as 8.
_MOST: Final = 32

# Seconds after which a group's statement counts as stuck: calls that come then do not wait for it.
_STUCK: Final = 0.5


class _Alone:
    """The answer to a call that has to run alone."""


_ALONE: Final = _Alone()


class _Group:
    """Runs calls of one kind, one statement at a time: *one* for a single call, or *several*.

    *several* gets the parameters of each call, and yields as many answers: a row, None, or `_ALONE`
    """

    def __init__(
        self,
        one: db.Statement,
        several: Callable[[Sequence[Values]], Sequence[Any]],
        patience: float,
    ) -> None:
        self._one = one
        self._several = several
        # Two lanes would make smaller groups: a third more work for the database, at 16 callers.
        self._batcher: Batcher[Values, Any] = Batcher(
            self._run, lanes=1, most=_MOST, patience=patience
        )
        self._began = math.inf

    def call(self, values: Values) -> OrderRow | None:
        answer = _ALONE
        if time.monotonic() - self._began < _STUCK:
            answer = self._batcher.call(values)
        return self._one.one(**values) if answer is _ALONE else answer

    def _run(self, calls: Sequence[Values]) -> Sequence[Any]:
        self._began = time.monotonic()
        try:
            if len(calls) == 1:
                return [self._one.one(**calls[0])]
            return self._several(calls)
        except Exception as error:
            if len(calls) == 1 or not db.is_refusal(error):
                raise
            log.info("%d writes at once were refused, and each is tried alone", len(calls))
            return [_ALONE] * len(calls)
        finally:
            self._began = math.inf


class _Groups:
    """Those of one application."""

    __slots__ = ("moving", "placing")

    def __init__(self, patience: float) -> None:
        self.placing = _Group(PLACE, _place_several, patience)
        self.moving = _Group(MOVE, _move_several, patience)


# By the application's database: what runs for one application must not wait for another's.
_groups_of: WeakKeyDictionary[Engine, _Groups] = WeakKeyDictionary()


def _groups() -> _Groups:
    engine = extension.engine
    found = _groups_of.get(engine)
    if found is None:
        found = _groups_of.setdefault(engine, _Groups(state().settings.db_pool_timeout))
    return found


# --- placing -------------------------------------------------------------------------------------

_EVENT_COLUMNS = "order_id, version, type, status, actor_id, actor_name, actor_role, customer_id"

# Inserts the first event of the order `o`, which the caller `a` places.
CREATED = f"""
    event AS (
        INSERT INTO order_events ({_EVENT_COLUMNS}, changes)
        SELECT o.id, o.version, 'created', o.status, a.id, a.name, a.role, o.customer_id,
               jsonb_build_object('description', o.description)
          FROM o CROSS JOIN actor a)
"""

# Inserts an order and its first event, if the caller's session is good.
PLACE = db.Statement(
    f"""
    WITH {callers.ACTOR_CTE},
    o AS (
        INSERT INTO orders (customer_id, description)
        SELECT id, :description FROM actor
        RETURNING *),
    {CREATED}
    SELECT {COLUMNS} FROM o CROSS JOIN actor a
    """,
    **callers.CALLER,
    description="text",
)

# The same for several callers. The n-th order that is inserted is that of the n-th caller whose
# session is good: an INSERT … SELECT … ORDER BY draws the ids in that order.
_PLACE_SEVERAL = db.Statement(
    f"""
    WITH a AS (
        SELECT w.place, w.description, u.*, row_number() OVER (ORDER BY w.place) AS n
          FROM unnest(:users, :sessions, :descriptions)
               WITH ORDINALITY AS w (user_id, session_id, description, place)
          CROSS JOIN {callers.GOOD_SESSION} AS u),
    inserted AS (
        INSERT INTO orders (customer_id, description)
        SELECT a.id, a.description FROM a ORDER BY a.n
        RETURNING *),
    o AS (SELECT *, row_number() OVER (ORDER BY id) AS n FROM inserted),
    event AS (
        INSERT INTO order_events ({_EVENT_COLUMNS}, changes)
        SELECT o.id, o.version, 'created', o.status, a.id, a.name, a.role, o.customer_id,
               jsonb_build_object('description', o.description)
          FROM o JOIN a ON a.n = o.n)
    SELECT a.place, {COLUMNS} FROM o JOIN a ON a.n = o.n
    """,
    users="bigint[]",
    sessions="bigint[]",
    descriptions="text[]",
)


def place(values: Values) -> OrderRow | None:
    """Run `PLACE`, or place the order together with others. None: the session was revoked."""
    return _groups().placing.call(values)


def _place_several(calls: Sequence[Values]) -> Sequence[Any]:
    rows = _PLACE_SEVERAL.all(
        users=db.array(call["user"] for call in calls),
        sessions=db.array(call["session"] for call in calls),
        descriptions=[call["description"] for call in calls],
    )
    placed = {row.place: row for row in rows}
    return [placed.get(n) for n in range(1, len(calls) + 1)]


# --- changing the status -------------------------------------------------------------------------

# Locks an order for a change: other changes of it wait until this transaction ends. Inserts that
# refer to it do not.
LOCK_ROW = "SELECT id FROM orders WHERE id = :id FOR NO KEY UPDATE"

# Moves an order to another status and appends the event: the hot path. The statement is the whole
# check: the session, the caller's rights, the order's status and version. It sees one snapshot of
# the database, so it must not wait: after a wait that snapshot is out of date, the caller's rights
# with it. Hence SKIP LOCKED: a row that another transaction holds counts as not found. A row that
# was changed since the snapshot is checked again as it is now (READ COMMITTED), so in a race of two
# conflicting changes one finds no row.
MOVE_SQL = f"""
    WITH {callers.ACTOR_CTE},
    free AS ({LOCK_ROW} SKIP LOCKED),
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
    SELECT {COLUMNS} FROM o CROSS JOIN actor a
"""
MOVE = db.Statement(
    MOVE_SQL,
    **callers.CALLER,
    id="bigint",
    target="text",
    note="text",
    as_admin="text[]",
    as_driver="text[]",
    as_owner="text[]",
    if_version="integer",
)

# The statuses from which each standing may move an order to a target: parameters of `MOVE`.
PREDECESSORS: Final[dict[Status, dict[str, list[str]]]] = {
    target: {
        f"as_{standing.value}": [s.value for s in lifecycle.predecessors(target, standing)]
        for standing in Standing
    }
    for target in Status
}


def _steps(standing: Standing) -> str:
    """A condition of SQL: whether *standing* may take the order `o` to the status `a.target`."""
    steps = [
        f"'{status.value}>{target.value}'"
        for target in Status
        for status in lifecycle.predecessors(target, standing)
    ]
    return f"o.status || '>' || a.target IN ({', '.join(steps)})"


# The same for several orders, each named once. It does not wait either.
_MOVE_SEVERAL = db.Statement(
    f"""
    WITH a AS (
        SELECT w.order_id, w.target, w.note, w.if_version, u.*,
               (u.role = 'admin' OR u.role = 'driver' AND w.drivers_see_all) AS sees_all
          FROM unnest(:users, :sessions, :drivers_see_all, :ids, :targets, :notes, :versions)
               AS w (user_id, session_id, drivers_see_all, order_id, target, note, if_version)
          CROSS JOIN {callers.GOOD_SESSION} AS u),
    free AS (SELECT id FROM orders WHERE id = ANY (:ids) ORDER BY id FOR NO KEY UPDATE SKIP LOCKED),
    o AS (
        UPDATE orders o
           SET status = a.target, previous_status = o.status, version = o.version + 1
          FROM a JOIN free ON free.id = a.order_id
         WHERE o.id = free.id AND o.deleted_at IS NULL
           AND (a.role = 'admin' AND {_steps(Standing.ADMIN)}
                OR a.role = 'driver' AND {_steps(Standing.DRIVER)}
                   AND {callers.STAFF_SEES}
                OR o.customer_id = a.id AND {_steps(Standing.OWNER)})
           AND (a.if_version IS NULL OR o.version = a.if_version)
        RETURNING o.*, a.id AS actor_id, a.name AS actor_name, a.role AS actor_role, a.note),
    event AS (
        INSERT INTO order_events (order_id, version, type, status, previous_status, actor_id,
                                  actor_name, actor_role, note, customer_id, driver_id)
        SELECT o.id, o.version, 'status_changed', o.status, o.previous_status, o.actor_id,
               o.actor_name, o.actor_role, o.note, o.customer_id, o.driver_id
          FROM o)
    SELECT {COLUMNS}
      FROM o
      CROSS JOIN LATERAL (SELECT o.actor_id, o.actor_name, o.actor_role) AS a (id, name, role)
    """,
    users="bigint[]",
    sessions="bigint[]",
    drivers_see_all="boolean[]",
    ids="bigint[]",
    targets="text[]",
    notes="text[]",
    versions="integer[]",
)


def move(values: Values) -> OrderRow | None:
    """Run `MOVE`, or change the status together with others. None: it was not changed."""
    return _groups().moving.call(values)


def _move_several(calls: Sequence[Values]) -> Sequence[Any]:
    first: dict[int, Values] = {}  # change of each order; the others come after it, each alone
    for call in calls:
        first.setdefault(call["id"], call)
    changes = first.values()
    rows = _MOVE_SEVERAL.all(
        users=db.array(call["user"] for call in changes),
        sessions=db.array(call["session"] for call in changes),
        drivers_see_all=db.array(call["drivers_see_all"] for call in changes),
        ids=db.array(first),
        targets=db.array(call["target"] for call in changes),
        notes=[call["note"] for call in changes],
        versions=db.array(call["if_version"] for call in changes),
    )
    moved = {row.id: row for row in rows}
    return [moved.get(call["id"]) if first[call["id"]] is call else _ALONE for call in calls]
