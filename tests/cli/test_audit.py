"""``flask --app wsgi audit verify``: what the triggers cannot stop a superuser from, it finds."""

from collections.abc import Iterator
from dataclasses import dataclass

import psycopg2
import pytest
from psycopg2.extensions import parse_dsn

from ordertrack import cli
from ordertrack.services import audit
from tests.cli.conftest import Own, opened
from tests.support.databases import Postgres


@dataclass(frozen=True)
class Story:
    """Orders 1: completed by a driver, 2: edited, cancelled, 3: deleted, 4 and 5: as placed."""

    database: str  # its name; nobody is connected to it
    ids: dict[str, str]


@pytest.fixture(scope="module")
def story(postgres: Postgres) -> Story:
    dsn = postgres.clone()
    with opened(dsn) as own:
        customer, driver, admin = own.people.customer(), own.people.driver(), own.people.admin()
        orders = [customer.order(f"order {number}") for number in range(1, 6)]
        admin.assign(orders[0], driver)
        driver.move(orders[0], "Processing", "Shipped", "Completed")
        customer.edit(orders[1], "order 2, gift wrapped")
        customer.move(orders[1], "Cancelled")
        customer.delete(orders[2])
    ids = {"customer": customer.id, "driver": driver.id, "admin": admin.id}
    return Story(parse_dsn(dsn)["dbname"], ids)


@pytest.fixture(scope="module")
def whole(postgres: Postgres, story: Story) -> Iterator[Own]:
    """The story as it happened."""
    with opened(postgres.create(template=story.database)) as own:
        yield own


@pytest.fixture
def copy(postgres: Postgres, story: Story) -> Iterator[Own]:
    """A copy of it, to be damaged."""
    dsn = postgres.create(template=story.database)
    with opened(dsn) as own:
        yield own
    postgres.drop(dsn)


def test_a_log_that_only_the_application_wrote_is_whole(whole: Own) -> None:
    result = whole.flask("audit", "verify")
    assert result.exit_code == 0, result.output
    assert result.stdout == "5 orders, 12 events: the log is whole.\n"


def test_an_empty_log_is_whole(own: Own) -> None:
    assert own.flask("audit", "verify").stdout == "0 orders, 0 events: the log is whole.\n"


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_batches_end_anywhere(whole: Own, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BATCH", size)
    with whole.app.app_context():
        assert list(audit.verify())[-1] == audit.Checked(orders=5, events=12)


def test_a_bar_shows_how_far_a_long_check_has_come(
    whole: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole.flask("audit", "verify").stderr == ""
    monkeypatch.setattr(cli, "_ORDERS_WORTH_A_BAR", 5)
    assert "Checking" in whole.flask("audit", "verify").stderr


E = "UPDATE order_events SET"
TAMPERINGS = {
    "an event is missing in the middle": (
        "DELETE FROM order_events WHERE order_id = 1 AND version = 3",
        "Order 1, version 4 (row {row} of order_events) follows version 2",
    ),
    "the last event is missing": (
        "DELETE FROM order_events WHERE order_id = 1 AND version = 5",
        "Order 1: its row has version 5, its log 4",
    ),
    "all events of an order are missing": (
        "DELETE FROM order_events WHERE order_id = 4",
        "Order 4 has no events",
    ),
    "an order is missing": ("DELETE FROM orders WHERE id = 2", "Order 2 has events, but"),
    "the last order is missing": ("DELETE FROM orders WHERE id = 5", "Order 5 has events, but"),
    "a status was rewritten": (
        f"{E} status = 'Completed', type = 'status_changed' WHERE order_id = 1 AND version = 4",
        "Order 1, version 4 (row {row} of order_events) goes from Processing to Completed",
    ),
    "a previous status was rewritten": (
        f"{E} previous_status = 'Pending' WHERE order_id = 1 AND version = 4",
        "has the previous status Pending, but the order was Processing",
    ),
    "a step was blamed on the customer": (
        f"{E} actor_id = {{customer}}, actor_role = 'user' WHERE order_id = 1 AND version = 4",
        "goes from Processing to Shipped, which user {customer} (user) may not",
    ),
    "the first event is another": (
        f"{E} type = 'description_changed' WHERE order_id = 4",
        "an order begins with created",
    ),
    "the order began elsewhere": (
        f"{E} status = 'Shipped' WHERE order_id = 4",
        "begins as Shipped",
    ),
    "an event changes the status in passing": (
        f"{E} status = 'Processing' WHERE order_id = 2 AND version = 2",
        "changes the status, but is description_changed",
    ),
    "the log goes on after a deletion": (
        """INSERT INTO order_events (order_id, version, type, status, previous_status, actor_id,
                                     actor_name, actor_role, customer_id)
           VALUES (3, 3, 'status_changed', 'Cancelled', 'Pending', {admin}, 'x', 'admin',
                   {customer})""",
        "Order 3, version 3 (row {row} of order_events) comes after the order was deleted",
    ),
    "a status is none": (
        """ALTER TABLE order_events DROP CONSTRAINT ck_order_events_status;
           UPDATE order_events SET status = 'Lost' WHERE order_id = 1 AND version = 4""",
        "Order 1, version 4 (row {row} of order_events) has the unknown status Lost",
    ),
    "a type is none": (
        """ALTER TABLE order_events DROP CONSTRAINT ck_order_events_type;
           UPDATE order_events SET type = 'lost' WHERE order_id = 1 AND version = 4""",
        "Order 1, version 4 (row {row} of order_events) is lost, which is no change of an order",
    ),
    "what changed is of another form": (
        f"{E} changes = '[1]' WHERE order_id = 1 AND version = 2",
        "Order 1, version 2 (row {row} of order_events) names two different drivers",
    ),
    "an order was moved without its log": (
        "UPDATE orders SET status = 'Processing' WHERE id = 4",
        "Order 4: its row has status 'Processing', its log 'Pending'",
    ),
    "a description was changed without its log": (
        "UPDATE orders SET description = 'something else' WHERE id = 2",
        "Order 2: its row has description 'something else'",
    ),
    "a driver was given without the log": (
        "UPDATE orders SET driver_id = {driver} WHERE id = 4",
        "Order 4: its row has driver_id",
    ),
    "a deleted order was brought back": (
        "UPDATE orders SET deleted_at = NULL WHERE id = 3",
        "Order 3: its row has deletion False, its log True",
    ),
    "an event was given to another customer": (
        f"{E} customer_id = {{driver}} WHERE order_id = 4",
        "names another customer",
    ),
}


@pytest.mark.safety("tampering")
@pytest.mark.parametrize("case", TAMPERINGS)
def test_the_first_bad_row_is_named(copy: Own, postgres: Postgres, story: Story, case: str) -> None:
    sql, told = TAMPERINGS[case]
    superuser = postgres.as_superuser(copy.dsn)
    for table in ("order_events", "orders"):
        postgres.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL", dsn=superuser)
    postgres.execute(sql.format(**story.ids), dsn=superuser)

    result = copy.flask("audit", "verify")
    assert result.exit_code == 1
    named = result.stderr.split("(row ")[-1].split(" ")[0]
    assert told.format(**story.ids, row=named) in result.stderr
    assert result.stdout == ""


def test_damage_in_two_orders_is_told_of_the_first(
    copy: Own, postgres: Postgres, story: Story
) -> None:
    superuser = postgres.as_superuser(copy.dsn)
    postgres.execute("UPDATE orders SET status = 'Shipped' WHERE id IN (2, 4)", dsn=superuser)
    assert "Order 2: " in copy.flask("audit", "verify").stderr


@pytest.mark.safety("tampering")
def test_the_application_itself_cannot_rewrite_the_log(whole: Own) -> None:
    for statement in (
        "UPDATE order_events SET note = 'x'",
        "DELETE FROM order_events",
        "TRUNCATE order_events CASCADE",
    ):
        with psycopg2.connect(whole.dsn) as connection, connection.cursor() as cursor:
            with pytest.raises(psycopg2.errors.InsufficientPrivilege, match="append-only"):
                cursor.execute(statement)
            connection.rollback()
