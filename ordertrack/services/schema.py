"""Decides whether this code and the tables fit together.

Code that is older than the tables may still serve: during a rolling upgrade, and after a rollback.
The newest migration names the oldest revision whose code works on its tables; this code fits when
it knows that revision. docs/operations.md says how migrations are written for that.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import psycopg2
from alembic.script import ScriptDirectory
from psycopg2.errors import InsufficientPrivilege
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError

from ordertrack.config import SettingsError
from ordertrack.db import is_transient
from ordertrack.extensions import db, migrate
from ordertrack.models import schema_compatibility
from ordertrack.services import database_roles, owner


class SchemaTooNew(Exception):
    """The tables are of a newer release that this code does not fit. Its text says what to do."""


def is_behind() -> bool:
    """Whether migrations must run before this code can work.

    False also for newer tables that fit this code. Raises `SchemaTooNew`, and SQLAlchemy's
    `OperationalError` when the database cannot be used.
    """
    scripts = ScriptDirectory(migrate.directory)
    known = {script.revision for script in scripts.walk_revisions()}
    # Not `db.transaction`: at the start the reason why the database cannot be used is wanted.
    with db.engine.connect() as t:
        if t.scalar(text("SELECT to_regclass('alembic_version')")) is None:
            return True
        present = set(t.scalars(text("SELECT version_num FROM alembic_version")))
        if present <= known:
            return present != set(scripts.get_heads())
        oldest = None
        if t.scalar(text("SELECT to_regclass('schema_compatibility')")) is not None:
            oldest = t.scalar(text("SELECT oldest_code FROM schema_compatibility"))
    if oldest in known:
        return False
    raise SchemaTooNew(
        f"the tables are at revision {', '.join(sorted(present))}, which this release does not know"
        " and which is not marked as fitting it. Start a newer release."
    )


@contextmanager
def explain_errors() -> Iterator[None]:
    """Raise `SettingsError` for an error of the database that a DSN can mend: at a start."""
    try:
        yield
    except (DBAPIError, psycopg2.Error) as error:
        original = error.orig if isinstance(error, DBAPIError) else error
        because = " ".join(str(original).split())  # one line, also in the log
        if isinstance(original, InsufficientPrivilege):
            raise SettingsError(
                "MIGRATE_DSN",
                "must name the role that owns the tables, which are to be brought up to date: "
                f"this role may not ({because})",
            ) from error
        if not is_transient(original):
            raise
        raise SettingsError("DB_DSN", f"names a database that cannot be used: {because}") from error


def finish(connection: Connection) -> None:
    """After migrations, as the owner: store which code fits, and grant the serving role its rights.

    A migration says ``oldest_code``; without it, only its own release and later ones fit.
    """
    scripts = ScriptDirectory(migrate.directory)
    present = connection.scalar(text("SELECT max(version_num) FROM alembic_version"))
    if connection.scalar(text("SELECT to_regclass('schema_compatibility')")) is not None:
        module = scripts.get_revision(present).module
        connection.execute(schema_compatibility.delete())
        connection.execute(
            schema_compatibility.insert(), {"oldest_code": getattr(module, "oldest_code", present)}
        )
    if owner.is_separate():
        database_roles.grant(connection, database_roles.serving())
    connection.commit()
