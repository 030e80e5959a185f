"""Follows the two append-only logs: yields each row once, as soon as it is visible.

`order_events` says what changed, `access_changes` which sessions were revoked. The relay reads both
with one statement, hence in one snapshot: a revocation that precedes an event is never read later
than that event.

Rules
-----
1. A row is handed over once: when it becomes visible, however late its transaction commits and in
   whatever order ids and transaction ids were drawn. A transaction that stays open delays no other.
2. A read is one statement. Under READ COMMITTED that is one snapshot, so the rows and the new
   cursor agree. The cursor moves only when the rows are in the reader's hands: after a lost
   connection the same `Tail` goes on with the next connection.
3. A read costs what is new, not what is there: two index ranges for each log, whatever their size
   and however long a foreign transaction has been open.
4. A read is bounded: more than `MOST` rows raise `LogLost` instead of blocking the event loop.

The state of a cursor
---------------------
A cursor says which transactions are behind the reader: all up to `last`, the newest of which it has
seen a row, except those that were still `running` at that time. What is visible now and not behind
the cursor is exactly what is new:

    transaction     behind the cursor   read as
    xid > last      no                  new, as soon as it is visible
    in running      no                  new, as soon as it is visible
    other           yes                 never again

A cursor is not a snapshot, although it is written like one. The end of `pg_current_snapshot()` lies
higher than `last`, and after a crash PostgreSQL gives out again the transaction ids of which
nothing had reached the disk: those of transactions that rolled back, or only sent a NOTIFY. A
snapshot from before the crash counts them as over, and would hide what is committed under them
later. `last` was durable before any reader could see it, so whatever follows a crash lies above it.

An example
----------
    tail = Tail()
    with connection.cursor() as cursor:     # in autocommit
        tail.open(cursor)                   # from now on
        while True:
            revocations, events = tail.read(cursor)
            for revoked in revocations: ...
            for event in events: ...
            wait_for_a_hint_or_the_poll()

After a lost connection: `open` and `read` again. After `LogLost`, or on another `timeline`:
`restart`, and have every client ask for what it missed.

PostgreSQL: https://www.postgresql.org/docs/current/functions-info.html#FUNCTIONS-INFO-SNAPSHOT
"""

from dataclasses import dataclass
from typing import Any

from ordertrack import db
from ordertrack.eventlog import EVENT_COLUMNS, Event

# Rows of one read: some 50 ms of the event loop, and some megabytes. A client that is further
# behind catches up faster by version, order by order.
MOST = 5_000


class LogLost(Exception):
    """Reading cannot continue at the cursor: the database is an older copy, or too much is new."""


@dataclass(frozen=True, slots=True)
class Revoked:
    """A session was revoked, or (``session_id`` None) all sessions of a user."""

    id: int
    user_id: int
    session_id: int | None
    reason: str


@dataclass(frozen=True, slots=True)
class Cursor:
    """A place in both logs: behind it are the transactions up to `last`, except those `running`."""

    last: int
    running: frozenset[int]

    def __str__(self) -> str:
        """In PostgreSQL's notation of a snapshot: ``xmin:xmax:running``."""
        end = self.last + 1
        running = sorted(self.running)
        return f"{min(self.running, default=end)}:{end}:{','.join(map(str, running))}"

    @classmethod
    def at(cls, snapshot: str, last: int) -> "Cursor":
        """The cursor after a read in *snapshot*, when *last* is the newest transaction ever seen.

        Raises `LogLost` when *last* lies ahead of the snapshot: the database is an older copy.
        """
        _, end, running = snapshot.split(":")
        if last >= int(end):
            raise LogLost(f"transaction {last} was read, but now the next one is {end}")
        running_then = (int(xid) for xid in running.split(",") if xid)
        return cls(last, frozenset(xid for xid in running_then if xid <= last))


# NEW_ROWS: the rows of one log that are visible now and not behind the cursor $1 (see above). Both
# conditions are ranges of the index on xid; the list names a foreign transaction that is held open,
# and not everything since.
_NEW_ROWS = """
    SELECT '{log}' AS log, e.xid::text, {columns} FROM {log} AS e
     WHERE e.xid >= pg_snapshot_xmax($1)
       AND pg_visible_in_snapshot(e.xid, pg_current_snapshot())
    UNION ALL
    SELECT '{log}' AS log, e.xid::text, {columns} FROM {log} AS e
     WHERE e.xid = ANY (ARRAY(SELECT pg_snapshot_xip($1)))
       AND pg_visible_in_snapshot(e.xid, pg_current_snapshot())
"""
_NEW_EVENTS = _NEW_ROWS.format(
    log="order_events", columns=f"{EVENT_COLUMNS}, NULL::bigint, NULL::bigint, NULL::text"
)
# Both SELECTs of the union have the same columns, so each pads those of the other with NULLs.
_NEW_REVOCATIONS = _NEW_ROWS.format(
    log="access_changes", columns=f"e.id, {'NULL, ' * 13} e.user_id, e.session_id, e.reason"
)

# READ: the new rows of both logs and the snapshot in which they are visible. The outer join yields
# one row of NULLs when nothing is new. The limit only tells that there is too much, and never cuts
# a read in two: part of what is new in the order of ids may be the rest in the order of
# transactions. In the order of ids an order's versions ascend, because an id is drawn under the
# order's row lock.
_READ = f"""
    SELECT s.snapshot, e.*
      FROM (SELECT pg_current_snapshot()::text AS snapshot) AS s
      LEFT JOIN (SELECT * FROM ({_NEW_EVENTS} UNION ALL {_NEW_REVOCATIONS}) AS n
                  LIMIT {{limit}}) AS e ON true
     ORDER BY e.id
"""

# END: where the logs end now, as a snapshot and the newest transaction that is visible in it.
_NEWEST = """(SELECT e.xid FROM {log} AS e
               WHERE pg_visible_in_snapshot(e.xid, pg_current_snapshot())
               ORDER BY e.xid DESC LIMIT 1)"""
_END = f"""
    SELECT pg_current_snapshot()::text,
           GREATEST({_NEWEST.format(log="order_events")},
                    {_NEWEST.format(log="access_changes")})::text
"""

# TIMELINE: which cluster this is, and which timeline of it; NULL on a standby. The current WAL file
# names the timeline: the control file still names the old one after a promotion, until the next
# checkpoint.
_TIMELINE = """
    SELECT CASE WHEN pg_is_in_recovery() THEN NULL ELSE
           (SELECT system_identifier::text FROM pg_control_system())
           || '/' || left(pg_walfile_name(pg_current_wal_lsn()), 8) END
"""


def timeline(cursor: Any) -> str | None:
    """Which cluster, and which timeline of it, *cursor* reads; None on a standby.

    After a failover, a restore to an earlier moment or pg_upgrade it is another one, in which
    transactions that were read may never have happened, and their ids are given out again. A
    standby cannot be followed: its snapshots do not name the running transactions.
    """
    cursor.execute(_TIMELINE)
    found: str | None = cursor.fetchone()[0]
    return found


class Tail:
    """A reader of both logs from a `Cursor` on, which it keeps in memory.

    Each method takes a DB-API cursor on an autocommit connection, best one on which sequential
    scans are off: the logs are only read at their end, and PostgreSQL cannot know that of a table
    that it has not analysed yet.
    """

    def __init__(self) -> None:
        self._most = MOST
        read = _READ.format(limit=self._most + 1)
        self._statement = db.statement_name(read)
        # Planning takes several times as long as reading.
        self._prepare = f"PREPARE {self._statement} (pg_snapshot) AS {read}"
        self.position: Cursor | None = None

    def open(self, cursor: Any) -> None:
        """Prepare the statement on a new connection. The first time, begin at the logs' end."""
        cursor.execute(self._prepare)
        if self.position is None:
            self.restart(cursor)

    def restart(self, cursor: Any) -> None:
        """Begin at the logs' end, whatever was read before."""
        cursor.execute(_END)
        snapshot, last = cursor.fetchone()
        self.position = Cursor.at(snapshot, int(last or 0))

    def read(self, cursor: Any, command: str = "") -> tuple[list[Revoked], list[Event]]:
        """What became visible in each log since the last call, in the order of ids.

        Apply the revocations first: they may precede the events. *command* is SQL that is sent
        along, and runs before the read: both are done, or neither. Raises `LogLost`, and stays
        where it is; then `restart`.
        """
        assert self.position is not None, "open it first"
        first = f"{command}; " if command else ""
        cursor.execute(f"{first}EXECUTE {self._statement} (%s)", [str(self.position)])
        rows = cursor.fetchall()
        snapshot = rows[0][0]
        if rows[0][1] is None:
            rows = []
        if len(rows) > self._most:
            raise LogLost(f"more than {self._most} rows became visible since the last read")
        last = max((int(row[2]) for row in rows), default=0)
        self.position = Cursor.at(snapshot, max(self.position.last, last))
        revocations = [Revoked(row[3], *row[17:]) for row in rows if row[1] == "access_changes"]
        events = [Event(*row[3:17]) for row in rows if row[1] == "order_events"]
        return revocations, events
