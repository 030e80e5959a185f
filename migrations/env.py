"""Runs the migrations on the application's own engine, one process at a time."""

import time

from alembic import context
from flask import current_app
from sqlalchemy import Connection, text

from ordertrack.models import SEARCH_INDEXES

# Any fixed number: processes that start together queue here, and all but the first find nothing
# left to do.
_LOCK = 0x0DE27AC

# How long those who wait for another process sleep between two looks, in seconds.
_LOOK = 0.2


def run() -> None:
    database = current_app.extensions["migrate"].db
    with database.engine.connect() as connection:
        # A migration may rightly take longer than a request may.
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET lock_timeout = '30s'"))
        _take_turn(connection)
        try:
            context.configure(
                connection=connection,
                target_metadata=database.metadata,
                include_name=lambda name, *_: name not in SEARCH_INDEXES,
            )
            with context.begin_transaction():
                context.run_migrations()
            connection.commit()
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
            connection.execute(text("RESET statement_timeout"))
            connection.execute(text("RESET lock_timeout"))
            connection.commit()


def _take_turn(connection: Connection) -> None:
    """Wait until no other process migrates, without a transaction in between: CREATE INDEX
    CONCURRENTLY waits for every transaction that waits for the lock, and both would for ever.
    """
    while not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _LOCK}):
        connection.commit()
        time.sleep(_LOOK)
    connection.commit()


if context.is_offline_mode():
    raise SystemExit("Migrations run against a live database; offline SQL is not offered.")
run()
