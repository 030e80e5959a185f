"""Which code fits which tables.

Code that is older than the tables may still serve, while servers are replaced one by one and when a
release is taken back: if the newest migration names a revision that this code knows as the oldest
whose code works on its tables. docs/operations.md says how migrations are written for that.
"""

from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from ordertrack.extensions import db, migrate
from ordertrack.models import schema_compatibility
from ordertrack.services import database_roles, owner


class SchemaTooNew(Exception):
    """The tables are of a newer release, and do not suit this one. Its text says what to do."""


def _scripts() -> ScriptDirectory:
    """The application's migrations, wherever Flask-Migrate was told that they are."""
    return ScriptDirectory(migrate.directory)


def is_behind() -> bool:
    """Whether migrations are to be run before this code can work.

    False also for newer tables that suit this code. Raises `SchemaTooNew`, and SQLAlchemy's
    `OperationalError` when the database cannot be used.
    """
    scripts = _scripts()
    known = {script.revision for script in scripts.walk_revisions()}
    # Not `db.transaction`: whoever starts wants to know why the database cannot be used.
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
        " and which is not marked as suiting it. Start a newer release."
    )


def finish(connection: Connection) -> None:
    """After the migrations, as the owner: note which code works now, and let the server's role in.

    Each migration says ``oldest_code``; one that does not is for its own release and later ones.
    """
    scripts = _scripts()
    present = connection.scalar(text("SELECT max(version_num) FROM alembic_version"))
    if connection.scalar(text("SELECT to_regclass('schema_compatibility')")) is not None:
        module = scripts.get_revision(present).module
        connection.execute(schema_compatibility.delete())
        connection.execute(
            schema_compatibility.insert(),
            {"oldest_code": getattr(module, "oldest_code", present)},
        )
    if owner.is_separate():
        database_roles.grant(connection, database_roles.serving())
    connection.commit()
