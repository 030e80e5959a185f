"""``flask --app wsgi audit verify`` finds changes of the log that a superuser made."""

import re
from collections.abc import Iterator
from dataclasses import dataclass

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


def test_a_log_that_only_the_application_wrote_is_valid(whole: Own) -> None:
    result = whole.flask("audit", "verify")
    assert result.exit_code == 0, result.output
    assert result.stdout == "5 orders, 12 events: the log is whole.\n"


def test_an_empty_log_is_valid(own: Own) -> None:
    assert own.flask("audit", "verify").stdout == "0 orders, 0 events: the log is whole.\n"


@pytest.mark.parametrize("size", [1, 2, 5, 6])
def test_batches_end_anywhere(whole: Own, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BATCH", size)
    with whole.app.app_context():
        assert list(audit.verify())[-1] == audit.Checked(orders=5, events=12, upto=5)


def test_a_progress_bar_shows_how_far_a_long_check_is(
    whole: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert whole.flask("audit", "verify").stderr == ""
    monkeypatch.setattr(cli, "_MIN_ORDERS_FOR_BAR", 5)
    assert "Checking" in whole.flask("audit", "verify").stderr


def test_the_last_order_is_known_without_counting(own: Own, postgres: Postgres) -> None:
    """By the index, however many orders there are."""
    with own.app.app_context():
        assert audit.last_order() == 0
    plan = postgres.execute(
        "EXPLAIN SELECT coalesce(max(id), 0) FROM orders", dsn=postgres.as_superuser(own.dsn)
    )
    assert "Limit" in str(plan)
    assert "Index Only Scan" in str(plan)


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
    "a transition is by the customer": (
        f"{E} actor_id = {{customer}}, actor_role = 'user' WHERE order_id = 1 AND version = 4",
        "goes from Processing to Shipped, which user {customer} (user) may not",
    ),
    "the first event is not created": (
        f"{E} type = 'description_changed' WHERE order_id = 4",
        "an order begins with created",
    ),
    "the first status is not Pending": (
        f"{E} status = 'Shipped' WHERE order_id = 4",
        "begins as Shipped",
    ),
    "another type of event changes the status": (
        f"{E} status = 'Processing' WHERE order_id = 2 AND version = 2",
        "changes the status, but is description_changed",
    ),
    "an event follows a deletion": (
        """INSERT INTO order_events (order_id, version, type, status, previous_status, actor_id,
                                     actor_name, actor_role, customer_id)
           VALUES (3, 3, 'status_changed', 'Cancelled', 'Pending', {admin}, 'x', 'admin',
                   {customer})""",
        "Order 3, version 3 (row {row} of order_events) comes after the order was deleted",
    ),
    "a status is unknown": (
        """ALTER TABLE order_events DROP CONSTRAINT ck_order_events_status;
           UPDATE order_events SET status = 'Lost' WHERE order_id = 1 AND version = 4""",
        "Order 1, version 4 (row {row} of order_events) has the unknown status Lost",
    ),
    "a type is unknown": (
        """ALTER TABLE order_events DROP CONSTRAINT ck_order_events_type;
           UPDATE order_events SET type = 'lost' WHERE order_id = 1 AND version = 4""",
        "Order 1, version 4 (row {row} of order_events) is lost, which is not a type of change",
    ),
    "the changes have another form": (
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
    "an event is backdated": (
        f"{E} created_at = '2001-01-01' WHERE order_id = 1 AND version = 4",
        "Order 1, version 4 (row {row} of order_events) is of 2001-01-01 00:00:00+00:00, but",
    ),
    "the last event has another time": (
        f"{E} created_at = created_at + interval '1 ms' WHERE order_id = 1 AND version = 5",
        "Order 1: its row has time",
    ),
    "the first event has another time": (
        f"{E} created_at = created_at - interval '1 ms' WHERE order_id = 4",
        "Order 4, version 1 (row {row} of order_events) is of",
    ),
    "an order is from the future": (
        f"""{E} created_at = '2999-01-01' WHERE order_id = 4;
            UPDATE orders SET created_at = '2999-01-01' WHERE id = 4""",
        "is of 2999-01-01 00:00:00+00:00, which is in the future",
    ),
    "an event is of a future transaction": (
        f"{E} xid = '9999999999' WHERE order_id = 1 AND version = 2",
        "Order 1, version 2 (row {row} of order_events) is of a transaction in the future",
    ),
    "two events were swapped": (
        f"{E} id = 1000 + id WHERE order_id = 1 AND version = 2",
        "Order 1, version 3 (row {row} of order_events) was written before version 2",
    ),
    "an edit is by the driver": (
        f"{E} actor_id = {{driver}}, actor_role = 'driver' WHERE order_id = 2 AND version = 2",
        "is description_changed at Pending, which user {driver} (driver) may not",
    ),
    "a deletion is by the driver": (
        f"{E} actor_id = {{driver}}, actor_role = 'driver' WHERE order_id = 3 AND version = 2",
        "is deleted at Pending, which user {driver} (driver) may not",
    ),
    "an assignment is by the customer": (
        f"{E} actor_id = {{customer}}, actor_role = 'user' WHERE order_id = 1 AND version = 2",
        "is driver_assigned at Pending, which user {customer} (user) may not",
    ),
    "an order is placed by the admin": (
        f"{E} actor_id = {{admin}}, actor_role = 'admin' WHERE order_id = 4",
        "is by user {admin} (admin), but customers place their orders themselves",
    ),
    "an actor had another role": (
        f"{E} actor_role = 'admin' WHERE order_id = 1 AND version = 3",
        "is by user {driver} (admin), who never had that role",
    ),
    "an actor does not exist": (
        f"{E} actor_id = 1000 WHERE order_id = 1 AND version = 3",
        "is by user 1000 (driver), who never had that role",
    ),
    "an order began with a driver": (
        f"{E} driver_id = {{driver}} WHERE order_id = 4",
        "Order 4, version 1 (row {row} of order_events) begins with a driver",
    ),
    "an event was given to another customer": (
        f"{E} customer_id = {{driver}} WHERE order_id = 4",
        "names another customer",
    ),
}


@pytest.mark.safety("tampering")
@pytest.mark.safety("serving-role")
@pytest.mark.parametrize("case", TAMPERINGS)
def test_the_first_invalid_row_is_named(
    copy: Own, postgres: Postgres, story: Story, case: str
) -> None:
    sql, told = TAMPERINGS[case]
    superuser = postgres.as_superuser(copy.dsn)
    for table in ("order_events", "orders"):
        postgres.execute(f"ALTER TABLE {table} DISABLE TRIGGER ALL", dsn=superuser)
    postgres.execute(sql.format(**story.ids), dsn=superuser)

    result = copy.flask("audit", "verify")
    assert result.exit_code == 1
    # The text has the real id of the row that was damaged.
    row = ""
    if found := re.search(r"Order (\d+), version (\d+) \(row (\d+)", result.stderr):
        order, version, row = found.groups()
        [(real,)] = postgres.execute(
            "SELECT id::text FROM order_events WHERE order_id = %s AND version = %s",
            order,
            version,
            dsn=superuser,
        )
        assert row == real
        if damaged := re.search(r"order_id = (\d+)(?: AND version = (\d+))?", sql):
            assert order == damaged[1]
    assert told.format(**story.ids, row=row) in result.stderr
    assert result.stdout == ""


def test_an_actor_may_have_had_another_role_before(own: Own) -> None:
    admin, person = own.people.admin(), own.people.driver()
    order = own.people.customer().order()
    person.move(order, "Processing")
    admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "admin"})
    person.move(order, "Shipped")
    admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "user"})
    assert own.flask("audit", "verify").exit_code == 0


def test_a_change_of_role_without_its_roles_allows_any_role(own: Own, postgres: Postgres) -> None:
    admin, person = own.people.admin(), own.people.driver()
    person.move(own.people.customer().order(), "Processing")
    admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "user"})
    superuser = postgres.as_superuser(own.dsn)
    postgres.execute("ALTER TABLE access_changes DISABLE TRIGGER ALL", dsn=superuser)
    postgres.execute("UPDATE access_changes SET old_role = NULL, new_role = NULL", dsn=superuser)
    assert own.flask("audit", "verify").exit_code == 0


def test_of_two_damaged_orders_the_first_is_named(
    copy: Own, postgres: Postgres, story: Story
) -> None:
    superuser = postgres.as_superuser(copy.dsn)
    postgres.execute("UPDATE orders SET status = 'Shipped' WHERE id IN (2, 4)", dsn=superuser)
    assert "Order 2: " in copy.flask("audit", "verify").stderr
