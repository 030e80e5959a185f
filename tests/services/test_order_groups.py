"""Placing and moving orders in groups: each call gets the answer that it would get alone.

Calls form a group when a statement of their kind runs already. So each test makes a first one wait
for a lock, sends the others meanwhile, and lets go.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import psycopg2
import pytest
from flask import Flask

from ordertrack import db as database_module
from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.services import order_writes
from tests.support.databases import Postgres, settings_for
from tests.support.http import Answer, InProcess
from tests.support.people import People, Person
from tests.support.waiting import DEADLINE, eventually

# What another transaction may be doing to an order that is about to be moved: it has written the
# event of its next version.
NEXT_EVENT = """
    INSERT INTO order_events (order_id, version, type, status, actor_id, actor_name, actor_role,
                              customer_id)
    SELECT id, version + 1, 'status_changed', 'Processing', 1, 'x', 'admin', 1
      FROM orders WHERE id = %s"""


class Own:
    """The application in this process, on a database of its own."""

    def __init__(self, app: Flask, dsn: str, postgres: Postgres) -> None:
        self.app = app
        self.people = People(dsn, InProcess(app))
        self._postgres = postgres
        self._dsn = postgres.as_superuser(dsn)

    def execute(self, sql: str, *values: Any) -> list[tuple[Any, ...]]:
        return self._postgres.execute(sql, *values, dsn=self._dsn)

    @property
    def groups(self) -> order_writes._Groups:
        with self.app.app_context():
            return order_writes._groups()

    @contextmanager
    def holding(self, sql: str, *values: Any) -> Iterator[None]:
        """A transaction that has done this, and is rolled back in the end."""
        connection = psycopg2.connect(self._dsn)
        try:
            connection.cursor().execute(sql, values)
            yield
            connection.rollback()
        finally:
            connection.close()

    def waiting(self) -> list[int]:
        """The process ids of statements that wait for a lock."""
        rows = self.execute(
            "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
            " AND wait_event_type = 'Lock' AND backend_type = 'client backend'"
        )
        return [pid for (pid,) in rows]

    def events(self, *orders: dict[str, Any]) -> list[tuple[Any, ...]]:
        """Order, version, status and transaction of each event after the first, in order."""
        return self.execute(
            "SELECT order_id::text, version, status, xid::text FROM order_events"
            " WHERE version > 1 AND order_id = ANY (%s) ORDER BY order_id, version",
            [int(order["id"]) for order in orders],
        )


@pytest.fixture
def own(
    fresh_database: Callable[[], str], postgres: Postgres, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Own]:
    # However busy the machine is.
    monkeypatch.setattr(order_writes, "_STUCK", 600.0)
    dsn = fresh_database()
    app = create_app(
        settings_for(
            dsn, LOCK_TIMEOUT_MS="80000", STATEMENT_TIMEOUT_MS="120000", DB_POOL_TIMEOUT="60"
        )
    )
    yield Own(app, dsn, postgres)
    with app.app_context():
        db.engine.dispose()


Call = Callable[[], Answer]


class Group:
    """Sends calls that wait for the first one, of which a group is made when it ends."""

    def __init__(self, own: Own, group: order_writes._Group, pool: ThreadPoolExecutor) -> None:
        self._own = own
        self._queue = group._batcher._queue
        self._pool = pool
        self.sent: list[Future[Answer]] = []

    def first(self, call: Call) -> None:
        self.sent.append(self._pool.submit(call))
        eventually(self._own.waiting)

    def then(self, *calls: Call) -> None:
        for call in calls:
            number = len(self._queue)
            self.sent.append(self._pool.submit(call))
            eventually(lambda n=number: len(self._queue) > n)  # type: ignore[misc]

    @property
    def answers(self) -> list[Answer]:
        return [future.result() for future in self.sent]


@contextmanager
def grouped(own: Own, group: order_writes._Group) -> Iterator[Group]:
    with ThreadPoolExecutor(20) as pool:
        yield Group(own, group, pool)


def move(
    person: Person, order: dict[str, Any], status: str, version: int | None = None, note: str = "-"
) -> Call:
    headers = {} if version is None else {"If-Match": f'"{version}"'}
    body = {"status": status, "note": note}
    return lambda: person.api.put(f"/api/orders/{order['id']}/status", json=body, headers=headers)


@pytest.fixture
def appended(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows with each call that says that the log has grown."""
    calls: list[int] = []
    monkeypatch.setattr(database_module, "after_append", [lambda: calls.append(1)])
    return calls


# --- changing the status -------------------------------------------------------------------------


def test_changes_that_come_together_are_one_transaction_and_wake_the_relay_once(
    own: Own, appended: list[int]
) -> None:
    driver = own.people.driver()
    stuck, *orders = [driver.order() for _ in range(8)]
    appended.clear()
    with grouped(own, own.groups.moving) as group, own.holding(NEXT_EVENT, stuck["id"]):
        group.first(move(driver, stuck, "Processing"))
        group.then(*(move(driver, order, "Processing", note=order["id"]) for order in orders))
    for answer, order in zip(group.answers, [stuck, *orders], strict=True):
        assert answer.status_code == 200, answer.text
        assert answer.headers["ETag"] == '"2"'
        shown = answer.json()
        assert (shown["id"], shown["status"], shown["version"]) == (order["id"], "Processing", 2)
    alone = own.events(stuck)
    together = own.events(*orders)
    assert [event[:3] for event in alone] == [(stuck["id"], 2, "Processing")]
    assert sorted(event[:3] for event in together) == sorted(
        (order["id"], 2, "Processing") for order in orders
    )
    assert len({xid for *_, xid in together}) == 1
    assert len(appended) == 2
    for order in orders:
        [event] = driver.history(order, after=1)
        assert (event["note"], event["actor"]["name"]) == (order["id"], driver.name)
        assert event["previous_status"] == "Pending"


def test_each_of_a_group_gets_the_answer_that_it_would_get_alone(own: Own) -> None:
    admin, driver, owner, other = (
        own.people.admin(), own.people.driver(), own.people.customer(), own.people.customer(),
    )  # fmt: skip
    stuck = admin.order()
    orders = [owner.order() for _ in range(10)]
    driver.move(orders[4], "Processing")
    admin.delete(orders[6])
    signed_out = own.people.driver()
    signed_out.api.post("/api/logout")
    expected = [
        (move(admin, orders[0], "Processing"), 200, None),
        (move(owner, orders[1], "Cancelled"), 200, None),
        (move(owner, orders[2], "Processing"), 403, "forbidden"),
        (move(other, orders[3], "Cancelled"), 404, "not_found"),
        (move(driver, orders[4], "Processing"), 200, None),  # it is so already
        (move(driver, orders[5], "Shipped"), 409, "invalid_transition"),
        (move(admin, orders[6], "Processing"), 404, "not_found"),
        (move(driver, orders[7], "Processing", version=7), 412, "version_mismatch"),
        (move(driver, orders[8], "Processing", version=1), 200, None),
        (move(signed_out, orders[9], "Processing"), 401, "invalid_token"),
    ]
    with grouped(own, own.groups.moving) as group, own.holding(NEXT_EVENT, stuck["id"]):
        group.first(move(admin, stuck, "Processing"))
        group.then(*(call for call, *_ in expected))
    answers = group.answers[1:]
    assert [(answer.status_code, answer.code) for answer in answers] == [
        (status, code) for _, status, code in expected
    ]
    moved = [(order_id, status) for order_id, _, status, _ in own.events(*orders)]
    assert sorted(moved) == sorted(
        [
            (orders[0]["id"], "Processing"),
            (orders[1]["id"], "Cancelled"),
            (orders[4]["id"], "Processing"),
            (orders[6]["id"], "Pending"),  # deleted
            (orders[8]["id"], "Processing"),
        ]
    )


@pytest.mark.parametrize("scope", ["all", "assigned"])
def test_a_driver_of_a_group_moves_only_orders_that_he_sees(
    fresh_database: Callable[[], str], postgres: Postgres, scope: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(order_writes, "_STUCK", 600.0)
    dsn = fresh_database()
    app = create_app(
        settings_for(
            dsn, DRIVER_SCOPE=scope, LOCK_TIMEOUT_MS="80000", STATEMENT_TIMEOUT_MS="120000"
        )
    )
    own = Own(app, dsn, postgres)
    admin, driver = own.people.admin(), own.people.driver()
    stuck, mine, another = admin.order(), admin.order(), admin.order()
    admin.assign(mine, driver)
    with grouped(own, own.groups.moving) as group, own.holding(NEXT_EVENT, stuck["id"]):
        group.first(move(admin, stuck, "Processing"))
        group.then(move(driver, mine, "Processing"), move(driver, another, "Processing"))
    codes = [answer.code for answer in group.answers]
    assert codes == [None, None, None if scope == "all" else "not_found"]
    with app.app_context():
        db.engine.dispose()


def test_two_changes_of_one_order_take_place_in_the_order_of_their_arrival(own: Own) -> None:
    driver = own.people.driver()
    stuck, order, other = [driver.order() for _ in range(3)]
    with grouped(own, own.groups.moving) as group, own.holding(NEXT_EVENT, stuck["id"]):
        group.first(move(driver, stuck, "Processing"))
        group.then(
            move(driver, order, "Processing"),
            move(driver, other, "Processing"),
            move(driver, order, "Shipped"),
        )
    assert [answer.status_code for answer in group.answers] == [200] * 4
    assert [event[1:3] for event in own.events(order)] == [(2, "Processing"), (3, "Shipped")]


@pytest.mark.safety("stuck-row")
def test_a_locked_order_delays_no_other_order_of_its_group(own: Own) -> None:
    driver = own.people.driver()
    stuck, locked, *others = [driver.order() for _ in range(6)]
    lock = "SELECT 1 FROM orders WHERE id = %s FOR NO KEY UPDATE"
    with grouped(own, own.groups.moving) as group, own.holding(lock, locked["id"]):
        with own.holding(NEXT_EVENT, stuck["id"]):
            group.first(move(driver, stuck, "Processing"))
            group.then(*(move(driver, order, "Processing") for order in [locked, *others]))
        for future in [group.sent[0], *group.sent[2:]]:
            assert future.result(DEADLINE).status_code == 200
        assert not group.sent[1].done()
        eventually(own.waiting)
    assert group.answers[1].status_code == 200
    assert [event[1] for event in own.events(locked)] == [2]


@pytest.mark.parametrize("locked", [False, True], ids=["free", "locked"])
@pytest.mark.parametrize("end", ["deactivated", "signed out", "demoted"])
def test_rights_that_end_while_a_change_waits_for_its_group_are_gone(
    own: Own, end: str, locked: bool
) -> None:
    boss, admin, driver = own.people.admin(), own.people.admin(), own.people.driver()
    stuck, order, other = [boss.order() for _ in range(3)]
    lock = "SELECT 1 FROM orders WHERE id = %s FOR NO KEY UPDATE"
    with grouped(own, own.groups.moving) as group, own.holding(lock, order["id"] if locked else 0):
        with own.holding(NEXT_EVENT, stuck["id"]):
            group.first(move(boss, stuck, "Processing"))
            group.then(move(admin, order, "Processing"), move(driver, other, "Processing"))
            if not locked:
                take_away(boss, admin, end)
        if locked:
            assert group.sent[2].result(DEADLINE).status_code == 200
            eventually(own.waiting)
            take_away(boss, admin, end)
    assert [answer.code for answer in group.answers] == [
        None, "not_found" if end == "demoted" else "invalid_token", None,
    ]  # fmt: skip
    assert own.events(order) == []


def take_away(boss: Person, person: Person, end: str) -> None:
    if end == "signed out":
        assert person.api.post("/api/logout").status_code == 204
        return
    change = {"active": False} if end == "deactivated" else {"role": "user"}
    answer = boss.api.patch(f"/api/admin/users/{person.id}", json=change)
    assert answer.status_code == 200, answer.text


def test_a_change_that_the_database_refuses_fails_alone(own: Own) -> None:
    own.execute("ALTER TABLE order_events ADD CONSTRAINT polite CHECK (note <> 'rude')")
    own.app.config["PROPAGATE_EXCEPTIONS"] = False
    driver = own.people.driver()
    stuck, rude, *orders = [driver.order() for _ in range(5)]
    with grouped(own, own.groups.moving) as group, own.holding(NEXT_EVENT, stuck["id"]):
        group.first(move(driver, stuck, "Processing"))
        group.then(
            move(driver, rude, "Processing", note="rude"),
            *(move(driver, order, "Processing") for order in orders),
        )
    assert [answer.status_code for answer in group.answers] == [200, 500, 200, 200, 200]
    assert own.events(rude) == []
    assert [event[:2] for event in own.events(*orders)] == [(order["id"], 2) for order in orders]


@pytest.mark.safety("database-killed")
def test_a_lost_connection_leaves_every_outcome_of_a_group_unknown_and_repeats_nothing(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = own.people.driver()
    stuck, poisoned, *orders = [driver.order() for _ in range(5)]
    runs: list[int] = []
    one, several = order_writes.MOVE.all, order_writes._MOVE_SEVERAL.all

    def counted(run: Callable[..., Any]) -> Callable[..., Any]:
        def counting(**values: Any) -> Any:
            runs.append(1)
            return run(**values)

        return counting

    with grouped(own, own.groups.moving) as group, own.holding(NEXT_EVENT, poisoned["id"]):
        with own.holding(NEXT_EVENT, stuck["id"]):
            group.first(move(driver, stuck, "Processing"))
            group.then(*(move(driver, order, "Processing") for order in [poisoned, *orders]))
            monkeypatch.setattr(order_writes.MOVE, "all", counted(one))
            monkeypatch.setattr(order_writes._MOVE_SEVERAL, "all", counted(several))
        assert group.sent[0].result().status_code == 200
        [backend] = eventually(own.waiting)
        own.execute("SELECT pg_terminate_backend(%s)", backend)
        answers = group.answers[1:]
    assert [(answer.status_code, answer.code) for answer in answers] == [(503, "unavailable")] * 4
    assert runs == [1]
    assert own.events(poisoned, *orders) == []


def test_a_change_does_not_wait_for_a_group_that_is_stuck(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    driver = own.people.driver()
    stuck, order = driver.order(), driver.order()
    with grouped(own, own.groups.moving) as group, own.holding(NEXT_EVENT, stuck["id"]):
        group.first(move(driver, stuck, "Processing"))
        monkeypatch.setattr(order_writes, "_STUCK", 0.0)
        assert driver.move(order, "Processing")["version"] == 2
        assert not group.sent[0].done()
    assert group.answers[0].status_code == 200


# --- placing -------------------------------------------------------------------------------------

# Placing an order of this customer waits for its foreign key.
CUSTOMER = "SELECT 1 FROM users WHERE id = %s FOR UPDATE"


def place(person: Person, description: str) -> Call:
    return lambda: person.api.post("/api/orders", json={"description": description})


def test_orders_that_are_placed_together_are_one_transaction_and_each_caller_gets_its_own(
    own: Own, appended: list[int]
) -> None:
    held, one, two = (own.people.customer() for _ in range(3))
    signed_out = own.people.customer()
    signed_out.api.post("/api/logout")
    given = [
        (one, "apples"), (signed_out, "apples"), (two, "pears"), (one, "pears"), (one, "apples"),
        (two, "it's {a}, \"b\", NULL and \\"), (signed_out, "pears"), (one, "äpfel"),
    ]  # fmt: skip
    appended.clear()
    with grouped(own, own.groups.placing) as group, own.holding(CUSTOMER, held.id):
        group.first(place(held, "first"))
        group.then(*(place(person, description) for person, description in given))
    answers = group.answers[1:]
    orders = []
    for answer, (person, description) in zip(answers, given, strict=True):
        if person is signed_out:
            assert (answer.status_code, answer.code) == (401, "invalid_token")
            continue
        order = answer.json()
        orders.append(order)
        assert answer.status_code == 201
        assert answer.headers["Location"].endswith(f"/{order['id']}")
        assert (order["description"], order["customer"]["id"]) == (description, person.id)
        assert order["customer"]["name"] == person.name
        [event] = person.history(order)
        assert (event["type"], event["actor"]["id"]) == ("created", person.id)
        assert event["changes"] == {"description": description}
    ids = [int(order["id"]) for order in orders]
    assert ids == sorted(set(ids))  # in the order of arrival
    [(xids,)] = own.execute(
        "SELECT count(DISTINCT xid) FROM order_events WHERE order_id = ANY (%s)", ids
    )
    assert xids == 1
    assert len(appended) == 2
    assert signed_out.signed_in_again().api.get("/api/orders").json()["orders"] == []


def test_an_order_that_the_database_refuses_fails_alone(own: Own) -> None:
    own.execute("ALTER TABLE orders ADD CONSTRAINT polite CHECK (description <> 'rude')")
    own.app.config["PROPAGATE_EXCEPTIONS"] = False
    held, owner = own.people.customer(), own.people.customer()
    with grouped(own, own.groups.placing) as group, own.holding(CUSTOMER, held.id):
        group.first(place(held, "first"))
        group.then(place(owner, "apples"), place(owner, "rude"), place(owner, "pears"))
    assert [answer.status_code for answer in group.answers] == [201, 201, 500, 201]
    listed = owner.api.get("/api/orders").json()["orders"]
    assert {order["description"] for order in listed} == {"apples", "pears"}


@pytest.mark.safety("database-killed")
def test_a_lost_connection_places_no_order_of_a_group_twice(own: Own) -> None:
    held, blocked, owner = (own.people.customer() for _ in range(3))
    with grouped(own, own.groups.placing) as group, own.holding(CUSTOMER, blocked.id):
        with own.holding(CUSTOMER, held.id):
            group.first(place(held, "first"))
            group.then(place(owner, "apples"), place(blocked, "pears"), place(owner, "plums"))
        assert group.sent[0].result().status_code == 201
        [backend] = eventually(own.waiting)
        own.execute("SELECT pg_terminate_backend(%s)", backend)
        assert [answer.code for answer in group.answers[1:]] == ["unavailable"] * 3
    assert owner.api.get("/api/orders").json()["orders"] == []


def test_a_group_whose_callback_fails_is_not_repeated(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error after the commit says nothing about the statement."""

    def fail() -> None:
        raise RuntimeError("on purpose")

    own.app.config["PROPAGATE_EXCEPTIONS"] = False
    held, owner = own.people.customer(), own.people.customer()
    with grouped(own, own.groups.placing) as group, own.holding(CUSTOMER, held.id):
        group.first(place(held, "first"))
        group.then(place(owner, "apples"), place(owner, "pears"))
        monkeypatch.setattr(database_module, "after_append", [fail])
    assert [answer.status_code for answer in group.answers] == [500] * 3
    assert len(owner.api.get("/api/orders").json()["orders"]) == 2


def test_a_caller_alone_runs_the_statement_for_one(
    own: Own, monkeypatch: pytest.MonkeyPatch
) -> None:
    for statement in (order_writes._MOVE_SEVERAL, order_writes._PLACE_SEVERAL):
        monkeypatch.setattr(statement, "all", lambda **_: pytest.fail("it was alone"))
    driver = own.people.driver()
    for _ in range(3):
        driver.move(driver.order(), "Processing", "Shipped")
