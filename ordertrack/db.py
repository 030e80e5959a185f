"""Transactions, and what a database error means.

Two ways in: `transaction()` for use cases of several steps, `Statement` for those that are one
statement and in a hurry. Both turn "the database cannot answer now" into `errors.Unavailable`;
every other database error is a defect and stays what it is. A connection that died while nobody
used it is replaced before anything is sent, and a read whose connection dies under it is done once
more on another; a write never, because its outcome is unknown.
"""

import hashlib
import re
import time
from collections import namedtuple
from collections.abc import Callable, Iterator, Mapping, Sequence
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

# SQLSTATEs that say "not now": whole classes (connection exceptions, as poolers report them; too
# few resources, such as connections, memory or disk; the operator's intervention, timeouts, start
# and stop), and single ones: lock_not_available, serialization_failure, deadlock_detected,
# read_only_sql_transaction (this is a standby by now), idle_in_transaction_session_timeout and
# transaction_timeout. https://www.postgresql.org/docs/current/errcodes-appendix.html
_PASSING_CLASSES = frozenset({"08", "53", "57"})
_PASSING = frozenset({"55P03", "40001", "40P01", "25006", "25P03", "25P04"})


@dataclass(slots=True)
class PoolStats:
    """How often this process had to wait for a connection. Plain numbers; nothing is reset."""

    waiting: int = 0  # now
    waits: int = 0
    wait_seconds: float = 0.0
    timeouts: int = 0


pool_stats = PoolStats()


class CountingPool(QueuePool):
    """The stock pool. It counts the times when all connections are in use, and lends to
    `Statement` without what SQLAlchemy puts around a connection: its own tracking and the reset
    at return cost a tenth of a small request.
    """

    def _do_get(self) -> ConnectionPoolEntry:
        entry = self._wait_for_one()
        connection: Any = entry.dbapi_connection
        # Nothing comes unasked on a connection that lives. What does is the server's farewell, and
        # to notice it costs a microsecond. Whoever gets the entry then connects anew.
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
    def lend(self) -> Iterator[tuple[Any, dict[Any, Any]]]:
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
                # The others most likely died with it: do not find out one by one.
                db.engine.dispose()
            raise
        finally:
            self._do_return_conn(entry)


def connector(settings: Settings) -> Connector:
    """Opens the pool's connections: bounded waits, UTC."""
    if settings.db_dsn is None:
        raise SettingsError("DB_DSN", "is not set, and no embedded database was started")
    return Connector(
        settings.db_dsn,
        session={
            "statement_timeout": str(settings.statement_timeout_ms),
            # Half, because to PostgreSQL a row that several want has two locks: the place at the
            # head of the queue, and then the row itself. Each is waited for so long.
            "lock_timeout": str(settings.lock_timeout_ms // 2),
            "idle_in_transaction_session_timeout": str(settings.statement_timeout_ms * 2),
        },
    )


def engine_options(settings: Settings) -> dict[str, Any]:
    """What Flask-SQLAlchemy hands to ``create_engine``: a bounded pool of such connections."""

    class Pool(CountingPool):
        def __init__(self, creator: Any, **options: Any) -> None:
            # The engine's own option `pool_timeout` would be cut to whole seconds.
            super().__init__(creator, **{**options, "timeout": settings.db_pool_timeout})

    return {
        "poolclass": Pool,
        "creator": connector(settings),
        # Errors are logged, and parameters hold what must not be: a password's hash, a note.
        "hide_parameters": True,
        "pool_size": settings.db_pool_size,
        "max_overflow": 0,
        # The connection used last is the one least likely to have died in the meantime, and the
        # surplus of a busy hour is left alone until it does.
        "pool_use_lifo": True,
    }


@contextmanager
def unavailable_when_down() -> Iterator[None]:
    """Translate what passes by itself into `Unavailable`; let everything else through."""
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
        if is_passing(original):
            raise Unavailable("The database cannot answer right now. Try again.") from error
        raise


def is_passing(error: Any) -> bool:
    """Whether a DB-API error says "not now", about the database or about the connection to it."""
    if not isinstance(error, psycopg2.Error):
        return False
    state = error.pgcode
    if state is None:  # a connection that was refused or lost; what a living server says has one
        return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError)
    return state in _PASSING or state[:2] in _PASSING_CLASSES


def read_twice(read: Callable[[], T]) -> T:
    """Call *read*, and once more when its connection was lost: it died between two requests.

    Only for what changes nothing. Who got no answer at all has waited long enough already.
    """
    try:
        return read()
    except (exc.DBAPIError, psycopg2.Error) as error:
        original = error.orig if isinstance(error, exc.DBAPIError) else error
        if isinstance(original, NoAnswer) or not _is_loss(original):
            raise
    return read()


def _is_loss(error: Any) -> bool:
    """Whether *error* says that the connection has ended: without a word, or by a farewell."""
    return isinstance(error, psycopg2.OperationalError | psycopg2.InterfaceError) and (
        error.pgcode is None or error.pgcode.startswith("57P0")
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
            appended = session.info.pop("appends", False)
            db.session.remove()
    if appended:
        _tell_of_an_append()


# Called after each commit that appended to a log that is tailed: a hint, on which nothing depends.
on_append: list[Callable[[], object]] = []


def appends(session: Session) -> None:
    """Say that this transaction appends to a log that is tailed."""
    session.info["appends"] = True


def _tell_of_an_append() -> None:
    for tell in on_append:
        tell()


# Also FOR UPDATE: who wants a lock is about to write.
_WRITES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE)\b", re.IGNORECASE)

_APPENDS = re.compile(r"\bINSERT\s+INTO\s+(order_events|access_changes)\b", re.IGNORECASE)


def statement_name(sql: str) -> str:
    """The name under which *sql* is prepared: the same for the same text, in every process."""
    return f"ordertrack_{hashlib.sha256(sql.encode()).hexdigest()[:16]}"


class Statement:
    """A use case that is one statement: prepared once per connection, run in autocommit.

    One round trip, and the statement is the transaction. Planning the larger ones takes PostgreSQL
    four times as long as running them, and SQLAlchemy's execution costs more than psycopg2's; hence
    prepared, and on a bare connection of the same pool.

    *types* declares the parameters: ``Statement("… WHERE id = :id", id="bigint")``. Every one of
    them is given at each call. psycopg2 knows no server-side preparation, so this is SQL's PREPARE;
    a pooler between us and PostgreSQL must pool by session. Its name there is made from what it
    says, so that a session that others have used before us has either nothing or the same by it.
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
                return read_twice(lambda: self._run(values))
            rows = self._run(values)
        if rows and self._appends:
            _tell_of_an_append()
        return rows

    def _run(self, values: Mapping[str, Any]) -> list[Any]:
        pool = cast(CountingPool, db.engine.pool)
        with pool.lend() as (connection, known):
            cursor = connection.cursor()
            if self._name not in known:
                # Or it was, by whoever had this session of a pooler before.
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


_ANSWER = Statement("SELECT 1 AS one")


def require_answer() -> None:
    """Raises `Unavailable` unless the database answers a question, through the pool."""
    _ANSWER.all()


def _row_class(description: Any) -> Any:
    # Once for each statement, which psycopg2's own cursor of this kind looks up at every fetch.
    return namedtuple("Row", [column.name for column in description])


def fetch_all(
    statement: TextClause, parameters: Mapping[str, Any], *, settings: str | None = None
) -> Sequence[Row[Any]]:
    """Run a read that is put together for the occasion, in a transaction of its own.

    *settings* is SQL that comes first: ``SET LOCAL …`` for that transaction.
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
        return read_twice(read)
