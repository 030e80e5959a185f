"""Runs the migrations as the owner of the tables, one process at a time.

Others may be serving meanwhile, and others may be starting. A change of a table that has to wait
for somebody's transaction makes everybody else wait behind it, so it waits only for a moment, gives
way, and tries again. Who finds another process migrating asks now and then whether it is done, and
holds no transaction in between: a transaction that waits is one that CREATE INDEX CONCURRENTLY
would wait for in turn.
"""

import logging
import time

from alembic import context
from flask import current_app
from sqlalchemy import Connection, exc, text

from ordertrack.models import SEARCH_INDEXES
from ordertrack.services import owner, schema

log = logging.getLogger("ordertrack.migrations")


# Any fixed number: processes that start together queue here, and all but the first find nothing
# left to do.
_LOCK = 0x0DE27AC

# How long those who wait for another process sleep between two looks, and when they say so.
_LOOK = 0.2
_WORTH_A_LINE = 5.0

# For a lock on a table: no longer than a request may well take, because requests wait behind it.
_LOCK_TIMEOUT_MS = 500
# Then the requests that piled up have their turn …
_GIVE_WAY = 1.0
# … and after so long the start fails, for whoever holds the table may hold it for ever.
_PATIENCE = 600.0

# lock_not_available, deadlock_detected
_IN_THE_WAY = ("55P03", "40P01")


def run() -> None:
    database = current_app.extensions["migrate"].db
    with owner.engine().connect() as connection:
        try:
            # A migration may rightly take longer than a request may.
            for setting in ("statement_timeout", "idle_in_transaction_session_timeout"):
                connection.execute(text(f"SET {setting} = 0"))
            connection.execute(text(f"SET lock_timeout = {_LOCK_TIMEOUT_MS}"))
            connection.commit()
            _take_turn(connection)
            _migrate(connection, database.metadata)
            schema.finish(connection)
            connection.execute(text("RESET ALL"))
            connection.execute(text("SELECT pg_advisory_unlock_all()"))
            connection.commit()
        except BaseException:
            connection.invalidate()  # the settings and the lock end with the session
            raise


def _take_turn(connection: Connection) -> None:
    """Wait until no other process migrates; as long as it takes, since it ends with its process."""
    said = time.monotonic()
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}):
        connection.commit()
        if time.monotonic() - said > _WORTH_A_LINE:
            said = time.monotonic()
            log.warning("waiting for another process that brings the tables up to date")
        time.sleep(_LOOK)
    connection.commit()


def _migrate(connection: Connection, metadata: object) -> None:
    """Run what is to be run, each migration in a transaction of its own."""
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
            if state not in _IN_THE_WAY or time.monotonic() - began > _PATIENCE:
                raise
            log.warning(
                "a migration gave way to transactions that hold its tables, and tries again"
            )
            time.sleep(_GIVE_WAY)
        else:
            return


if context.is_offline_mode():
    raise SystemExit("Migrations run against a live database; offline SQL is not offered.")
run()
