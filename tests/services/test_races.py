"""Race conditions between two requests: each test makes the other one happen at the exact moment.

Those of sockets are in tests/realtime/test_revocation_while_connecting.py.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import psycopg2
import pytest

from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.services import orders
from tests.support.databases import Postgres, settings_for
from tests.support.http import Answer, InProcess
from tests.support.people import People, Person
from tests.support.waiting import eventually

AT_ONCE = 4


@dataclass
class OwnApp:
    """The application in this process, on a database of its own."""

    dsn: str
    people: People
    postgres: Postgres

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self.postgres.execute(sql, *values, dsn=self.postgres.as_superuser(self.dsn))

    @property
    def waiting(self) -> int:
        """How many statements wait for a lock in this database now."""
        [(number,)] = self.execute(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND backend_type = 'client backend'"
        )
        return int(number)

    @contextmanager
    def locked(self, order: dict[str, Any]) -> Iterator[None]:
        """Hold the order's row lock, as a slow change of it does."""
        connection = psycopg2.connect(self.dsn)
        try:
            with connection.cursor() as cursor:
                # PostgreSQL checks a row again after a wait only if it was written to.
                cursor.execute("UPDATE orders SET status = status WHERE id = %s", (order["id"],))
            yield
            connection.commit()
        finally:
            connection.close()


@pytest.fixture
def own(fresh_database: Callable[[], str], postgres: Postgres) -> Iterator[OwnApp]:
    dsn = fresh_database()
    app = create_app(settings_for(dsn, LOCK_TIMEOUT_MS="4000"))
    yield OwnApp(dsn, People(dsn, InProcess(app)), postgres)
    with app.app_context():
        db.engine.dispose()


Change = Callable[[Person, dict[str, Any]], Answer]


def move(admin: Person, order: dict[str, Any]) -> Answer:
    return admin.api.put(f"/api/orders/{order['id']}/status", json={"status": "Processing"})


def edit(admin: Person, order: dict[str, Any]) -> Answer:
    return admin.api.put(f"/api/orders/{order['id']}", json={"description": "another"})


def assign(admin: Person, order: dict[str, Any]) -> Answer:
    me = {"driver_id": order["a driver"]}
    return admin.api.put(f"/api/orders/{order['id']}/driver", json=me)


def delete(admin: Person, order: dict[str, Any]) -> Answer:
    return admin.api.delete(f"/api/orders/{order['id']}")


@pytest.fixture
def order(own: OwnApp) -> dict[str, Any]:
    placed = own.people.customer().order()
    return {**placed, "a driver": own.people.driver().id}


def started(call: Callable[[], Answer], answers: list[Answer]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread


@pytest.mark.parametrize("change", [move, edit, assign, delete])
def test_a_change_that_waited_for_a_lock_is_dated_after_the_other_change(
    own: OwnApp, order: dict[str, Any], change: Change
) -> None:
    admin = own.people.admin()
    answers: list[Answer] = []
    with own.locked(order):
        thread = started(lambda: change(admin, order), answers)
        eventually(lambda: own.waiting == 1)
        [(released,)] = own.execute("SELECT clock_timestamp()")
    thread.join()
    assert answers[0].status_code < 300, answers[0].text
    happened = datetime.fromisoformat(admin.history(order)[-1]["updated_at"])
    assert happened >= released.replace(microsecond=released.microsecond // 1000 * 1000)


@pytest.mark.safety("stuck-row")
@pytest.mark.parametrize("change", [move, edit, assign, delete])
def test_few_requests_wait_for_a_row_lock_and_the_others_hold_no_connection(
    own: OwnApp, order: dict[str, Any], change: Change
) -> None:
    admin = own.people.admin()
    answers: list[Answer] = []
    most = 0
    with own.locked(order):
        threads = [started(lambda: change(admin, order), answers) for _ in range(AT_ONCE)]
        while len(answers) < AT_ONCE - 2:  # those that wait here, who are refused first
            most = max(most, own.waiting)
    for thread in threads:
        thread.join()
    assert most == 2
    statuses = [answer.status_code for answer in answers]
    assert statuses[:2] == [503, 503]
    assert min(statuses[2:]) < 300, statuses  # and the last may find it changed, or deleted


def test_a_transition_that_became_possible_while_it_was_refused_is_made(
    own: OwnApp, order: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, other = own.people.driver(), own.people.driver()
    explain = orders._explain

    def after_another_step(*arguments: Any) -> Any:
        if other.read(order)["status"] == "Pending":
            other.move(order, "Processing")
        return explain(*arguments)

    monkeypatch.setattr(orders, "_explain", after_another_step)
    assert driver.move(order, "Shipped")["status"] == "Shipped"
    assert [event["status"] for event in driver.history(order)] == [
        "Pending",
        "Processing",
        "Shipped",
    ]


@pytest.mark.safety("ended-rights-close-sockets")
@pytest.mark.parametrize("path", ["/api/me", "/api/orders", "/api/admin/users"])
def test_a_session_that_was_made_during_a_deactivation_is_refused(own: OwnApp, path: str) -> None:
    admin = own.people.admin()
    # As left by a login that read the user just before the deactivation and committed just after.
    own.execute("UPDATE users SET active = false WHERE id = %s", admin.id)
    answer = admin.api.get(path)
    assert (answer.status_code, answer.code) == (401, "invalid_token")
