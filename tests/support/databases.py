"""Runs the PostgreSQL of the tests: one server, a migrated template database, clones of it."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any

import psycopg2
from flask_migrate import upgrade
from psycopg2 import errors
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT, make_dsn, parse_dsn

from ordertrack import embedded
from ordertrack.app import create_app
from ordertrack.config import Settings, load
from ordertrack.extensions import db

# As in production: one role owns the tables and migrates, another serves, neither is a superuser.
# The servers of the tests connect as the second, so that a missing right fails a test.
OWNER_ROLE = "ordertrack_tests"
SERVING_ROLE = "ordertrack_tests_serving"
ROLE_PASSWORD = "only-for-tests"

JWT_SECRET = "the-secret-with-which-the-tests-sign-their-tokens"


def settings_for(dsn: str, **changes: str) -> Settings:
    """The settings of a server on *dsn*; *changes* are further variables, in capitals."""
    given = {"DB_DSN": dsn, "JWT_SECRET": JWT_SECRET}
    if parse_dsn(dsn).get("user") == SERVING_ROLE:
        given["MIGRATE_DSN"] = as_owner(dsn)
    return load(given | changes)


def as_owner(dsn: str) -> str:
    """The DSN of the same database for the role that owns the tables."""
    return make_dsn(dsn, user=OWNER_ROLE, password=ROLE_PASSWORD)


def execute(dsn: str, sql: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run one statement on a connection of its own, committed; its rows, if it has any."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        with connection.cursor() as cursor:
            cursor.execute(sql, values or None)
            return cursor.fetchall() if cursor.description else []


class Postgres:
    """Maintenance access to the test server.

    dsn             a superuser's, to the maintenance database
    """

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self._numbers = count(1)
        # Unique on a server that several runs share; PostgreSQL cuts names at 63 bytes.
        self._prefix = f"ordertrack_test_{os.getpid()}"
        self._template: str | None = None
        self._ensure_roles()

    def execute(self, sql: str, *values: Any, dsn: str | None = None) -> list[tuple[Any, ...]]:
        """`execute` in the maintenance database as superuser, or where *dsn* says."""
        return execute(dsn or self.dsn, sql, *values)

    def as_superuser(self, dsn: str) -> str:
        """The DSN of the same database for a superuser."""
        return make_dsn(self.dsn, dbname=parse_dsn(dsn)["dbname"])

    def create(self, *, template: str | None = None) -> str:
        """A new database's DSN: an empty one for its owner, a copy of *template* for serving."""
        name = f"{self._prefix}_{next(self._numbers)}"
        source = f"TEMPLATE {template}" if template else ""
        self.execute(f"CREATE DATABASE {name} OWNER {OWNER_ROLE} {source}")
        user = SERVING_ROLE if template else OWNER_ROLE
        return make_dsn(self.dsn, dbname=name, user=user, password=ROLE_PASSWORD)

    def clone(self) -> str:
        """A new migrated database's DSN. The migrations run once; the rest is copying."""
        if self._template is None:
            dsn = self.create()
            migrate(make_dsn(dsn, user=SERVING_ROLE, password=ROLE_PASSWORD))
            self._template = parse_dsn(dsn)["dbname"]
        return self.create(template=self._template)

    def drop(self, dsn: str) -> None:
        """Drop a database, also with connections open to it."""
        self.execute(f"DROP DATABASE IF EXISTS {parse_dsn(dsn)['dbname']} WITH (FORCE)")

    def drop_all(self) -> None:
        """Drop every database that this object made."""
        made = self.execute(
            "SELECT datname FROM pg_database WHERE datname LIKE %s", self._prefix + r"\_%"
        )
        for (name,) in made:
            self.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)")

    def _ensure_roles(self) -> None:
        for role in (OWNER_ROLE, SERVING_ROLE):
            # It exists already, or another run creates it at this moment.
            with contextlib.suppress(errors.DuplicateObject, errors.UniqueViolation):
                self.execute(f"CREATE ROLE {role} LOGIN PASSWORD %s", ROLE_PASSWORD)


def migrate(dsn: str, revision: str = "head") -> None:
    """Bring the database to the latest migration, as a starting server does, or to *revision*."""
    app = create_app(settings_for(dsn))
    with app.app_context():
        upgrade(revision=revision)
        db.engine.dispose()


@contextlib.contextmanager
def running_postgres() -> Iterator[Postgres]:
    """The server that TEST_DB_DSN names, or an embedded one in a temporary folder."""
    given = os.environ.get("TEST_DB_DSN")
    if given:
        postgres = Postgres(given)
        try:
            yield postgres
        finally:
            postgres.drop_all()
        return
    # Not tmp_path: pytest closes its folders to others, and for root another user runs PostgreSQL.
    folder = Path(tempfile.mkdtemp(prefix="ordertrack-test-"))
    try:
        with embedded.start(folder) as started:
            postgres = Postgres(started.superuser_dsn)
            # The data need not survive a power cut. The setting changes nothing that tests can see.
            postgres.execute("ALTER SYSTEM SET fsync = off")
            postgres.execute("SELECT pg_reload_conf()")
            yield postgres
    finally:
        shutil.rmtree(folder)
