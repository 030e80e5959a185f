"""Runs the migrations as the owner of the tables, one process at a time.

Other processes may be serving or starting at the same time. While a change of a table waits for a
lock, all later statements on that table wait behind it. So it waits only for a short time, lets
them pass, and tries again. A process that finds another one migrating polls until that one is done.
It holds no transaction open between two polls: CREATE INDEX CONCURRENTLY would wait for it.
"""

import logging
import time

from alembic import context
from flask import current_app
from sqlalchemy import Connection, exc, text

from ordertrack.models import SEARCH_INDEXES
from ordertrack.services import owner, schema

log = logging.getLogger("ordertrack.migrations")


# The key of an advisory lock: any fixed number. Processes that start together wait for it, and all
# but the first then find nothing to migrate.
_LOCK = 0x0DE27AC

# Seconds between two polls of a process that waits for another one, and between its log lines.
_POLL = 0.2
_LOG_EVERY = 5.0

# How long to wait for a lock on a table: not longer than a slow request, because requests wait
# behind it.
_LOCK_TIMEOUT_MS = 500
# Seconds until the next attempt, in which the waiting requests are served.
_PAUSE = 1.0
# After so many seconds the start fails: the transaction that holds the table may never end.
_GIVE_UP = 600.0

# PostgreSQL's lock_not_available, deadlock_detected
_LOCKED = ("55P03", "40P01")


def run() -> None:
    database = current_app.extensions["migrate"].db
    with owner.engine().connect() as connection:
        try:
            # A migration may take longer than a request.
            for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(text(f"SET {setting} = 0"))
            connection.execute(text(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}"))
            connection.commit()
            _wait_for_lock(connection)
            _migrate(connection, database.metadata)
            schema.finish(connection)
            connection.execute(text("RESET ALL"))
            connection.execute(text("SELECT pg_advisory_unlock_all()"))
            connection.commit()
        except BaseException:
            connection.invalidate()  # the settings and the lock end with the session
            raise


def _wait_for_lock(connection: Connection) -> None:
    """Wait until no other process migrates, without a limit: the lock ends with its process."""
    logged = time.monotonic()
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}):
        connection.commit()
        if time.monotonic() - logged > _LOG_EVERY:
            logged = time.monotonic()
            log.warning("waiting for another process that migrates the tables")
        time.sleep(_POLL)
    connection.commit()


def _migrate(connection: Connection, metadata: object) -> None:
    """Run the pending migrations, each in a transaction of its own."""
    began = time.monotonic()
    while True:
        try:
            context.configure(
                connection=connection,
                target_metadata=metadata,
                transaction_per_migration=True,
                include_name=lambda name, *_: name not in SEARCH_INDEXES,
            )
            with context.begin_transaction():
                context.run_migrations()
            connection.commit()
        except exc.OperationalError as error:
            connection.rollback()
            state = getattr(error.orig, "pgcode", None)
            if state not in _LOCKED or time.monotonic() - began > _GIVE_UP:
                raise
            log.warning(
                "a migration gave way to transactions that lock its tables, and tries again"
            )
            time.sleep(_PAUSE)
        else:
            return


if context.is_offline_mode():
    raise SystemExit("Migrations run against a live database; offline SQL is not offered.")
run()
