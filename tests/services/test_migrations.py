"""Migrations: they create the tables of the models, can be undone, and let old code serve."""

import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from flask import Flask
from flask_migrate import downgrade, upgrade
from psycopg2 import errors
from psycopg2.extensions import parse_dsn
from sqlalchemy.exc import SAWarning

from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.models import SEARCH_INDEXES
from ordertrack.services import schema
from ordertrack.services.schema import SchemaTooNew
from tests.cli.conftest import opened
from tests.support.databases import OWNER_ROLE, Postgres, as_owner, migrate, settings_for
from tests.support.servers import ROOT, Server, environment, refusal, refusal_to_start
from tests.support.waiting import eventually
from tests.support.watchers import watching

# A schema, in PostgreSQL's own notation.
CATALOG = {
    "columns": """
        SELECT table_name, column_name, udt_name, is_nullable, column_default, is_identity
          FROM information_schema.columns WHERE table_schema = 'public'""",
    "constraints": """
        SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
          FROM pg_constraint WHERE connamespace = 'public'::regnamespace AND contype <> 'n'""",
    "indexes": f"""
        SELECT indexname, indexdef FROM pg_indexes
         WHERE schemaname = 'public' AND indexname NOT IN {SEARCH_INDEXES}""",
}
CODE = {
    "triggers": """
        SELECT tgname, pg_get_triggerdef(oid), tgenabled FROM pg_trigger WHERE NOT tgisinternal""",
    "functions": """
        SELECT proname, prosrc FROM pg_proc f WHERE pronamespace = 'public'::regnamespace
           AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = f.oid AND deptype = 'e')""",
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


def catalogued(postgres: Postgres, dsn: str, catalog: dict[str, str]) -> dict[str, set[Any]]:
    found = {name: set(postgres.execute(query, dsn=dsn)) for name, query in catalog.items()}
    return {
        name: {row for row in rows if "alembic_version" not in str(row)}
        for name, rows in found.items()
    }


def test_alembic_finds_nothing_to_migrate(fresh_database: Callable[[], str]) -> None:
    with application(fresh_database()), db.engine.connect() as connection:
        context = MigrationContext.configure(
            connection,
            opts={
                "compare_type": True,
                "compare_server_default": True,
                "include_name": lambda name, *_: name not in SEARCH_INDEXES,
            },
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
    by_models = catalogued(postgres, empty_database, CATALOG)
    by_migrations = catalogued(postgres, fresh_database(), CATALOG)
    for name in CATALOG:
        assert by_models[name] == by_migrations[name]


def test_all_migrations_but_the_first_can_be_undone_and_done_again(
    postgres: Postgres, fresh_database: Callable[[], str]
) -> None:
    dsn = fresh_database()
    before = catalogued(postgres, dsn, CATALOG | CODE)
    with application(dsn):
        downgrade(revision="0001")
        assert catalogued(postgres, dsn, CATALOG | CODE) != before
        upgrade()
    assert catalogued(postgres, dsn, CATALOG | CODE) == before


# --- other releases' tables ----------------------------------------------------------------------


@contextmanager
def of_a_newer_release(postgres: Postgres, dsn: str, oldest_code: str) -> Iterator[Flask]:
    """The application on tables that a later release has migrated."""
    owner = as_owner(dsn)
    postgres.execute("UPDATE alembic_version SET version_num = '9999'", dsn=owner)
    postgres.execute("UPDATE schema_compatibility SET oldest_code = %s", oldest_code, dsn=owner)
    with application(dsn) as app:
        yield app


def test_old_code_starts_on_newer_tables_that_are_marked_as_fitting_it(
    postgres: Postgres,
    fresh_database: Callable[[], str],
    start_server: Callable[..., Server],
) -> None:
    dsn = fresh_database()
    with of_a_newer_release(postgres, dsn, "0003"):
        assert not schema.is_behind()
    server = start_server(dsn)
    server.people.driver().move(server.people.customer().order(), "Processing")
    found = postgres.execute("SELECT version_num FROM alembic_version", dsn=dsn)
    assert found == [("9999",)]


def test_old_code_refuses_newer_tables_that_are_not_marked(
    postgres: Postgres, fresh_database: Callable[[], str]
) -> None:
    dsn = fresh_database()
    with of_a_newer_release(postgres, dsn, "9998") as app:
        with pytest.raises(SchemaTooNew, match="Start a newer release"):
            schema.is_behind()
        refused = app.test_cli_runner().invoke(args=["users", "list"])
        assert refused.exit_code == 1
        assert "Start a newer release" in refused.output
    assert "Start a newer release" in refusal_to_start(dsn)


def test_a_role_that_may_not_migrate_refuses_to_start_and_says_what_to_set(
    postgres: Postgres, fresh_database: Callable[[], str]
) -> None:
    dsn = fresh_database()
    with application(dsn):
        downgrade(revision="0003")
    assert "MIGRATE_DSN must name the role that owns the tables" in refusal_to_start(dsn)


def test_a_command_whose_role_may_not_migrate_says_what_to_set(
    postgres: Postgres, fresh_database: Callable[[], str]
) -> None:
    dsn = fresh_database()
    with application(dsn):
        downgrade(revision="0003")
    command = ("-m", "flask", "--app", "wsgi", "users", "role", "a@example.org", "admin")
    assert "MIGRATE_DSN must name the role that owns the tables" in refusal(dsn, *command)


def test_each_migration_stores_which_code_fits_its_tables(
    postgres: Postgres, fresh_database: Callable[[], str]
) -> None:
    dsn = fresh_database()
    noted = postgres.execute("SELECT oldest_code FROM schema_compatibility", dsn=dsn)
    with application(dsn):
        scripts = ScriptDirectory(str(ROOT / "migrations"))
        module = scripts.get_revision("head").module
        assert noted == [(getattr(module, "oldest_code", module.revision),)]
        downgrade(revision="0003")
    assert postgres.execute("SELECT oldest_code FROM schema_compatibility", dsn=dsn) == [("0001",)]


@pytest.mark.parametrize("command", [["users", "list"], ["audit", "verify"]])
def test_commands_that_read_do_not_migrate(
    postgres: Postgres, empty_database: str, command: list[str]
) -> None:
    with application(empty_database) as app:
        result = app.test_cli_runner().invoke(args=command)
    assert result.exit_code == 1
    assert "this command only reads" in result.output
    assert postgres.execute("SELECT to_regclass('users')", dsn=empty_database) == [(None,)]


def test_statuses_and_events_of_a_newer_release_are_shown(
    postgres: Postgres, fresh_database: Callable[[], str], start_server: Callable[..., Server]
) -> None:
    """A status and a type of event that this code does not know: shown, without transitions."""
    dsn = fresh_database()
    server = start_server(dsn)
    owner, driver, admin = (
        server.people.customer(),
        server.people.driver(),
        server.people.admin(),
    )
    order = owner.order()
    superuser = postgres.as_superuser(dsn)
    for table, check in (
        ("orders", "status"),
        ("order_events", "status"),
        ("order_events", "type"),
    ):
        postgres.execute(f"ALTER TABLE {table} DROP CONSTRAINT ck_{table}_{check}", dsn=superuser)
    with watching(server, owner.token) as watcher:
        watcher.watch(order)
        postgres.execute(
            f"""WITH o AS (UPDATE orders SET previous_status = status, status = 'Returned',
                                             version = 2 WHERE id = {order["id"]} RETURNING *)
                INSERT INTO order_events (order_id, version, type, status, previous_status,
                                          actor_id, actor_name, actor_role, customer_id)
                SELECT id, 2, 'returned', status, previous_status, {admin.id}, 'x', 'admin',
                       customer_id FROM o""",
            dsn=dsn,
        )
        eventually(lambda: watcher.versions(order) == [2])
    path = f"/api/orders/{order['id']}"
    for person in (owner, driver, admin):
        shown = person.read(order)
        assert (shown["status"], shown["next_statuses"]) == ("Returned", [])
        assert [event["type"] for event in person.history(order)] == ["created", "returned"]
    refused = driver.api.put(f"{path}/status", json={"status": "Shipped"})
    assert (refused.code, refused.json()["current"]) == ("invalid_transition", "Returned")
    assert admin.api.put(path, json={"description": "x"}).code == "conflict"
    assert owner.api.delete(path).code == "conflict"
    assert driver.api.get("/api/admin/orders").status_code == 200
    assert owner.api.get("/api/orders").json()["orders"][0]["status"] == "Returned"
    # No request can set it.
    wanted = driver.api.put(f"{path}/status", json={"status": "Returned"})
    assert wanted.code == "validation_failed"
    admin.assign(order, driver)
    admin.delete(order)


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


# --- 0002: indexes of a table that is in use -----------------------------------------------------

LISTED = "SELECT indexdef FROM pg_indexes WHERE indexname = %s"
VALID = "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(%s)"


@pytest.mark.parametrize(
    ("revision", "write", "table", "index"),
    [
        (
            "0001",
            "INSERT INTO orders (customer_id, description) SELECT id, 'a lamp' FROM u",
            "orders",
            "ix_orders_live_status",
        ),
        # Every request reads them, and they may be many: no release before 0003 deleted any.
        (
            "0002",
            "INSERT INTO sessions (user_id, expires_at) SELECT id, now() FROM u",
            "sessions",
            "ix_sessions_expires_at",
        ),
    ],
)
def test_indexes_are_built_beside_readers_and_writers(
    postgres: Postgres, empty_database: str, revision: str, write: str, table: str, index: str
) -> None:
    migrate(empty_database, revision)
    user = "INSERT INTO users (name, email, password_hash) VALUES ('A', %s, 'x') RETURNING id"
    place = f"WITH u AS ({user}) {write}"
    waits = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = %s AND wait_event_type = 'Lock'"
        " AND query LIKE 'CREATE INDEX CONCURRENTLY%%'"
    )
    name = parse_dsn(empty_database)["dbname"]
    with closing(psycopg2.connect(empty_database)) as held, ThreadPoolExecutor(1) as pool:
        held.cursor().execute(place, ["held@example.org"])  # and does not commit
        migrating = pool.submit(migrate, empty_database)
        try:
            eventually(lambda: postgres.execute(waits, name) == [(1,)])
            with closing(psycopg2.connect(empty_database)) as other, other:
                cursor = other.cursor()
                cursor.execute("SET lock_timeout = '2s'")
                cursor.execute(f"SELECT count(*) FROM {table}")
                cursor.execute(place, ["other@example.org"])
            assert not migrating.done()
        finally:
            held.commit()
        migrating.result(timeout=60)
    assert postgres.execute(VALID, index, dsn=empty_database) == [(True,)]


def test_an_index_that_an_interrupted_migration_left_is_built_anew(
    postgres: Postgres, empty_database: str
) -> None:
    migrate(empty_database, "0001")
    postgres.execute(
        "WITH u AS (INSERT INTO users (name, email, password_hash) VALUES ('A', 'a@x', 'x')"
        " RETURNING id) INSERT INTO orders (customer_id, description)"
        " SELECT id, 'a lamp' FROM u, generate_series(1, 2)",
        dsn=empty_database,
    )
    with pytest.raises(errors.UniqueViolation):
        postgres.execute(
            "CREATE UNIQUE INDEX CONCURRENTLY ix_orders_live_status ON orders (status)",
            dsn=empty_database,
        )
    assert postgres.execute(VALID, "ix_orders_live_status", dsn=empty_database) == [(False,)]
    migrate(empty_database)
    assert postgres.execute(VALID, "ix_orders_live_status", dsn=empty_database) == [(True,)]
    [(definition,)] = postgres.execute(LISTED, "ix_orders_live_status", dsn=empty_database)
    assert "(status, id) WHERE (deleted_at IS NULL)" in definition


def test_without_pg_trgm_the_rest_is_migrated_and_a_warning_is_logged(
    postgres: Postgres, caplog: pytest.LogCaptureFixture
) -> None:
    # Trusted extensions need CREATE on the database, which its owner has and another role has not.
    dsn = postgres.create()
    name = parse_dsn(dsn)["dbname"]
    postgres.execute(f"ALTER DATABASE {name} OWNER TO CURRENT_USER")
    postgres.execute(f"GRANT ALL ON SCHEMA public TO {OWNER_ROLE}", dsn=postgres.as_superuser(dsn))
    try:
        with caplog.at_level("INFO"):
            migrate(dsn)
        assert "Without pg_trgm" in caplog.text
        for index in SEARCH_INDEXES:
            assert postgres.execute(LISTED, index, dsn=dsn) == []
        assert postgres.execute(VALID, "ix_orders_live_created", dsn=dsn) == [(True,)]
    finally:
        postgres.drop(dsn)


def test_old_code_that_appends_before_it_changes_the_order_leaves_a_whole_log(
    postgres: Postgres, fresh_database: Callable[[], str]
) -> None:
    """Code of revision 0001 leaves their order to SQLAlchemy, and sets the time itself."""
    dsn = fresh_database()
    with opened(dsn) as own:
        order, admin = own.people.customer().order(), own.people.admin()
        with psycopg2.connect(as_owner(dsn)) as old, old.cursor() as cursor:
            cursor.execute(
                "INSERT INTO order_events (order_id, version, type, status, previous_status,"
                " actor_id, actor_name, actor_role, changes, customer_id, created_at)"
                " SELECT id, 2, 'description_changed', status, status, %s, 'A', 'admin',"
                ' \'{"description": "old"}\', customer_id, clock_timestamp()'
                " FROM orders WHERE id = %s",
                [admin.id, order["id"]],
            )
            cursor.execute(
                "UPDATE orders SET description = 'old', version = 2, previous_status = status,"
                " updated_at = clock_timestamp() WHERE id = %s",
                [order["id"]],
            )
        old.close()
        result = own.flask("audit", "verify")
        assert result.exit_code == 0, result.output
