"""Transactions, and what a database error means.

Two ways in: `transaction()` for use cases of several steps, `Statement` for those that are one
statement and in a hurry. Both turn "the database cannot answer now" into `errors.Unavailable`;
every other database error is a defect and stays what it is.
"""

import re
import time
from collections import namedtuple
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any, cast

import psycopg2
from sqlalchemy import Row, TextClause, exc, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import ConnectionPoolEntry, QueuePool
from sqlalchemy.pool.base import _ConnectionRecord

from ordertrack.config import Settings
from ordertrack.errors import TookTooLong, Unavailable
from ordertrack.extensions import db

# SQLSTATEs that say "not now" although the connection lives: lock_not_available, query_canceled
# (statement_timeout), deadlock_detected, serialization_failure, too_many_connections, the server's
# start and stop (57P01-57P03), and disk_full. https://www.postgresql.org/docs/current/errcodes-appendix.html
_PASSING = frozenset(
    {"55P03", "57014", "40P01", "40001", "53300", "57P01", "57P02", "57P03", "53100"}
)


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


def engine_options(settings: Settings) -> dict[str, Any]:
    """What Flask-SQLAlchemy hands to ``create_engine``: bounded pool, bounded waits, UTC."""
    timeouts = (
        f"-c statement_timeout={settings.statement_timeout_ms} "
        # Half, because to PostgreSQL a row that several want has two locks: the place at the head
        # of the queue, and then the row itself. Each is waited for so long.
        f"-c lock_timeout={settings.lock_timeout_ms // 2} "
        f"-c idle_in_transaction_session_timeout={settings.statement_timeout_ms * 2} "
        # For `Statement`: their plans do not depend on the values, so they are made once.
        "-c plan_cache_mode=force_generic_plan "
        "-c timezone=UTC"
    )
    return {
        "poolclass": CountingPool,
        # Errors are logged, and parameters hold what must not be: a password's hash, a note.
        "hide_parameters": True,
        "pool_size": settings.db_pool_size,
        "max_overflow": 0,
        "pool_timeout": settings.db_pool_timeout,
        # The connection used last is the one least likely to have died in the meantime, and the
        # surplus of a busy hour is left alone until it does.
        "pool_use_lifo": True,
        "connect_args": {
            "application_name": "ordertrack",
            "connect_timeout": 5,
            "options": timeouts,
        },
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
        # A connection that was refused or lost has no SQLSTATE; what a living server says has one.
        lost = state is None and isinstance(
            original, psycopg2.OperationalError | psycopg2.InterfaceError
        )
        if lost or state in _PASSING:
            raise Unavailable("The database cannot answer right now. Try again.") from error
        raise


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
            db.session.remove()


class Statement:
    """A use case that is one statement: prepared once per connection, run in autocommit.

    One round trip, and the statement is the transaction. Planning the larger ones takes PostgreSQL
    four times as long as running them, and SQLAlchemy's execution costs more than psycopg2's; hence
    prepared, and on a bare connection of the same pool.

    *types* declares the parameters: ``Statement("… WHERE id = :id", id="bigint")``. Every one of
    them is given at each call. psycopg2 knows no server-side preparation, so this is SQL's PREPARE;
    a pooler between us and PostgreSQL must pool by session.
    """

    _number = count(1)

    def __init__(self, sql: str, **types: str) -> None:
        self._name = f"ordertrack_{next(self._number)}"
        numbers = {name: f"${n}" for n, name in enumerate(types, 1)}
        sql = re.sub(r"(?<!:):([a-z_]+)", lambda match: numbers[match[1]], sql)
        declared = f"({', '.join(types.values())})" if types else ""
        self._prepare = f"PREPARE {self._name} {declared} AS {sql}"
        values = ", ".join(f"%({name})s" for name in types)
        self._execute = f"EXECUTE {self._name} ({values})" if types else f"EXECUTE {self._name}"
        self._row: Any = None  # the class of its rows, known after the first time

    def all(self, **values: Any) -> list[Any]:
        """The rows, as named tuples. Raises `Unavailable` when the database cannot answer."""
        pool = cast(CountingPool, db.engine.pool)
        with unavailable_when_down(), pool.lend() as (connection, known):
            cursor = connection.cursor()
            if self._name not in known:
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
    with transaction() as t:
        if settings is not None:
            t.execute(text(settings))
        return t.execute(statement, parameters).all()
