"""Migrations and models describe the same database, and every migration can be undone."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from flask import Flask
from flask_migrate import downgrade, upgrade
from sqlalchemy.exc import SAWarning

from ordertrack.app import create_app
from ordertrack.extensions import db
from tests.support.databases import Postgres, settings_for
from tests.support.servers import ROOT, environment

# What a schema is, as PostgreSQL itself writes it down.
CATALOG = {
    "columns": """
        SELECT table_name, column_name, udt_name, is_nullable, column_default, is_identity
          FROM information_schema.columns WHERE table_schema = 'public'""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
          FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'""",
    "indexes": "SELECT indexname, indexdef FROM pg_indexes WHERE schemaname = 'public'",
}
CODE = {
    "triggers": """
        SELECT tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal""",
    "functions": """
        SELECT proname, prosrc FROM pg_proc WHERE pronamespace = 'public'::regnamespace""",
}


@pytest.fixture
def empty_database(postgres: Postgres) -> Iterator[str]:
    dsn = postgres.create()
    yield dsn
    postgres.drop(dsn)


@contextmanager
def application(dsn: str) -> Iterator[Flask]:
    app = create_app(settings_for(dsn))
    with app.app_context():
        yield app
        db.engine.dispose()


def schema(postgres: Postgres, dsn: str, catalog: dict[str, str]) -> dict[str, set[Any]]:
    found = {name: set(postgres.execute(query, dsn=dsn)) for name, query in catalog.items()}
    return {
        name: {row for row in rows if "alembic_version" not in str(row)}
        for name, rows in found.items()
    }


def test_alembic_finds_nothing_to_migrate(fresh_database: Callable[[], str]) -> None:
    with application(fresh_database()), db.engine.connect() as connection:
        context = MigrationContext.configure(
            connection, opts={"compare_type": True, "compare_server_default": True}
        )
        with warnings.catch_warnings():
            # SQLAlchemy reads xid8 as no type that it knows.
            warnings.filterwarnings("ignore", "Did not recognize type 'xid8'", SAWarning)
            assert compare_metadata(context, db.metadata) == []


def test_the_models_make_the_tables_that_the_migrations_make(
    postgres: Postgres, empty_database: str, fresh_database: Callable[[], str]
) -> None:
    with application(empty_database):
        db.create_all(bind_key=None)
    by_models = schema(postgres, empty_database, CATALOG)
    by_migrations = schema(postgres, fresh_database(), CATALOG)
    for name in CATALOG:
        assert by_models[name] == by_migrations[name]


def test_all_migrations_but_the_first_can_be_undone_and_done_again(
    postgres: Postgres, fresh_database: Callable[[], str]
) -> None:
    dsn = fresh_database()
    before = schema(postgres, dsn, CATALOG | CODE)
    with application(dsn):
        downgrade(revision="0001")
        assert schema(postgres, dsn, CATALOG | CODE) != before
        upgrade()
    assert schema(postgres, dsn, CATALOG | CODE) == before


def test_no_downgrade_drops_the_log(postgres: Postgres, fresh_database: Callable[[], str]) -> None:
    dsn = fresh_database()
    with application(dsn), pytest.raises(SystemExit):
        downgrade(revision="base")
    assert postgres.execute("SELECT count(*) FROM order_events", dsn=dsn) == [(0,)]


def test_servers_that_start_together_migrate_once(postgres: Postgres, empty_database: str) -> None:
    env = environment(empty_database)
    command = [sys.executable, "-W", "ignore", "-m", "flask", "--app", "wsgi", "db", "upgrade"]
    starting = [
        subprocess.Popen(
            command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        for _ in range(3)
    ]
    for process in starting:
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 0, said
    assert len(postgres.execute("SELECT * FROM alembic_version", dsn=empty_database)) == 1
