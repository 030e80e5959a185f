"""Runs the migrations as the owner of the tables, one process at a time."""

from alembic import context
from flask import current_app
from sqlalchemy import text

from ordertrack.services import owner, schema

# Any fixed number: processes that start together queue here, and all but the first find nothing
# left to do.
_LOCK = 0x0DE27AC


def run() -> None:
    database = current_app.extensions["migrate"].db
    with owner.engine().connect() as connection:
        # A migration may rightly take longer than a request may.
        connection.execute(text("SET statement_timeout = 0"))
        connection.execute(text("SET lock_timeout = '30s'"))
        connection.execute(text("SELECT pg_advisory_lock(:key)"), {"key": _LOCK})
        connection.commit()
        try:
            context.configure(connection=connection, target_metadata=database.metadata)
            with context.begin_transaction():
                context.run_migrations()
            connection.commit()
            schema.finish(connection)
        finally:
            connection.rollback()
            connection.execute(text("SELECT pg_advisory_unlock(:key)"), {"key": _LOCK})
            connection.execute(text("RESET statement_timeout"))
            connection.execute(text("RESET lock_timeout"))
            connection.commit()


if context.is_offline_mode():
    raise SystemExit("Migrations run against a live database; offline SQL is not offered.")
run()
