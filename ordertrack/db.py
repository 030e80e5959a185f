"""Transactions, and what a database error means.

Two ways in, and no third: `transaction()` for use cases of several steps, `fetch_one()` and
`fetch_all()` for those that are one statement. Both turn "the database cannot answer now" into
`errors.Unavailable`; every other database error is a defect and stays what it is.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Engine, Row, TextClause, exc
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from ordertrack.config import Settings
from ordertrack.errors import Unavailable
from ordertrack.extensions import db

# SQLSTATEs that say "not now" although the connection lives: lock_not_available, query_canceled
# (statement_timeout), deadlock_detected, serialization_failure, too_many_connections, the server's
# start and stop (57P01-57P03), and disk_full. https://www.postgresql.org/docs/current/errcodes-appendix.html
_PASSING = frozenset(
    {"55P03", "57014", "40P01", "40001", "53300", "57P01", "57P02", "57P03", "53100"}
)


def engine_options(settings: Settings) -> dict[str, Any]:
    """What Flask-SQLAlchemy hands to ``create_engine``: bounded pool, bounded waits, UTC."""
    timeouts = (
        f"-c statement_timeout={settings.statement_timeout_ms} "
        f"-c lock_timeout={settings.lock_timeout_ms} "
        f"-c idle_in_transaction_session_timeout={settings.statement_timeout_ms * 2} "
        "-c timezone=UTC"
    )
    return {
        "poolclass": QueuePool,
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
        raise Unavailable("All database connections are busy. Try again shortly.") from error
    except exc.DBAPIError as error:
        state = getattr(error.orig, "pgcode", None)
        if state == "55P03":
            raise Unavailable("The order is locked by another change. Try again.") from error
        if error.connection_invalidated or state in _PASSING or _could_not_connect(error):
            raise Unavailable("The database cannot answer right now. Try again.") from error
        raise


def _could_not_connect(error: exc.DBAPIError) -> bool:
    # A refused connection has no SQLSTATE; every error that a living server reports has one.
    return isinstance(error, exc.OperationalError) and not getattr(error.orig, "pgcode", None)


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


def fetch_all(statement: TextClause, parameters: Mapping[str, Any]) -> Sequence[Row[Any]]:
    """Run one statement in autocommit: one round trip, and the statement is the transaction."""
    with unavailable_when_down(), _autocommit().connect() as connection:
        return connection.execute(statement, parameters).all()


def fetch_one(statement: TextClause, parameters: Mapping[str, Any]) -> Row[Any] | None:
    """As `fetch_all`, for a statement that yields a row or none."""
    rows = fetch_all(statement, parameters)
    return rows[0] if rows else None


def _autocommit() -> Engine:
    # Same pool as the sessions': only what happens at checkout differs.
    engine = db.engine
    options: Engine | None = engine.__dict__.get("_ordertrack_autocommit")
    if options is None:
        options = engine.execution_options(isolation_level="AUTOCOMMIT")
        engine.__dict__["_ordertrack_autocommit"] = options
    return options
