"""What happens between two steps: each test makes the other thing happen at exactly that moment."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import psycopg2
import pytest
from socketio.exceptions import ConnectionRefusedError as Refused

from ordertrack import app as application
from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.log_tail import Revoked
from ordertrack.policy import Actor, Caller
from ordertrack.realtime.setup import Realtime
from ordertrack.services import callers, orders
from tests.support.databases import Postgres, settings_for
from tests.support.http import Answer, InProcess
from tests.support.people import People, Person
from tests.support.waiting import eventually

AT_ONCE = 4


@dataclass
class House:
    """The application on a database of its own, in this process, and its live parts."""

    dsn: str
    people: People
    live: Realtime
    postgres: Postgres
    app: Any = field(repr=False)

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
        """Hold the order's row, as another change of it does that takes its time."""
        connection = psycopg2.connect(self.dsn)
        try:
            with connection.cursor() as cursor:
                # PostgreSQL judges a row anew for those who waited only if it was written to.
                cursor.execute("UPDATE orders SET status = status WHERE id = %s", (order["id"],))
            yield
            connection.commit()
        finally:
            connection.close()


@pytest.fixture
def house(
    fresh_database: Callable[[], str], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[House]:
    dsn = fresh_database()
    made: list[Realtime] = []
    init_app = application.setup.init_app

    def keep(*arguments: Any) -> Realtime:
        made.append(init_app(*arguments))
        return made[-1]

    monkeypatch.setattr(application.setup, "init_app", keep)
    app = create_app(settings_for(dsn, LOCK_TIMEOUT_MS="4000"))
    yield House(dsn, People(dsn, InProcess(app)), made[0], postgres, app)
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
def order(house: House) -> dict[str, Any]:
    placed = house.people.customer().order()
    return {**placed, "a driver": house.people.driver().id}


def started(call: Callable[[], Answer], answers: list[Answer]) -> threading.Thread:
    thread = threading.Thread(target=lambda: answers.append(call()))
    thread.start()
    return thread


@pytest.mark.parametrize("change", [move, edit, assign, delete])
def test_a_change_that_waited_happened_after_what_it_waited_for(
    house: House, order: dict[str, Any], change: Change
) -> None:
    admin = house.people.admin()
    answers: list[Answer] = []
    with house.locked(order):
        thread = started(lambda: change(admin, order), answers)
        eventually(lambda: house.waiting == 1)
        [(released,)] = house.execute("SELECT clock_timestamp()")
    thread.join()
    assert answers[0].status_code < 300, answers[0].text
    happened = datetime.fromisoformat(admin.history(order)[-1]["updated_at"])
    assert happened >= released.replace(microsecond=released.microsecond // 1000 * 1000)


@pytest.mark.safety("stuck-row")
@pytest.mark.parametrize("change", [move, edit, assign, delete])
def test_few_wait_for_a_row_and_the_others_keep_no_connection(
    house: House, order: dict[str, Any], change: Change
) -> None:
    admin = house.people.admin()
    answers: list[Answer] = []
    most = 0
    with house.locked(order):
        threads = [started(lambda: change(admin, order), answers) for _ in range(AT_ONCE)]
        while len(answers) < AT_ONCE - 2:  # those that wait here, who are refused first
            most = max(most, house.waiting)
    for thread in threads:
        thread.join()
    assert most == 2
    statuses = [answer.status_code for answer in answers]
    assert statuses[:2] == [503, 503]
    assert min(statuses[2:]) < 300, statuses  # and the last may find it changed, or deleted


def test_a_move_that_became_possible_while_it_was_refused_is_made(
    house: House, order: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    driver, other = house.people.driver(), house.people.driver()
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
def test_a_session_that_was_made_during_a_deactivation_is_worth_nothing(
    house: House, path: str
) -> None:
    admin = house.people.admin()
    # As a sign-in leaves it that read the user just before, and committed just after.
    house.execute("UPDATE users SET active = false WHERE id = %s", admin.id)
    answer = admin.api.get(path)
    assert (answer.status_code, answer.code) == (401, "invalid_token")


# --- a right that ends while a socket comes in --------------------------------------------------


@dataclass
class FakeSocket:
    """What a Socket.IO client's connection is told; the real one needs the event loop."""

    closed: list[Any] = field(default_factory=list)
    application: Any = None
    alive = True

    def enqueue(self, message: object) -> None:
        pass

    def close_with(self, code: int, reason: str, **_: object) -> None:
        self.closed.append((code, reason))


@pytest.fixture
def handlers(house: House, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, Any], FakeSocket]:
    server = house.live.socketio.server
    socket = FakeSocket()
    monkeypatch.setattr(server.manager, "socket", lambda _sid: socket)
    return server.handlers["/"], socket


def ended(person: Person, house: House) -> Revoked:
    """End the person's newest session, as the relay will tell of it."""
    [(session,)] = house.execute("SELECT max(id) FROM sessions WHERE user_id = %s", person.id)
    person.api.post("/api/logout")
    return Revoked(0, int(person.id), session, "signed_out")


@pytest.mark.safety("ended-rights-close-sockets")
def test_a_right_that_ends_between_the_question_and_the_door_opens_nothing(
    house: House,
    handlers: tuple[dict[str, Any], FakeSocket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    person = house.people.customer()
    identify = callers.identify

    def just_before_it_ends(caller: Caller) -> Actor:
        found = identify(caller)
        house.live.connections.revoke(ended(person, house))
        return found

    monkeypatch.setattr(callers, "identify", just_before_it_ends)
    with pytest.raises(Refused):
        handlers[0]["connect"]("sid", {}, {"token": person.token})
    assert len(house.live.connections) == 0


@pytest.mark.safety("ended-rights-close-sockets")
def test_a_right_that_ends_while_a_socket_takes_it_up_ends_the_socket(
    house: House,
    handlers: tuple[dict[str, Any], FakeSocket],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    on, socket = handlers
    person = house.people.customer()
    on["connect"]("sid", {}, {"token": person.token})
    renewed = person.signed_in_again()
    identify = callers.identify
    asked: list[Caller] = []

    def just_before_it_ends(caller: Caller) -> Actor:
        found = identify(caller)
        asked.append(caller)
        if len(asked) == 1:  # nobody is here on the new session yet: nobody is told
            house.live.connections.revoke(ended(renewed, house))
        return found

    monkeypatch.setattr(callers, "identify", just_before_it_ends)
    answer = on["authenticate"]("sid", {"token": renewed.token})
    assert answer["ok"] is False
    assert answer["error"]["code"] == "invalid_token"
    assert socket.closed
    assert len(house.live.connections) == 0
