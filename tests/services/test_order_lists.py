"""Lists whose pages are cut short: every order is on one page, once, and the page says so.

The bounds are lowered to a few orders, so that a handful behaves as millions do.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import product
from typing import Any

import pytest

from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.lifecycle import Status
from ordertrack.policy import Caller, DriverScope
from ordertrack.services import order_lists, order_search, order_walk
from ordertrack.services.order_lists import Count
from ordertrack.services.order_query import Filters, Page
from tests.support.databases import Postgres, settings_for
from tests.support.missing import NO_TRIGRAMS
from tests.support.reads import session_of

SEARCH_INDEXES = ("ix_order_events_description_search", "ix_users_search")

YEARS = [datetime(2020 + n, 1, 1, tzinfo=UTC) for n in range(4)]


@dataclass
class Shop:
    """A database with some orders of all kinds, and its people by name."""

    dsn: str
    postgres: Postgres
    people: dict[str, Caller]

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.postgres.execute(sql, *values, dsn=self.postgres.as_superuser(self.dsn))

    @property
    def numbers(self) -> dict[str, int]:
        return {name: person.user_id for name, person in self.people.items()}

    def ids(self, where: str) -> list[int]:
        found = self.execute(f"SELECT o.id FROM orders o WHERE {where} ORDER BY o.id DESC")
        return [number for (number,) in found]

    @property
    def can_search(self) -> bool:
        """Whether the migration found pg_trgm here."""
        [(found,)] = self.execute("SELECT to_regclass(%s) IS NOT NULL", SEARCH_INDEXES[0])
        return bool(found)


PEOPLE = {
    "Ada": "admin",
    "Dewi": "driver",
    "Dora": "driver",
    "Carl": "user",
    "Cleo": "user",
    "Zoë Zanzibar": "user",
}


@pytest.fixture(scope="module")
def shop(postgres: Postgres) -> Iterator[Shop]:
    dsn = postgres.clone()
    made = Shop(dsn, postgres, {})
    for name, role in PEOPLE.items():
        [(number,)] = made.execute(
            "INSERT INTO users (name, email, password_hash, role) VALUES (%s, %s, 'x', %s)"
            " RETURNING id",
            name,
            f"{name.split()[0].lower()}@example.org",
            role,
        )
        made.people[name] = session_of(dsn, number)
    # Ten cancelled ones, long ago; a hundred final ones, two hundred open ones. Every ninth
    # was deleted, Zoë placed every eleventh of the first half, and Dora drives only a few.
    made.execute("ALTER TABLE orders DISABLE TRIGGER orders_stamp")  # of other times than now
    made.execute(
        """
        WITH o AS (
            INSERT INTO orders (customer_id, driver_id, description, status, created_at, deleted_at)
            SELECT CASE WHEN i %% 11 = 0 AND i < 150 THEN %s WHEN i %% 2 = 0 THEN %s ELSE %s END,
                   CASE WHEN i %% 50 = 7 THEN %s WHEN i %% 3 = 0 THEN NULL ELSE %s END,
                   'parcel ' || i || CASE WHEN i IN (5, 77) THEN ' with a quetzalcoatl' ELSE '' END,
                   CASE WHEN i <= 10 THEN 'Cancelled' WHEN i <= 110 THEN 'Completed'
                        WHEN i %% 40 = 0 THEN 'Shipped' WHEN i %% 40 = 20 THEN 'Processing'
                        ELSE 'Pending' END,
                   '2020-01-01Z'::timestamptz + interval '4 days' * i,
                   CASE WHEN i %% 9 = 0 THEN now() END
              FROM generate_series(1, 310) AS i ORDER BY i
            RETURNING *)
        INSERT INTO order_events (order_id, version, type, status, actor_id, actor_name, actor_role,
                                  changes, customer_id)
        SELECT o.id, 1, 'created', 'Pending', o.customer_id, 'x', 'user',
               jsonb_build_object('description', o.description), o.customer_id FROM o""",
        *(made.people[name].user_id for name in ("Zoë Zanzibar", "Carl", "Cleo", "Dora", "Dewi")),
    )
    # The clock was set back several times: ids and times disagree about which order is newer.
    made.execute("UPDATE orders SET created_at = created_at - interval '30 days' WHERE id % 13 = 0")
    made.execute("ALTER TABLE orders ENABLE TRIGGER orders_stamp")
    made.execute("VACUUM ANALYZE")
    app = create_app(settings_for(dsn))
    with app.app_context():
        yield made
        db.engine.dispose()
    postgres.drop(dsn)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """A statement looks at a few orders only, and no text is searched for by index."""
    monkeypatch.setattr(order_walk, "SCANNED", 12)
    monkeypatch.setattr(order_lists, "COUNTED", 6)
    monkeypatch.setattr(order_search, "CANDIDATES", -1)


def pages(read: Callable[[int | None], Page], limit: int) -> list[Page]:
    """Every page to the last."""
    found = [read(None)]
    while found[-1].older is not None:
        assert len(found) < 1000, "no end"
        assert found[-1].cut_short or len(found[-1].orders) == limit
        found.append(read(found[-1].older))
    return found


def ids(found: list[Page]) -> list[int]:
    return [order.id for page in found for order in page.orders]


LIVE = "o.deleted_at IS NULL"


def narrowed(who: dict[str, int]) -> dict[str, tuple[Filters, str]]:
    """By name: filters, and the same in SQL. *who* are people's ids."""
    dewi, dora = who["Dewi"], who["Dora"]
    zoe = f"{LIVE} AND o.customer_id = {who['Zoë Zanzibar']}"
    by_dewi, by_dora = (f"{LIVE} AND o.driver_id = {driver}" for driver in (dewi, dora))
    since, until = (f"o.created_at {sign} '{YEARS[n]}'" for sign, n in ((">=", 1), ("<", 2)))
    completed = " AND o.status = 'Completed'"
    found: dict[str, tuple[Filters, str]] = {
        f"status {status}": (Filters(status=status), f"{LIVE} AND o.status = '{status}'")
        for status in Status
    }
    return found | {
        "everything": (Filters(), LIVE),
        "driver": (Filters(driver_id=dewi), by_dewi),
        "driver and open status": (
            Filters(driver_id=dewi, status=Status.SHIPPED),
            f"{by_dewi} AND o.status = 'Shipped'",
        ),
        "driver and final status": (
            Filters(driver_id=dora, status=Status.COMPLETED),
            by_dora + completed,
        ),
        "nobody's": (Filters(unassigned=True), f"{LIVE} AND o.driver_id IS NULL"),
        "customer": (
            Filters(customer_id=who["Zoë Zanzibar"], status=Status.COMPLETED),
            zoe + completed,
        ),
        "customer's name": (Filters(customer="zanzibar"), zoe),
        "customer's name, of another": (
            Filters(customer="zanzibar", customer_id=who["Carl"]),
            "false",
        ),
        "customer's address": (
            Filters(customer="cleo@"),
            f"{LIVE} AND o.customer_id = {who['Cleo']}",
        ),
        "from": (
            Filters(created_from=YEARS[1], status=Status.PENDING),
            f"{LIVE} AND {since} AND o.status = 'Pending'",
        ),
        "before": (Filters(created_before=YEARS[2]), f"{LIVE} AND {until}"),
        "between": (
            Filters(created_from=YEARS[1], created_before=YEARS[2], driver_id=dewi),
            f"{by_dewi} AND {since} AND {until}",
        ),
        "text": (Filters(text="7"), f"{LIVE} AND o.description LIKE '%7%'"),
        "rare text": (
            Filters(text="quetzalcoatl"),
            f"{LIVE} AND o.description LIKE '%quetzalcoatl%'",
        ),
        "absent text": (Filters(text="unicorn"), "false"),
        "words in names": (Filters(words="ZANZIBAR"), zoe),
        "deleted": (Filters(deleted=True), "o.deleted_at IS NOT NULL"),
        "deleted, status": (
            Filters(deleted=True, status=Status.COMPLETED),
            f"o.deleted_at IS NOT NULL{completed}",
        ),
    }


NAMES = list(narrowed(dict.fromkeys(PEOPLE, 0)))


@pytest.mark.parametrize("name", NAMES)
def test_each_filter_finds_some_and_not_all_that_there_is(shop: Shop, name: str) -> None:
    """Otherwise the tests of it would show nothing."""
    _, where = narrowed(shop.numbers)[name]
    found, everything = len(shop.ids(where)), len(shop.ids("true"))
    assert found < everything
    assert found > 0 or where == "false"


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("limit", [1, 5, 100])
@pytest.mark.parametrize("name", NAMES)
def test_short_pages_join_to_the_whole_list(shop: Shop, name: str, limit: int) -> None:
    filters, where = narrowed(shop.numbers)[name]
    found = pages(
        lambda before: order_lists.staff_page(
            shop.people["Ada"], filters, before=before, limit=limit
        ),
        limit,
    )
    # Newest by time where times are asked for; else by number.
    by_time = filters.created_from is not None or filters.created_before is not None
    assert (sorted(ids(found), reverse=True) if by_time else ids(found)) == shop.ids(where)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("limit", [3, 100])
@pytest.mark.parametrize("name", [name for name in NAMES if "deleted" not in name])
def test_short_pages_join_for_drivers_who_see_only_assigned_orders(
    shop: Shop, name: str, limit: int
) -> None:
    filters, where = narrowed(shop.numbers)[name]
    driver = shop.people["Dora"]
    # An order that a driver both placed and drives is listed once.
    for own in (f"o.driver_id = {driver.user_id}", f"o.driver_id <> {driver.user_id}"):
        shop.execute(
            f"UPDATE orders o SET customer_id = {driver.user_id}"
            f" WHERE id = (SELECT id FROM orders o WHERE {LIVE} AND {own} LIMIT 1)"
        )
    narrow = replace(driver, scope=DriverScope.ASSIGNED)
    found = pages(
        lambda before: order_lists.staff_page(narrow, filters, before=before, limit=limit),
        limit,
    )
    theirs = f"(o.driver_id = {driver.user_id} OR o.customer_id = {driver.user_id})"
    assert ids(found) == shop.ids(f"{where} AND {theirs}")


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("text", [None, "7", "unicorn"])
def test_short_pages_of_own_orders_join(shop: Shop, text: str | None) -> None:
    customer = shop.people["Carl"]
    found = pages(
        lambda before: order_lists.own_page(customer, Filters(text=text), before=before, limit=4),
        4,
    )
    like = f" AND o.description LIKE '%{text}%'" if text else ""
    assert ids(found) == shop.ids(f"{LIVE} AND o.customer_id = {customer.user_id}{like}")


@pytest.mark.usefixtures("few")
def test_a_page_that_was_cut_short_says_so_and_the_last_does_not(shop: Shop) -> None:
    def read(before: int | None) -> Page:
        return order_lists.staff_page(
            shop.people["Ada"],
            Filters(text="unicorn"),
            before=before,
            limit=10,
        )

    *others, last = pages(read, 10)
    assert len(others) == 310 // order_walk.SCANNED
    assert all(page.cut_short and not page.orders for page in others)
    assert not last.cut_short


@pytest.mark.usefixtures("few")
def test_an_order_is_found_by_its_number_however_old_and_once(shop: Shop) -> None:
    number = shop.ids("o.description = 'parcel 7'")[0]
    for words, limit in product((str(number), f"#{number}"), (1, 5)):
        found = pages(
            lambda before, words=words, limit=limit: order_lists.staff_page(
                shop.people["Ada"],
                Filters(words=words),
                before=before,
                limit=limit,
            ),
            limit,
        )
        assert ids(found[:1])[0] == number
        others = shop.ids(f"{LIVE} AND o.description LIKE '%{words}%' AND o.id <> {number}")
        assert ids(found) == [number, *others]
    dora = shop.people["Dora"]
    unseen = shop.ids(f"o.customer_id <> {dora.user_id} AND o.driver_id <> {dora.user_id}")[0]
    narrow = replace(dora, scope=DriverScope.ASSIGNED)
    page = order_lists.staff_page(narrow, Filters(words=str(unseen)), before=None, limit=5)
    assert unseen not in ids([page])


# --- counts --------------------------------------------------------------------------------------


def counted(shop: Shop, filters: Filters) -> dict[Status, Count]:
    return order_lists.board(shop.people["Ada"], filters, before=None, limit=2).counts


@pytest.mark.parametrize("name", NAMES)
def test_counts_are_exact_while_they_are_small(shop: Shop, name: str) -> None:
    filters, where = narrowed(shop.numbers)[name]
    if filters.status is not None:
        where = where.replace(f" AND o.status = '{filters.status}'", "")
    expected = dict(
        shop.execute(f"SELECT o.status, count(*) FROM orders o WHERE {where} GROUP BY 1")
    )
    assert counted(shop, filters) == {
        status: Count(expected.get(status.value, 0)) for status in Status
    }


@pytest.mark.usefixtures("few")
def test_counts_beyond_the_bound_say_at_least(shop: Shop) -> None:
    by_status = counted(shop, Filters())
    assert {status: str(count) for status, count in by_status.items()} == {
        Status.PENDING: "6+",
        Status.PROCESSING: "4",
        Status.SHIPPED: "5",
        Status.COMPLETED: "6+",
        Status.CANCELLED: "6+",
    }
    assert str(sum(by_status.values(), start=Count(0))) == "27+"
    driver = counted(shop, Filters(driver_id=shop.people["Dewi"].user_id))
    assert all(count.more for count in driver.values())
    assert sum(count.number for count in driver.values()) == order_walk.SCANNED // 3
    assert str(Count(10_000, more=True)) == "10,000+"


# --- searching by index --------------------------------------------------------------------------


def search(shop: Shop, wanted: Filters) -> Page:
    return order_lists.staff_page(shop.people["Ada"], wanted, before=None, limit=50)


@pytest.mark.parametrize(
    ("wanted", "where"),
    [
        (Filters(text="quetzalcoatl"), f"{LIVE} AND o.description LIKE '%quetzalcoatl%'"),
        (Filters(words="QUETZAL"), f"{LIVE} AND o.description LIKE '%quetzalcoatl%'"),
        (Filters(words="unicorn"), "false"),
    ],
)
def test_rare_text_is_found_beyond_the_bound_where_pg_trgm_is_available(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, wanted: Filters, where: str
) -> None:
    monkeypatch.setattr(order_walk, "SCANNED", 12)
    page = search(shop, wanted)
    if shop.can_search:
        assert ids([page]) == shop.ids(where)
        assert not page.cut_short
    else:  # the bound holds, and is told
        assert page.orders == []
        assert page.cut_short


def test_names_are_found_beyond_the_bound_and_counted_where_pg_trgm_is_available(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_walk, "SCANNED", 12)
    if not shop.can_search:
        pytest.skip(NO_TRIGRAMS)
    zoes = f"{LIVE} AND o.customer_id = {shop.people['Zoë Zanzibar'].user_id}"
    for wanted in (Filters(words="zanzibar"), Filters(customer="zoë@"), Filters(customer="zanz")):
        board = order_lists.board(shop.people["Ada"], wanted, before=None, limit=50)
        assert ids([board.page]) == shop.ids(zoes)
        assert sum(board.counts.values(), start=Count(0)) == Count(len(shop.ids(zoes)))


def test_a_text_in_too_many_orders_is_not_searched_by_index(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_walk, "SCANNED", 12)
    monkeypatch.setattr(order_search, "CANDIDATES", 1)
    # The results are the same without the indexes, and only take longer.
    monkeypatch.setattr(order_search, "_HAS_INDEXES", "SELECT true AS found")
    assert search(shop, Filters(text="quetzalcoatl")).cut_short
    # Too many users have it in their address, although none of them has an order.
    shop.execute(
        """INSERT INTO users (name, email, password_hash)
           SELECT 'Nobody', i || '@example.net', 'x' FROM generate_series(1, 3) AS i"""
    )
    assert search(shop, Filters(customer="example.net")).cut_short


# --- whole lists at their real size --------------------------------------------------------------


def test_an_export_and_the_boards_pages_have_every_order_once(shop: Shop) -> None:
    number = order_lists.EXPORT_BATCH * 2 + 37
    shop.execute(
        """INSERT INTO orders (customer_id, description, status)
           SELECT %s, 'bulk ' || i, 'Pending' FROM generate_series(1, %s) AS i""",
        shop.people["Cleo"].user_id,
        number,
    )
    try:
        wanted = Filters(customer_id=shop.people["Cleo"].user_id)
        expected = shop.ids(f"{LIVE} AND o.customer_id = {wanted.customer_id}")
        assert len(expected) > number
        admin = shop.people["Ada"]
        exported = list(order_lists.export(admin, wanted))
        assert [order.id for order in exported] == expected
        found = pages(
            lambda before: order_lists.board(admin, wanted, before=before, limit=50).page,
            50,
        )
        assert ids(found) == expected
        assert len(found) > 2
    finally:
        shop.execute("DELETE FROM orders WHERE description LIKE 'bulk %%'")
