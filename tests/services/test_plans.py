"""Query plans: each page, endpoint, background read and write reads a bounded part of the tables.

On two hundred thousand orders, enough for PostgreSQL to choose the plans that it has for more.
`tests/faults/by_hand/plans.py` does the same at any size, and measures the time as well.
"""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, replace

import psycopg2
import pytest
from flask import Flask

from ordertrack.app import create_app
from ordertrack.errors import Forbidden
from ordertrack.extensions import db
from ordertrack.lifecycle import Status
from ordertrack.policy import DriverScope
from ordertrack.services import order_lists, order_search, order_walk, order_writes, orders
from ordertrack.services.callers import parameters
from ordertrack.services.order_query import Filters
from tests.support import reads
from tests.support.bulk import ABSENT, Size, fill
from tests.support.databases import Postgres, settings_for
from tests.support.plans import Plan, recorded, recording
from tests.support.reads import Callers

pytestmark = pytest.mark.safety("large-log")

SIZE = Size(200_000, events_per_order=2)

# For one page: the rows that a walk reads for the page, again for the place where it stopped, again
# for the counts, in each of a driver's three walks with DRIVER_SCOPE=assigned, and those that a
# search by index finds.
MOST_ROWS = 3 * 3 * order_walk.SCANNED + order_search.CANDIDATES
# The counts of the plain board come from the index of the statuses.
MOST_COUNTED = 5 * (order_lists.COUNTED + 1)

BIG_TABLES = ("orders", "order_events", "users", "idempotency_keys")


@dataclass(frozen=True)
class Large:
    app: Flask
    dsn: str
    callers: Callers


@pytest.fixture(scope="module")
def large(postgres: Postgres) -> Iterator[Large]:
    dsn = postgres.clone()
    fill(postgres.as_superuser(dsn), SIZE)
    app = create_app(settings_for(dsn))
    with app.app_context():
        yield Large(app, dsn, reads.log_in(dsn))
        db.engine.dispose()
    postgres.drop(dsn)


def test_no_read_scans_a_whole_table_or_a_large_part_of_it(large: Large) -> None:
    asked = (
        *reads.list_reads(large.callers, SIZE),
        *reads.order_reads(large.callers, SIZE),
        *reads.other_reads(large.callers, SIZE),
    )
    with recorded(db.engine) as plans:
        for name, read in asked:
            plans.clear()
            read()
            assert plans, name
            _require_bounded(name, plans)


def test_no_write_looks_at_more_orders_than_it_writes(large: Large, postgres: Postgres) -> None:
    # All of one order: statistics by which joining the tables looks cheap.
    postgres.execute(
        "INSERT INTO idempotency_keys (user_id, key, request_hash, order_id)"
        " SELECT id, 'key ' || id, '-', 1 FROM users",
        dsn=large.dsn,
    )
    postgres.execute("ANALYZE idempotency_keys", dsn=postgres.as_superuser(large.dsn))
    customer, admin = large.callers.customer, large.callers.admin
    with recorded(db.engine) as plans:
        for name, write in (
            ("place", lambda: orders.create(customer, "a lamp")),
            ("place with a key", lambda: orders.create(customer, "a lamp", key="new")),
            ("place with the same key", lambda: orders.create(customer, "a lamp", key="new")),
            ("move", lambda: orders.change_status(admin, SIZE.orders, Status.PROCESSING)),
            ("move again", lambda: orders.change_status(admin, SIZE.orders, Status.PROCESSING)),
        ):
            plans.clear()
            write()
            assert plans, name
            for plan in plans:
                assert not plan.scanned_whole(*BIG_TABLES), f"{name}: {plan.shape}"
                read = sum(plan.rows_read(table) for table in BIG_TABLES)
                assert read <= 10, f"{name}: {plan.shape}"


def test_a_group_looks_each_of_its_orders_up(large: Large) -> None:
    first = SIZE.orders - 150  # they are Pending
    caller, most = large.callers.admin, order_writes._MOST
    moves = [
        {**parameters(caller), "id": first + n, "target": "Processing", "note": None,
         "if_version": None}
        for n in range(most)
    ]  # fmt: skip
    placed = [{**parameters(large.callers.customer), "description": "a lamp"}] * most
    with recorded(db.engine) as plans:
        for several, calls in (
            (order_writes._move_several, moves),
            (order_writes._place_several, placed),
        ):
            plans.clear()
            assert all(several(calls))
            [plan] = plans
            assert not plan.scanned_whole(*BIG_TABLES), plan.shape
            assert sum(plan.rows_read(table) for table in BIG_TABLES) <= 6 * most, plan.shape


def test_the_relay_reads_the_end_of_the_log_only(large: Large) -> None:
    plans: list[Plan] = []
    options = "-c enable_seqscan=off -c plan_cache_mode=force_generic_plan"
    with closing(
        psycopg2.connect(large.dsn, options=options, cursor_factory=recording(plans))
    ) as connection:
        connection.autocommit = True
        for name, read in reads.tail_reads(connection.cursor(), 2):
            plans.clear()
            read()
            _require_bounded(name, plans)
            assert sum(plan.rows_read("order_events") for plan in plans) <= 5_000, name


def _require_bounded(name: str, plans: list[Plan]) -> None:
    for plan in plans:
        assert not plan.scanned_whole(*BIG_TABLES), f"{name}: {plan.shape}"
    read = sum(plan.rows_read("orders") for plan in plans)
    assert read <= max(MOST_ROWS, MOST_COUNTED), f"{name} looked at {read} orders"


def _no_order(plans: list[Plan]) -> bool:
    return bool(plans) and all(
        plan.rows_read("orders") == plan.rows_read("order_events") == 0 for plan in plans
    )


@pytest.mark.parametrize("scope", DriverScope)
@pytest.mark.parametrize(
    "ask",
    [
        lambda caller: order_lists.staff_page(caller, Filters(text=ABSENT), before=None, limit=50),
        lambda caller: order_lists.staff_page(
            caller, Filters(words="4711", driver_id=25), before=None, limit=50
        ),
        lambda caller: order_lists.staff_page(
            caller,
            Filters(driver_id=25, status=Status.COMPLETED),
            before=None,
            limit=50,
        ),
        lambda caller: order_lists.board(caller, Filters(words=ABSENT), before=None, limit=50),
        lambda caller: order_lists.waiting(caller, mine=False),
        lambda caller: next(order_lists.export(caller, Filters())),
    ],
    ids=["list", "list by number", "list by two filters", "board", "deliveries", "export"],
)
def test_a_customer_who_asks_for_a_staff_list_makes_no_order_be_read(
    large: Large, ask: Callable[..., object], scope: DriverScope
) -> None:
    with recorded(db.engine) as plans:
        with pytest.raises(Forbidden):
            ask(replace(large.callers.customer, scope=scope))
        assert _no_order(plans)


def test_a_driver_who_asks_for_deleted_orders_makes_no_order_be_read(large: Large) -> None:
    wanted = Filters(deleted=True, words=ABSENT)
    with recorded(db.engine) as plans:
        with pytest.raises(Forbidden):
            order_lists.staff_page(large.callers.driver, wanted, before=None, limit=50)
        assert _no_order(plans)
