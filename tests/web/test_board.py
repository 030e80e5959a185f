"""The board with more orders than one page, and an export of more than one batch."""

import csv
import io
import re
from collections.abc import Callable, Iterator
from html import unescape

import psycopg2
import pytest
from flask.testing import FlaskClient

from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.services.order_lists import EXPORT_BATCH
from tests.support.databases import settings_for
from tests.support.http import InProcess
from tests.support.people import People, Person

ORDERS = 120  # more than two pages
ROWS = 2 * EXPORT_BATCH + 1


class Company:
    """A database of its own with many orders of one customer, and its staff's browsers."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.app = create_app(settings_for(dsn))
        self.people = People(dsn, InProcess(self.app))
        self.customer = self.people.customer()

    def place(self, number: int) -> None:
        """So many orders in one statement, each with its event, as the services make them."""
        connection = psycopg2.connect(self.dsn)
        try:
            with connection, connection.cursor() as cursor:
                cursor.execute(
                    """WITH o AS (
                           INSERT INTO orders (customer_id, description)
                           SELECT %s, 'box ' || n FROM generate_series(1, %s) AS n RETURNING *)
                       INSERT INTO order_events (order_id, version, type, status, actor_id,
                                                 actor_name, actor_role, changes, customer_id)
                       SELECT id, version, 'created', status, customer_id, 'C', 'user',
                              jsonb_build_object('description', description), customer_id
                         FROM o""",
                    (self.customer.id, number),
                )
        finally:
            connection.close()

    def browser(self, person: Person) -> FlaskClient:
        client = self.app.test_client()
        form = {"email": person.email, "password": person.password}
        assert client.post("/login", data=form).status_code == 303
        return client


@pytest.fixture
def company(fresh_database: Callable[[], str]) -> Iterator[Company]:
    made = Company(fresh_database())
    yield made
    with made.app.app_context():
        db.engine.dispose()


def shown(page: str) -> list[int]:
    """The orders of a board's page, in its order, each once."""
    found = re.findall(r'href="/orders/(\d+)"', page)
    return [int(order_id) for order_id in dict.fromkeys(found)]


def test_the_boards_pages_contain_every_order_once(company: Company) -> None:
    company.place(ORDERS)
    browser = company.browser(company.people.admin())
    seen: list[int] = []
    address: str | None = "/board"
    pages = 0
    while address is not None:
        page = browser.get(address).text
        assert shown(page)
        seen += shown(page)
        older = re.search(r'href="(/board\?[^"]*before=\d+[^"]*)"', page)
        address = unescape(older[1]) if older else None
        pages += 1
        assert pages <= ORDERS, "the pages never end"
    assert seen == sorted(seen, reverse=True)
    assert len(seen) == len(set(seen)) == ORDERS
    assert pages == 3


def test_the_export_contains_every_order_once(company: Company) -> None:
    company.place(ROWS)
    answer = company.browser(company.people.admin()).get("/board.csv")
    rows = list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))
    ids = [int(row["id"]) for row in rows]
    assert len(ids) == ROWS
    assert ids == sorted(set(ids), reverse=True)


def test_deleted_orders_are_listed_for_admins_only(company: Company) -> None:
    kept, hidden = company.customer.order(), company.customer.order()
    company.customer.delete(hidden)
    admin, driver = (
        company.browser(person) for person in (company.people.admin(), company.people.driver())
    )
    assert shown(admin.get("/board").text) == [int(kept["id"])]
    deleted = admin.get("/board?deleted=yes").text
    assert f"/orders/{hidden['id']}" in deleted
    assert f"/orders/{kept['id']}" not in deleted
    assert driver.get("/board?deleted=yes").status_code == 403
