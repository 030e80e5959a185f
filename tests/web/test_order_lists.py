"""Lists of orders: filters, keyset pages that neither skip nor repeat, the Link header."""

import re
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import psycopg2
import pytest

from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.services import order_walk
from tests.support.databases import Postgres, settings_for
from tests.support.http import Api, InProcess
from tests.support.people import People, Person
from tests.support.waiting import eventually


def ids(orders: list[dict[str, Any]]) -> list[str]:
    return [order["id"] for order in orders]


def listed(api: Api, path: str) -> list[str]:
    answer = api.get(path)
    assert answer.status_code == 200, answer.text
    return ids(answer.json()["orders"])


def all_pages(api: Api, path: str, limit: int) -> list[str]:
    """Follow next_cursor to the end."""
    found: list[str] = []
    cursor = ""
    while cursor is not None:
        separator = "&" if "?" in path else "?"
        at = f"&cursor={cursor}" if cursor else ""
        page = api.get(f"{path}{separator}limit={limit}{at}").json()
        assert len(page["orders"]) <= limit
        found += ids(page["orders"])
        cursor = page["next_cursor"]
    return found


def test_own_orders_are_listed_newest_first_without_those_of_others(people: People) -> None:
    owner, other = people.customer(), people.customer()
    made = [owner.order()["id"] for _ in range(3)]
    other.order()
    answer = owner.api.get("/api/orders")
    assert ids(answer.json()["orders"]) == made[::-1]
    assert answer.json()["next_cursor"] is None
    assert "Link" not in answer.headers
    assert answer.json()["orders"][0] == owner.read(made[2])


def test_staff_have_own_orders_too(people: People) -> None:
    admin = people.admin()
    people.customer().order()
    mine = admin.order()
    assert listed(admin.api, "/api/orders") == [mine["id"]]


def test_an_empty_list_has_no_cursor(people: People) -> None:
    answer = people.customer().api.get("/api/orders")
    assert answer.json() == {"orders": [], "next_cursor": None}


@pytest.mark.parametrize("number", [1, 2, 3, 4, 6, 7, 8])
def test_pages_contain_every_order_once(people: People, number: int) -> None:
    owner = people.customer()
    made = [owner.order()["id"] for _ in range(number)]
    assert all_pages(owner.api, "/api/orders", limit=3) == made[::-1]


def test_the_link_header_names_the_next_page(people: People) -> None:
    owner = people.customer()
    word = uuid4().hex
    made = [owner.order(f"{word} & more")["id"] for _ in range(5)]
    path, found = f"/api/orders?limit=2&q={word}+%26&status=Pending", []
    while path:
        answer = owner.api.get(path)
        found += ids(answer.json()["orders"])
        link = re.fullmatch(r'<(/[^>]+)>; rel="next"', answer.headers.get("Link", ""))
        assert bool(link) == (answer.json()["next_cursor"] is not None)
        path = link[1] if link else ""
    assert found == made[::-1]


def test_pages_neither_skip_nor_repeat_orders_during_changes(people: People) -> None:
    owner = people.customer()
    made = [owner.order()["id"] for _ in range(30)]
    ending = threading.Event()

    def place_more() -> int:
        rounds = 0
        while not ending.is_set():
            owner.delete(owner.order("added meanwhile"))
            owner.order("added meanwhile")
            rounds += 1
        return rounds

    with ThreadPoolExecutor(1) as pool:
        writing = pool.submit(place_more)
        try:
            for limit in (1, 2, 7):
                # Something was placed and deleted since the last time.
                number = len(all_of(owner))
                eventually(lambda n=number: writing.done() or len(all_of(owner)) > n)
                found = all_pages(owner.api, "/api/orders", limit)
                assert len(found) == len(set(found))
                assert [one for one in found if one in made] == made[::-1]
                assert found == sorted(found, key=int, reverse=True)
        finally:
            ending.set()
        assert writing.result() >= 3


def all_of(owner: Person) -> list[str]:
    return all_pages(owner.api, "/api/orders", 100)


def test_a_cursor_is_valid_after_its_order_was_deleted(people: People) -> None:
    owner = people.customer()
    made = [owner.order()["id"] for _ in range(4)]
    page = owner.api.get("/api/orders?limit=2").json()
    owner.delete(made[2])
    rest = listed(owner.api, f"/api/orders?limit=2&cursor={page['next_cursor']}")
    assert rest == [made[1], made[0]]


def test_a_cursor_gives_no_access_to_orders_of_others(people: People) -> None:
    owner, other = people.customer(), people.customer()
    other.order()
    owner.order()
    owner.order()
    page = owner.api.get("/api/orders?limit=1").json()
    other_page = listed(other.api, f"/api/orders?cursor={page['next_cursor']}")
    assert set(other_page) <= {
        order["id"] for order in other.api.get("/api/orders").json()["orders"]
    }


# --- filters -----------------------------------------------------------------------------------


def test_the_status_filter_selects_orders_in_that_status(people: People) -> None:
    owner, driver = people.customer(), people.driver()
    pending, processing = owner.order(), owner.order()
    driver.move(processing, "Processing")
    assert listed(owner.api, "/api/orders?status=Pending") == [pending["id"]]
    assert listed(owner.api, "/api/orders?status=Processing") == [processing["id"]]
    assert listed(owner.api, "/api/orders?status=Completed") == []
    assert len(listed(owner.api, "/api/orders?status=")) == 2


def test_the_text_filter_is_literal_and_ignores_case(people: People) -> None:
    owner = people.customer()
    plain = owner.order("Fifty apples")["id"]
    percent = owner.order("50% apples")["id"]
    under = owner.order("under_score \\ apples")["id"]
    assert listed(owner.api, "/api/orders?q=APPLES") == [under, percent, plain]
    assert listed(owner.api, "/api/orders?q=%25") == [percent]
    assert listed(owner.api, "/api/orders?q=_") == [under]
    assert listed(owner.api, "/api/orders?q=%5C") == [under]
    assert listed(owner.api, "/api/orders?q=%20fifty%20") == [plain]
    assert listed(owner.api, "/api/orders?q=pears") == []


def test_staff_filter_by_driver_and_customer(people: People) -> None:
    admin, driver, owner = people.admin(), people.driver(), people.customer()
    mine, assigned = owner.order()["id"], owner.order()["id"]
    admin.assign(assigned, driver)
    path = f"/api/admin/orders?customer={owner.id}"
    for staff in (admin, driver):
        assert listed(staff.api, path) == [assigned, mine]
        assert listed(staff.api, f"{path}&driver={driver.id}") == [assigned]
        assert listed(staff.api, f"/api/admin/orders?driver={driver.id}") == [assigned]
        assert all_pages(staff.api, path, limit=1) == [assigned, mine]


def test_staff_filter_by_date(people: People) -> None:
    admin, owner = people.admin(), people.customer()
    order = owner.order()
    path = f"/api/admin/orders?customer={owner.id}"
    made = datetime.fromisoformat(order["created_at"])
    just_after = (made + timedelta(seconds=1)).isoformat().replace("+", "%2B")
    tomorrow = (made + timedelta(days=1)).date()
    for narrowed, there in {
        f"created_from={made.date()}": True,
        f"created_before={made.date()}": False,
        f"created_from={tomorrow}": False,
        f"created_before={tomorrow}": True,
        f"created_from={just_after}": False,
        f"created_before={just_after}": True,
    }.items():
        assert listed(admin.api, f"{path}&{narrowed}") == ([order["id"]] if there else [])


def test_customers_cannot_use_the_staff_list_or_its_filters(people: People) -> None:
    owner = people.customer()
    assert owner.api.get("/api/admin/orders").code == "forbidden"
    assert owner.api.get(f"/api/orders?customer={owner.id}").code == "validation_failed"


def test_a_search_that_ends_early_goes_on_at_its_cursor(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(order_walk, "SCANNED", 6)  # two of one customer's
    owner = people.customer()
    old = owner.order("a quetzalcoatl")["id"]
    for _ in range(5):
        owner.order()
    path = "/api/orders?q=quetzalcoatl"
    answer = owner.api.get(path)
    assert answer.json()["orders"] == []
    assert answer.json()["next_cursor"] is not None
    assert 'rel="next"' in answer.headers["Link"]
    assert all_pages(owner.api, path, limit=50) == [old]


def test_a_list_that_times_out_is_answered_with_advice(postgres: Postgres, database: str) -> None:
    """Not that the database is down: asking for less will help, and waiting may not."""
    # A lock stands for the work that takes so long; its own bound must not come first.
    settings = replace(
        settings_for(database, STATEMENT_TIMEOUT_MS="1000", LOCK_TIMEOUT_MS="500"),
        lock_timeout_ms=60_000,
    )
    app = create_app(settings)
    admin = People(database, InProcess(app)).admin()
    holding = psycopg2.connect(postgres.as_superuser(database))
    try:
        holding.cursor().execute("LOCK TABLE orders IN ACCESS EXCLUSIVE MODE")
        answer = admin.api.get("/api/admin/orders")
    finally:
        holding.close()
    assert (answer.status_code, answer.code) == (503, "unavailable")
    assert "Narrow it down" in answer.json()["detail"]
    with app.app_context():
        db.engine.dispose()
