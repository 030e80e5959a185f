"""Two database roles: one owns the tables and migrates, the other serves and owns nothing.

So a server that was broken into cannot rewrite the log, choose an event's time or transaction, or
change or drop a table. The serving role may read and write all else, so that a new table needs an
entry here only when something about it is forbidden.
"""

from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import Connection, NullPool, create_engine, text

from ordertrack.config import Settings, SettingsError, url_of
from ordertrack.extensions import db


@dataclass(frozen=True, slots=True)
class _Rights:
    """The privileges on a table, for all columns except those named."""

    insert: bool = True
    update: bool = True
    delete: bool = False
    not_inserted: frozenset[str] = frozenset()
    not_updated: frozenset[str] = frozenset()


# The database stamps these itself (migration 0003).
_STAMPED: Final = frozenset({"id", "xid", "created_at"})

_ORDINARY: Final = _Rights(delete=True)
_RIGHTS: Final = {
    "order_events": _Rights(update=False, not_inserted=_STAMPED),
    # A trigger refuses the deletion of all but old logouts.
    "access_changes": _Rights(update=False, delete=True, not_inserted=_STAMPED),
    "orders": _Rights(
        # An order begins as the defaults say.
        not_inserted=_STAMPED
        | {"updated_at", "status", "previous_status", "version", "driver_id", "deleted_at"},
        not_updated=frozenset({"id", "customer_id", "created_at", "updated_at"}),
    ),
    "users": _Rights(not_inserted=frozenset({"id"}), not_updated=frozenset({"id", "created_at"})),
    "alembic_version": _Rights(insert=False, update=False),
    "schema_compatibility": _Rights(insert=False, update=False),
}


def serving() -> str:
    """The name of the serving role, DB_DSN's."""
    with db.engine.connect() as connection:
        return str(connection.scalar(text("SELECT session_user")))


def grant(connection: Connection, role: str) -> None:
    """Grant *role* the rights for serving. Run as the owner of the tables; safe to repeat."""
    name = _quoted(connection, role)
    connection.execute(text("REVOKE CREATE ON SCHEMA public FROM PUBLIC"))
    connection.execute(text(f"GRANT USAGE ON SCHEMA public TO {name}"))
    tables = connection.scalars(
        text("SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY tablename")
    ).all()
    for table in tables:
        rights = _RIGHTS.get(table, _ORDINARY)
        columns = set(
            connection.scalars(
                text(
                    "SELECT attname FROM pg_attribute WHERE attrelid = CAST(:table AS regclass)"
                    " AND attnum > 0 AND NOT attisdropped AND attgenerated = ''"
                ),
                {"table": table},
            )
        )
        granted = ["SELECT"]
        if rights.insert:
            granted.append(_on("INSERT", columns, rights.not_inserted))
        if rights.update:
            granted.append(_on("UPDATE", columns, rights.not_updated))
        if rights.delete:
            granted.append("DELETE")
        connection.execute(text(f"REVOKE ALL ON {table} FROM {name}"))
        connection.execute(text(f"GRANT {', '.join(granted)} ON {table} TO {name}"))


def _on(privilege: str, columns: set[str], but: frozenset[str]) -> str:
    if not but:
        return privilege
    return f"{privilege} ({', '.join(sorted(columns - but))})"


def _quoted(connection: Connection, name: str) -> str:
    return str(connection.scalar(text("SELECT quote_ident(:name)"), {"name": name}))


# --- creating them -------------------------------------------------------------------------------


def make(superuser_dsn: str, settings: Settings) -> None:
    """Create the roles and the database of DB_DSN and MIGRATE_DSN, as a superuser; safe to repeat.

    What exists is kept: of roles also the passwords, of the database also the tables, which belong
    to MIGRATE_DSN's role afterwards. Raises `SettingsError` when the two do not name
    two roles of one database.
    """
    if settings.migrate_dsn is None:
        raise SettingsError("MIGRATE_DSN", "must be set: it names the role that owns the tables")
    serving, owning = settings.database_url, settings.owner_url
    for name, url in (("DB_DSN", serving), ("MIGRATE_DSN", owning)):
        if not url.username or not url.database:
            raise SettingsError(name, "must name a user and a dbname")
    if serving.username == owning.username:
        raise SettingsError("MIGRATE_DSN", "must name another user than DB_DSN")
    if serving.database != owning.database:
        raise SettingsError("MIGRATE_DSN", "must name the same dbname as DB_DSN")
    url = url_of(superuser_dsn)
    options: dict[str, Any] = {"poolclass": NullPool, "hide_parameters": True}
    with create_engine(url, isolation_level="AUTOCOMMIT", **options).connect() as connection:
        for role in (owning, serving):
            _make_role(connection, str(role.username), role.password)
        _make_database(connection, str(owning.database), str(owning.username))
    with create_engine(url.set(database=owning.database), **options).begin() as connection:
        _give_tables(connection, str(owning.username))
        grant(connection, str(serving.username))


def _make_role(connection: Connection, name: str, password: str | None) -> None:
    found = text("SELECT true FROM pg_roles WHERE rolname = :name")
    if not connection.scalar(found, {"name": name}):
        statement = f"CREATE ROLE {_quoted(connection, name)} LOGIN PASSWORD %(password)s"
        connection.exec_driver_sql(statement, {"password": password})


def _make_database(connection: Connection, name: str, owning: str) -> None:
    quoted, owner = _quoted(connection, name), _quoted(connection, owning)
    found = text("SELECT true FROM pg_database WHERE datname = :name")
    if not connection.scalar(found, {"name": name}):
        connection.execute(text(f"CREATE DATABASE {quoted}"))
    connection.execute(text(f"ALTER DATABASE {quoted} OWNER TO {owner}"))


def _give_tables(connection: Connection, owning: str) -> None:
    owner = _quoted(connection, owning)
    connection.execute(text(f"ALTER SCHEMA public OWNER TO {owner}"))
    objects = connection.execute(
        text(
            """SELECT 'TABLE ' || oid::regclass FROM pg_class
                WHERE relnamespace = 'public'::regnamespace AND relkind IN ('r', 'p')
                UNION ALL
               SELECT 'ROUTINE ' || oid::regprocedure FROM pg_proc p
                WHERE pronamespace = 'public'::regnamespace
                  AND NOT EXISTS (SELECT FROM pg_depend d
                                   WHERE d.objid = p.oid AND d.deptype = 'e')"""
        )
    ).scalars()
    for one in objects.all():
        connection.execute(text(f"ALTER {one} OWNER TO {owner}"))
