"""The log: the one home of ordering.

Every change of an order appends one row to ``order_events`` in the transaction that makes the
change; appending is the only way to announce anything. Readers of the log are the history
endpoint, replay for a client that comes back, and the relay that tails it.

Within an order, ``version`` counts 1, 2, 3 … without gaps, because it is taken under the order's
row lock. Between orders there is no order to keep: transactions become visible in whatever order
they commit, and a `Tail` loses none of them whatever that order is.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

from sqlalchemy import Text, event, insert, literal, select, update
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Session, object_session

from ordertrack import db
from ordertrack.models import Order, OrderEvent, Revocation
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


@dataclass(frozen=True, slots=True)
class Changed:
    """Where an order stands after a change."""

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
    allowed. The event's transaction and time are the database's to say (migration 0003). Callers'
    status changes do not come through here: `services.orders.change_status` checks, moves and
    appends within its one statement.
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
def _note_the_append(_mapper: object, _connection: object, row: Revocation) -> None:
    session = object_session(row)
    if session is not None:
        db.mark_appended(session)


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


_SUMMARY = db.Statement(
    f"""
    SELECT {_COLUMNS}
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


# --- tailing -----------------------------------------------------------------------------------
#
# A cursor says which transactions a reader has behind it: all up to `last`, the newest whose rows
# it was given, except those that were still `running` then. What is visible now and not behind it
# is exactly what it has not seen, in whatever order the ids came. Both conditions stay cheap
# however long a foreign transaction is held open: the list names that transaction and not
# everything since.
#
# Why not simply the last snapshot, `pg_current_snapshot()`, whose end lies higher? After a crash
# PostgreSQL gives out again the transaction ids of which nothing had reached the disk: those of
# transactions that rolled back, or only notified. A snapshot from before the crash counts them as
# over, and would hide what is committed under them afterwards. `last` was committed durably before
# anybody could see it, so what comes after a crash lies above it.

_NEW = """
    SELECT e.xid::text, {columns} FROM {table} AS e
     WHERE e.xid >= pg_snapshot_xmax($1)
       AND pg_visible_in_snapshot(e.xid, pg_current_snapshot())
    UNION ALL
    SELECT e.xid::text, {columns} FROM {table} AS e
     WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip($1)))
       AND pg_visible_in_snapshot(e.xid, pg_current_snapshot())
"""

# One statement is one snapshot under READ COMMITTED: the rows and the cursor agree. The outer join
# yields one row of NULLs when nothing is new. The limit bounds the memory and the time that one
# read may take; it only tells that there is too much, and never cuts a read in two, because part of
# what is new in one order (of ids) may be the rest in the other (of transactions).
_TAIL = """
    SELECT s.snapshot, e.*
      FROM (SELECT pg_current_snapshot()::text AS snapshot) AS s
      LEFT JOIN (SELECT * FROM ({new}) AS n LIMIT {limit}) AS e ON true
     ORDER BY e.id
"""

# Rows of one read: some 50 ms of the loop, and some megabytes. Whoever is further behind than that
# reads faster by version, order by order, than by waiting for everybody's events.
MOST = 5_000

# Where the log of {table} ends now.
_START = """
    SELECT pg_current_snapshot()::text,
           (SELECT e.xid::text FROM {table} AS e
             WHERE pg_visible_in_snapshot(e.xid, pg_current_snapshot())
             ORDER BY e.xid DESC LIMIT 1)
"""


# Which history of which cluster this is. After a failover, a restore to an earlier moment or
# pg_upgrade it is another one, in which transactions that were read may never have happened, and
# their ids are given out again. (The control file names the timeline of the last checkpoint, which
# after a promotion is still the old one.)
_HISTORY = """
    SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE
           (SELECT system_identifier::text FROM pg_control_system())
           || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) END
"""


def history(cursor: Any) -> str | None:
    """Which cluster, and which timeline of it, *cursor* reads; None on a standby.

    A standby is no place to tail: its snapshots do not name the transactions that are running.
    """
    cursor.execute(_HISTORY)
    found: str | None = cursor.fetchone()[0]
    return found


class LogLost(Exception):
    """The log cannot be read on from where it was: it is older than that place, or far ahead."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in the log: behind it are transactions up to `last`, but for those `running`."""

    last: int
    running: frozenset[int]

    def __str__(self) -> str:
        """In PostgreSQL's notation of a snapshot."""
        end = self.last + 1
        running = sorted(self.running)
        return f"{min(self.running, default=end)}:{end}:{','.join(map(str, running))}"

    @classmethod
    def at(cls, snapshot: str, last: int) -> "Cursor":
        """After a read in *snapshot* by which the newest transaction ever seen was *last*.

        Raises `LogLost` when *last* lies ahead of the snapshot.
        """
        _, end, running = snapshot.split(":")
        if last >= int(end):
            raise LogLost(f"transaction {last} was read, but now the next one is {end}")
        open_then = (int(xid) for xid in running.split(",") if xid)
        return cls(last, frozenset(xid for xid in open_then if xid <= last))


Entry = TypeVar("Entry")


class Tail(Generic[Entry]):
    """A reader of a log table: yields each of its rows once, as they become visible.

    Its place is kept in memory and moves when rows are handed over. So whoever loses the connection
    opens the same `Tail` on the next one and goes on.

    *cursor* is always a DB-API cursor on an autocommit connection, best one on which sequential
    scans are off: the log is only ever read at its end, and PostgreSQL cannot know that of a table
    that it has not analysed yet.
    """

    def __init__(self, table: str, columns: str, entry: Callable[..., Entry]) -> None:
        self._entry = entry
        self._start = _START.format(table=table)
        new = _NEW.format(table=table, columns=columns)
        self._most = MOST
        read = _TAIL.format(new=new, limit=self._most + 1)
        self._name = db.statement_name(read)
        # Planning takes several times as long as reading.
        self._prepare = f"PREPARE {self._name} (pg_snapshot) AS {read}"
        self.place: Cursor | None = None

    def open(self, cursor: Any) -> None:
        """Get ready on a new connection. The first time, want what becomes visible from now on."""
        cursor.execute(self._prepare)
        if self.place is None:
            self.start(cursor)

    def start(self, cursor: Any) -> None:
        """Want what becomes visible from now on, whatever was read before."""
        cursor.execute(self._start)
        snapshot, last = cursor.fetchone()
        self.place = Cursor.at(snapshot, int(last or 0))

    def read(self, cursor: Any) -> list[Entry]:
        """What became visible since the last call, in id order.

        In id order an order's versions ascend, because ids are drawn under the order's row lock.
        Raises `LogLost`; then `start` anew, and let nobody think that nothing was missed.
        """
        assert self.place is not None, "open it first"
        cursor.execute(f"EXECUTE {self._name} (%s)", [str(self.place)])
        found = cursor.fetchall()
        new = [row for row in found if row[1] is not None]
        if len(new) > self._most:
            raise LogLost(f"more than {self._most} rows became visible since the last read")
        last = max((int(row[1]) for row in new), default=0)
        self.place = Cursor.at(found[0][0], max(self.place.last, last))
        return [self._entry(*row[2:]) for row in new]


@dataclass(frozen=True, slots=True)
class AccessEnded:
    """A right that ended: of one session, or (``session_id`` None) of all of a user's."""

    id: int
    user_id: int
    session_id: int | None
    reason: str


def events() -> Tail[Event]:
    """A reader of the orders' log."""
    return Tail("order_events", _COLUMNS, Event)


def ended_access() -> Tail[AccessEnded]:
    """A reader of the rights that end."""
    return Tail("access_changes", "e.id, e.user_id, e.session_id, e.reason", AccessEnded)
