"""The serving role may append to the log, and may not change it."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import make_dsn, parse_dsn

from ordertrack.app import create_app
from ordertrack.config import SettingsError
from ordertrack.extensions import db
from ordertrack.services import database_roles
from tests.cli.conftest import opened
from tests.support.databases import Postgres, migrate, settings_for
from tests.support.http import InProcess
from tests.support.people import People

EVENT = "order_id, version, type, status, actor_id, actor_name, actor_role, customer_id"
VALUES = "{order}, 2, 'status_changed', 'Cancelled', {user}, 'x', 'user', {user}"

REFUSED = {
    "rewrite every actor": "ALTER TABLE order_events ALTER actor_name TYPE text USING 'nobody'",
    "switch the triggers off": "ALTER TABLE order_events DISABLE TRIGGER ALL",
    "replace what the triggers call": (
        "CREATE OR REPLACE FUNCTION refuse_to_rewrite_the_log() RETURNS trigger"
        " LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END'"
    ),
    "drop the log": "DROP TABLE order_events",
    "drop an order": "DELETE FROM orders",
    "make a table": "CREATE TABLE mine (id int)",
    "choose an event's time": (
        f"INSERT INTO order_events ({EVENT}, created_at) VALUES ({VALUES}, '2001-01-01')"
    ),
    "choose an event's transaction": (
        f"INSERT INTO order_events ({EVENT}, xid) VALUES ({VALUES}, '3')"
    ),
    "choose an event's id": (
        f"INSERT INTO order_events ({EVENT}, id) OVERRIDING SYSTEM VALUE VALUES ({VALUES}, 1)"
    ),
    "choose an order's time": "UPDATE orders SET updated_at = '2001-01-01'",
    "give an order to another customer": "UPDATE orders SET customer_id = customer_id",
    "choose a sign-out's time": (
        "INSERT INTO access_changes (user_id, reason, created_at)"
        " VALUES ({user}, 'signed_out', '2001-01-01')"
    ),
    "forget a sign-out of today": "DELETE FROM access_changes",
    "say which code may run": "UPDATE schema_compatibility SET oldest_code = '9999'",
    "sleep the triggers": "SET session_replication_role = replica",
}


@pytest.mark.safety("serving-role")
@pytest.mark.parametrize("case", REFUSED)
def test_the_serving_role_cannot(case: str, database: str, people: People) -> None:
    owner = people.customer()
    order = owner.order()
    owner.signed_in_again().api.post("/api/logout")
    connection = psycopg2.connect(database)
    try:
        with connection.cursor() as cursor, pytest.raises(psycopg2.Error) as refusal:
            cursor.execute(REFUSED[case].format(order=order["id"], user=owner.id))
    finally:
        connection.close()
    assert refusal.value.pgcode == "42501", refusal.value  # insufficient_privilege


@pytest.mark.safety("serving-role")
def test_an_insert_cannot_choose_an_events_time_or_transaction(
    postgres: Postgres, database: str, people: People
) -> None:
    """Nor can the owner or a superuser, while the triggers are enabled."""
    order = people.customer().order()
    [(xid, matches, event_time, order_time)] = postgres.execute(
        "WITH e AS (INSERT INTO order_events"
        f" ({EVENT}, xid, created_at) VALUES ({VALUES}, '3', '2001-01-01') RETURNING *)"
        " SELECT xid::text, xid = pg_current_xact_id(), e.created_at, updated_at"
        "   FROM e, orders o WHERE o.id = e.order_id".format(order=order["id"], user=1),
        dsn=postgres.as_superuser(database),
    )
    assert matches, xid
    # The present time, because no change of the order comes with it.
    assert event_time > order_time > datetime(2020, 1, 1, tzinfo=UTC)


@pytest.mark.safety("serving-role")
@pytest.mark.parametrize("relation", ["TABLE", "VIEW"])
def test_no_temporary_table_stands_in_for_the_orders(
    database: str, people: People, relation: str
) -> None:
    """Every role can create one, and PostgreSQL looks for an unqualified name there first."""
    owner = people.customer()
    order = owner.order()
    connection = psycopg2.connect(database)
    try:
        with connection.cursor() as cursor:
            cursor.execute(
                f"CREATE TEMPORARY {relation} orders AS SELECT id, 2 AS version,"
                " CAST('2001-01-01' AS timestamptz) AS updated_at FROM public.orders"
            )
            values = VALUES.format(order=order["id"], user=owner.id)
            cursor.execute(
                f"INSERT INTO order_events ({EVENT}) VALUES ({values}) RETURNING created_at"
            )
            found = cursor.fetchone()
    finally:
        connection.close()
    assert found is not None
    assert found[0] > datetime(2020, 1, 1, tzinfo=UTC)


# --- creating the roles --------------------------------------------------------------------------


@pytest.fixture
def names(postgres: Postgres) -> Iterator[tuple[str, str]]:
    """The DSNs of two roles and a database that do not exist yet."""
    unique = parse_dsn(postgres.create())["dbname"]
    postgres.execute(f"DROP DATABASE {unique}")
    serving, owning = f"{unique}_serving", f"{unique}_owner"
    password = "it's %s: a password"
    yield (
        make_dsn(postgres.dsn, dbname=unique, user=serving, password=password),
        make_dsn(postgres.dsn, dbname=unique, user=owning, password=password),
    )
    postgres.execute(f"DROP DATABASE IF EXISTS {unique} WITH (FORCE)")
    for role in (serving, owning):
        postgres.execute(f"DROP ROLE IF EXISTS {role}")


def test_one_command_creates_both_roles_and_the_database(
    postgres: Postgres, names: tuple[str, str]
) -> None:
    serving, owning = names
    app = create_app(settings_for(serving, MIGRATE_DSN=owning))
    runner = app.test_cli_runner()
    for _ in range(2):  # it may be repeated
        result = runner.invoke(args=["roles", "--as", postgres.dsn])
        assert result.exit_code == 0, result.output
    form = {"email": "a@example.org", "name": "A", "role": "admin", "password": "long enough"}
    given = [part for name, value in form.items() for part in (f"--{name}", value)]
    result = runner.invoke(args=["users", "create", *given])
    assert result.exit_code == 0, result.output
    people = People(serving, InProcess(app))
    order = people.customer().order()
    people.driver().move(order, "Processing")
    owners = postgres.execute(
        "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'",
        dsn=postgres.as_superuser(serving),
    )
    assert owners == [(parse_dsn(owning)["user"],)]
    with pytest.raises(psycopg2.errors.InsufficientPrivilege):
        postgres.execute("ALTER TABLE order_events ADD mine int", dsn=serving)
    with app.app_context():
        db.engine.dispose()


def test_tables_that_the_serving_role_owned_are_taken_from_it(
    postgres: Postgres, names: tuple[str, str]
) -> None:
    """A server that ran with one role is changed to two."""
    serving, owning = names
    user, name = parse_dsn(serving)["user"], parse_dsn(serving)["dbname"]
    postgres.execute(f"CREATE ROLE {user} LOGIN PASSWORD %s", parse_dsn(serving)["password"])
    postgres.execute(f"CREATE DATABASE {name} OWNER {user}")
    migrate(serving)
    app = create_app(settings_for(serving, MIGRATE_DSN=owning))
    result = app.test_cli_runner().invoke(args=["roles", "--as", postgres.dsn])
    assert result.exit_code == 0, result.output
    people = People(serving, InProcess(app))
    people.driver().move(people.customer().order(), "Processing")
    for statement in ("DROP TABLE order_events", "UPDATE order_events SET note = 'x'"):
        with pytest.raises(psycopg2.errors.InsufficientPrivilege):
            postgres.execute(statement, dsn=serving)
    with app.app_context():
        db.engine.dispose()


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, "MIGRATE_DSN must be set"),
        ({"MIGRATE_DSN": "host=x user=a dbname=d"}, "MIGRATE_DSN must name another user"),
        ({"MIGRATE_DSN": "host=x user=b dbname=e"}, "MIGRATE_DSN must name the same dbname"),
        ({"MIGRATE_DSN": "host=x dbname=d"}, "MIGRATE_DSN must name a user and a dbname"),
    ],
)
def test_settings_that_do_not_name_two_roles_are_refused(
    changes: dict[str, str], told: str
) -> None:
    settings = settings_for("host=x user=a dbname=d", **changes)
    with pytest.raises(SettingsError, match=told):
        database_roles.make("host=nowhere", settings)


def test_a_demo_says_that_it_needs_the_owner(fresh_database: Callable[[], str]) -> None:
    dsn = fresh_database()
    app = create_app(settings_for(dsn, MIGRATE_DSN=""))
    result: Any = app.test_cli_runner().invoke(args=["demo"])
    assert result.exit_code == 1
    assert "set MIGRATE_DSN" in result.stderr
    assert app.test_cli_runner().invoke(args=["users", "list"]).output == ""
    with app.app_context():
        db.engine.dispose()


def test_demo_data_that_the_owner_created_passes_the_audit(
    fresh_database: Callable[[], str],
) -> None:
    with opened(fresh_database()) as own:
        assert own.flask("demo").exit_code == 0
        result = own.flask("audit", "verify")
        assert result.exit_code == 0, result.output
