"""Runs transactions and prepared statements, and says what a database error means.

Two ways in: `transaction()` for use cases of several steps, `Statement` for those that are one
statement and on a hot path. Both turn transient errors into `errors.Unavailable`; every other
database error is a defect and is raised unchanged. A connection that died while it was idle is
replaced before anything is sent. A read that loses its connection is retried once on another; a
write never, because its outcome is unknown.
"""

import hashlib
import re
import time
from collections import namedtuple
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import psycopg2
from psycopg2 import errors as postgres_errors
from sqlalchemy import Row, TextClause, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord

from ordertrack.config import Settings, SettingsError
from ordertrack.connector import Connector
from ordertrack.errors import TookTooLong, Unavailable
from ordertrack.eventlet_support import NoAnswer, has_input
from ordertrack.extensions import db

T = TypeVar("T")

# SQLSTATEs of transient errors: whole classes (connection exceptions, as poolers report them; too
# few resources, such as connections, memory or disk; operator intervention, such as timeouts, start
# and stop), and single ones: lock_not_available, serialization_failure, deadlock_detected,
# read_only_sql_transaction (the server became a standby), idle_in_transaction_session_timeout and
# transaction_timeout. https://www.postgresql.org/docs/current/errcodes-appendix.html
_TRANSIENT_CLASSES = frozenset({"08", "53", "57"})
_TRANSIENT = frozenset({"55P03", "40001", "40P01", "25006", "25P03", "25P04"})

# With which a pooler reports that it lost its own connection to PostgreSQL.
_LOST_BY_A_POOLER = frozenset({"08000", "08003", "08006", "08007", "08P01"})


@dataclass(slots=True)
class PoolStats:
    """How often this process had to wait for a connection. Counters are never reset."""

    waiting: int = 0  # now
    waits: int = 0
    wait_seconds: float = 0.0
    timeouts: int = 0


pool_stats = PoolStats()


class CountingPool(QueuePool):
    """SQLAlchemy's pool, which also counts waits and gives out bare connections.

    `bare_connection` leaves out SQLAlchemy's tracking and its reset at return, which cost a tenth
    of a small request.
    """

    def _do_get(self) -> ConnectionPoolEntry:
        entry = self._wait_for_one()
        connection: Any = entry.dbapi_connection
        # On a good connection the server sends nothing without a query. Input means that it has
        # closed; the check costs a microsecond. An invalidated entry connects again when used.
        if connection is not None and (connection.closed or has_input(connection.fileno())):
            entry.invalidate()
        return entry

    def _wait_for_one(self) -> ConnectionPoolEntry:
        if self.checkedout() < self.size():
            return super()._do_get()
        began = time.monotonic()
        pool_stats.waits += 1
        pool_stats.waiting += 1
        try:
            return super()._do_get()
        finally:
            pool_stats.waiting -= 1
            pool_stats.wait_seconds += time.monotonic() - began

    @contextmanager
    def bare_connection(self) -> Iterator[tuple[Any, dict[Any, Any]]]:
        """A psycopg2 connection in autocommit, and a dictionary that lives as long as it does."""
        entry = cast(_ConnectionRecord, self._do_get())
        try:
            connection: Any = entry.get_connection()
            connection.autocommit = True
            try:
                yield connection, entry.info
            finally:
                if not connection.closed:
                    connection.autocommit = False
        except BaseException as error:
            if entry.dbapi_connection is not None and cast(Any, entry.dbapi_connection).closed:
                entry.invalidate(error)
                # The others most likely died with it: replace them all at once.
                db.engine.dispose()
            raise
        finally:
            self._do_return_conn(entry)


def connector(settings: Settings) -> Connector:
    """What opens the pool's connections, with bounded waits."""
    if settings.db_dsn is None:
        raise SettingsError("DB_DSN", "is not set, and no embedded database was started")
    return Connector(
        settings.db_dsn,
        session={
            "statement_timeout": str(settings.statement_timeout_ms),
            # Half, because a contended row has two locks in PostgreSQL: the place at the head of
            # the queue, and then the row itself. The timeout holds for each.
            "lock_timeout": str(settings.lock_timeout_ms // 2),
            "idle_in_transaction_session_timeout": str(settings.statement_timeout_ms * 2),
        },
    )


def engine_options(settings: Settings) -> dict[str, Any]:
    """The arguments of ``create_engine`` for a bounded pool of such connections."""

    class Pool(CountingPool):
        def __init__(self, creator: Any, **options: Any) -> None:
            # The engine's own option `pool_timeout` is truncated to whole seconds.
            super().__init__(creator, **{**options, "timeout": settings.db_pool_timeout})

    return {
        "poolclass": Pool,
        "creator": connector(settings),
        # Errors are logged, and parameters may hold secrets: a password's hash, a note.
        "hide_parameters": True,
        "pool_size": settings.db_pool_size,
        "max_overflow": 0,
        # The connection used last is the least likely to have died in the meantime.
        "pool_use_lifo": True,
    }


@contextmanager
def unavailable_when_down() -> Iterator[None]:
    """Turn transient errors into `Unavailable`; let all others through."""
    try:
        yield
    except exc.TimeoutError as error:  # the pool was empty for too long
        pool_stats.timeouts += 1
        raise Unavailable("All database connections are busy. Try again shortly.") from error
    except (exc.DBAPIError, psycopg2.Error) as error:
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        state = getattr(original, "pgcode", None)
        if state == "57014":
            raise TookTooLong("The database takes too long to answer. Try again.") from error
        if state == "55P03":
            raise Unavailable("The order is locked by another change. Try again.") from error
        if is_transient(original):
            raise Unavailable("The database cannot answer right now. Try again.") from error
        raise


def is_transient(error: Any) -> bool:
    """Whether a DB-API error goes away by itself, so that the same request may succeed later."""
    if not isinstance(error, psycopg2.Error):
        return False
    state = error.pgcode
    if state is None:  # no server sent it: the connection was refused or lost
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return state in _TRANSIENT or state[:2] in _TRANSIENT_CLASSES


def retry_read_once(read: Callable[[], T]) -> T:
    """Call *read*, and again when its connection turned out to be lost.

    Only for reads. `NoAnswer` is not retried: that caller has waited long enough already.
    """
    try:
        return read()
    except (exc.DBAPIError, psycopg2.Error) as error:
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        if isinstance(original, NoAnswer) or not _is_lost_connection(original):
            raise
    return read()


def _is_lost_connection(error: Any) -> bool:
    """Whether *error* says that the connection was closed, with or without a message."""
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) and (
        error.pgcode is None or error.pgcode.startswith("57P0")
    )


def is_refusal(error: Exception) -> bool:
    """Whether PostgreSQL refused a statement, so that for sure nothing of it was done.

    Not so when the connection was lost, or when PostgreSQL ended it: the statement's outcome is
    unknown then. *error* is what a `Statement` raised.
    """
    cause = error.__cause__ if isinstance(error, Unavailable) else error
    return (
        isinstance(cause, psycopg2.Error)
        and cause.diag.severity_nonlocalized == "ERROR"
        and cause.pgcode not in _LOST_BY_A_POOLER
    )


@contextmanager
def transaction() -> Iterator[Session]:
    """One transaction: committed when the block ends, rolled back when it raises.

    Raises `Unavailable` when the database cannot answer; a COMMIT whose answer was lost counts, and
    its outcome is then unknown.
    """
    session = db.session()
    with unavailable_when_down():
        try:
            yield session
            session.commit()
        except BaseException:
            session.rollback()
            raise
        finally:
            appended = session.info.pop("appended", False)
            db.session.remove()
    if appended:
        _call_after_append()


# Callbacks after each commit that appended to a log which the relay tails. They only wake it early:
# it also polls.
after_append: list[Callable[[], object]] = []


def mark_appended(session: Session) -> None:
    """Mark the transaction as one that appends to a log, for `after_append`."""
    session.info["appended"] = True


def _call_after_append() -> None:
    for callback in after_append:
        callback()


# FOR UPDATE counts as well: a transaction that locks a row is about to write.
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)

_APPENDS = re.compile(r"\bINSERT\s+INTO\s+(order_events|access_changes)\b", re.IGNORECASE)


def statement_name(sql: str) -> str:
    """The name under which *sql* is prepared: the same in every process."""
    return f"ordertrack_{hashlib.sha256(sql.encode()).hexdigest()[:16]}"


class Statement:
    """A use case that is one statement: prepared once per connection, run in autocommit.

    It takes one round trip, and the statement is the transaction. It is prepared because planning
    the larger ones takes PostgreSQL four times as long as running them, and it runs on a bare
    connection because SQLAlchemy's execution costs more than psycopg2's.

    *types* declares the parameters: ``Statement("… WHERE id = :id", id="bigint")``. Every call
    gives all of them. psycopg2 has no server-side preparation, so this is SQL's PREPARE, and a
    pooler in between must pool by session. The name is a hash of the text, so that in a session
    that had another user before, the name means the same statement or none.
    """

    def __init__(self, sql: str, **types: str) -> None:
        numbers = {name: f"${n}" for n, name in enumerate(types, 1)}
        sql = re.sub(r"(?<!:):([a-z_]+)", lambda match: numbers[match[1]], sql)
        declared = f"({', '.join(types.values())})" if types else ""
        self._name = statement_name(declared + sql)
        self._reads = not _WRITES.search(sql)
        self._appends = bool(_APPENDS.search(sql))
        self._prepare = f"PREPARE {self._name} {declared} AS {sql}"
        values = ", ".join(f"%({name})s" for name in types)
        self._execute = f"EXECUTE {self._name} ({values})" if types else f"EXECUTE {self._name}"
        self._row: Any = None  # the class of its rows, known after the first time

    def all(self, **values: Any) -> list[Any]:
        """The rows, as named tuples. Raises `Unavailable` when the database cannot answer."""
        with unavailable_when_down():
            if self._reads:
                return retry_read_once(lambda: self._run(values))
            rows = self._run(values)
        if rows and self._appends:
            _call_after_append()
        return rows

    def _run(self, values: Mapping[str, Any]) -> list[Any]:
        pool = cast(CountingPool, db.engine.pool)
        with pool.bare_connection() as (connection, known):
            cursor = connection.cursor()
            if self._name not in known:
                # An earlier user of a pooler's session may have prepared it already.
                with suppress(postgres_errors.DuplicatePreparedStatement):
                    cursor.execute(self._prepare)
                known[self._name] = True
            cursor.execute(self._execute, values)
            if self._row is None:
                self._row = _row_class(cursor.description)
            return [*map(self._row._make, cursor.fetchall())]

    def one(self, **values: Any) -> Any:
        """The first row, or None."""
        rows = self.all(**values)
        return rows[0] if rows else None


def array(values: Iterable[object]) -> str:
    """An array of numbers, booleans, names or None as a parameter of a `Statement`.

    As text, which PostgreSQL reads faster than the ARRAY[…] that psycopg2 makes of a list. Not for
    texts of users, which would have to be quoted.
    """
    return f"{{{','.join('NULL' if value is None else str(value) for value in values)}}}"


_ANSWER = Statement("SELECT 1 AS one")


def require_answer() -> None:
    """Raises `Unavailable` unless the database answers a query, through the pool."""
    _ANSWER.all()


def _row_class(description: Any) -> Any:
    # Made once for each statement; psycopg2's NamedTupleCursor looks it up at every fetch.
    return namedtuple("Row", [column.name for column in description])


def fetch_all(
    statement: TextClause, parameters: Mapping[str, Any], *, settings: str | None = None
) -> Sequence[Row[Any]]:
    """Run a read whose text varies, in a transaction of its own.

    *settings* is SQL that runs first: ``SET LOCAL …`` for that transaction.
    """

    def read() -> Sequence[Row[Any]]:
        session = db.session()
        try:
            if settings is not None:
                session.execute(text(settings))
            return session.execute(statement, parameters).all()
        finally:
            db.session.remove()

    with unavailable_when_down():
        return retry_read_once(read)
