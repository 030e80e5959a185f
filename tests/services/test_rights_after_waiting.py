"""Race conditions on locks: rights are judged when a change takes effect, not when its request
arrived.

Each test locks a row or a key as a concurrent request would, sends a request that has to wait for
it, takes the right away meanwhile, and commits.
"""

import hashlib
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import psycopg2
import pytest

from ordertrack.app import create_app
from ordertrack.extensions import db
from ordertrack.services import accounts, callers, orders
from tests.support.databases import Postgres, settings_for
from tests.support.http import Answer, InProcess
from tests.support.people import People, Person
from tests.support.reads import session_of
from tests.support.waiting import eventually

WAITERS = """SELECT count(*) FROM pg_stat_activity
              WHERE datname = current_database() AND wait_event_type = 'Lock'"""


@pytest.fixture(scope="module")
def people(database: str) -> Iterator[People]:
    """People of an application that waits for locks for as long as a busy machine may take."""
    app = create_app(settings_for(database, LOCK_TIMEOUT_MS="40000", STATEMENT_TIMEOUT_MS="60000"))
    yield People(database, InProcess(app))
    with app.app_context():
        db.engine.dispose()


class Held:
    """An open transaction that holds row locks."""

    def __init__(self, postgres: Postgres, dsn: str, sql: str, *values: Any, **named: Any) -> None:
        self._postgres = postgres
        self._dsn = postgres.as_superuser(dsn)
        self._connection = psycopg2.connect(self._dsn)
        self.cursor = self._connection.cursor()
        self.cursor.execute(sql, named or values)

    def await_waiters(self, number: int = 1) -> None:
        """Until so many sessions of this database wait for a lock."""
        eventually(lambda: self._postgres.execute(WAITERS, dsn=self._dsn)[0][0] >= number)

    def commit(self) -> None:
        self._connection.commit()

    def rollback(self) -> None:
        self._connection.rollback()

    def close(self) -> None:
        self._connection.close()


@pytest.fixture
def holding(postgres: Postgres, database: str) -> Iterator[Callable[..., Held]]:
    """Opens transactions: ``holding("SELECT … FOR UPDATE", value)``."""
    opened: list[Held] = []

    def hold(sql: str, *values: Any, **named: Any) -> Held:
        opened.append(Held(postgres, database, sql, *values, **named))
        return opened[-1]

    yield hold
    for held in opened:
        held.close()


@contextmanager
def in_background(call: Callable[[], Answer]) -> Iterator[Future[Answer]]:
    with ThreadPoolExecutor(1) as pool:
        yield pool.submit(call)


def deactivate(admin: Person, person: Person) -> None:
    answer = admin.api.patch(f"/api/admin/users/{person.id}", json={"active": False})
    assert answer.status_code == 200, answer.text


def demote(admin: Person, person: Person) -> None:
    answer = admin.api.patch(f"/api/admin/users/{person.id}", json={"role": "user"})
    assert answer.status_code == 200, answer.text


def sign_out(_: Person, person: Person) -> None:
    assert person.api.post("/api/logout").status_code == 204


LOCK_ORDER = "SELECT 1 FROM orders WHERE id = %s FOR NO KEY UPDATE"
# Like a concurrent change of the order: it makes another version of the row.
CHANGE_ORDER = "UPDATE orders SET description = description || '.' WHERE id = %s"

CHANGES: dict[str, Callable[[Person, str, Person], Answer]] = {
    "move": lambda who, path, _: who.api.put(f"{path}/status", json={"status": "Processing"}),
    "edit": lambda who, path, _: who.api.put(path, json={"description": "changed"}),
    "delete": lambda who, path, _: who.api.delete(path),
    "assign": lambda who, path, driver: who.api.put(
        f"{path}/driver", json={"driver_id": driver.id}
    ),
}
ENDS = {
    "deactivated": (deactivate, "invalid_token"),
    "signed out": (sign_out, "invalid_token"),
    "demoted": (demote, "not_found"),
}


@pytest.mark.parametrize("wait", [LOCK_ORDER, CHANGE_ORDER], ids=["locked", "changed"])
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_waited_is_judged_by_the_rights_after_the_wait(
    people: People, holding: Callable[..., Held], change: str, end: str, wait: str
) -> None:
    boss, admin, driver = people.admin(), people.admin(), people.driver()
    order = people.customer().order()
    held = holding(wait, order["id"])
    take_away, code = ENDS[end]
    with in_background(
        lambda: CHANGES[change](admin, f"/api/orders/{order['id']}", driver)
    ) as answer:
        held.await_waiters()
        take_away(boss, admin)
        held.commit()
        assert answer.result().code == code
    assert [event["version"] for event in boss.history(order)] == [1]


@pytest.mark.parametrize("end", ENDS)
def test_an_assignment_that_waited_for_the_driver_is_judged_by_the_rights_after_the_wait(
    people: People, holding: Callable[..., Held], end: str
) -> None:
    boss, admin, driver = people.admin(), people.admin(), people.driver()
    order = people.customer().order()
    held = holding("SELECT 1 FROM users WHERE id = %s FOR NO KEY UPDATE", driver.id)
    take_away, _ = ENDS[end]
    with in_background(
        lambda: CHANGES["assign"](admin, f"/api/orders/{order['id']}", driver)
    ) as answer:
        held.await_waiters()
        take_away(boss, admin)
        held.commit()
        assert answer.result().status_code in (401, 403), answer.result().text
    assert [event["version"] for event in boss.history(order)] == [1]


@pytest.mark.parametrize("wait", [LOCK_ORDER, CHANGE_ORDER], ids=["locked", "changed"])
@pytest.mark.parametrize("change", CHANGES)
def test_a_change_that_waited_is_dated_after_the_wait(
    people: People,
    holding: Callable[..., Held],
    postgres: Postgres,
    database: str,
    change: str,
    wait: str,
) -> None:
    admin, driver = people.admin(), people.driver()
    order = people.customer().order()
    held = holding(wait, order["id"])
    with in_background(
        lambda: CHANGES[change](admin, f"/api/orders/{order['id']}", driver)
    ) as answer:
        held.await_waiters()
        [(before,)] = postgres.execute("SELECT clock_timestamp()")
        held.commit()
        assert answer.result().status_code in (200, 204)
    [(event, row)] = postgres.execute(
        "SELECT e.created_at, o.updated_at FROM order_events e JOIN orders o ON o.id = e.order_id"
        " WHERE o.id = %s AND e.version = 2",
        order["id"],
        dsn=database,
    )
    assert event == row > before


@pytest.mark.parametrize("change", CHANGES)
def test_times_ascend_although_the_clock_was_set_back(
    people: People, postgres: Postgres, database: str, change: str
) -> None:
    admin, driver = people.admin(), people.driver()
    order = people.customer().order()
    superuser = postgres.as_superuser(database)
    connection = psycopg2.connect(superuser)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute("SET session_replication_role = replica")  # the stamp sleeps
            cursor.execute(
                "UPDATE orders SET updated_at = updated_at + interval '1 hour' WHERE id = %s"
                " RETURNING updated_at",
                [order["id"]],
            )
            found = cursor.fetchone()
    finally:
        connection.close()
    assert found is not None
    path = f"/api/orders/{order['id']}"
    assert CHANGES[change](admin, path, driver).status_code in (200, 204)
    [(now,)] = postgres.execute(
        "SELECT created_at FROM order_events WHERE order_id = %s AND version = 2",
        order["id"],
        dsn=database,
    )
    assert now - found[0] == timedelta(microseconds=1)


def test_an_order_and_its_first_event_have_the_same_time(
    people: People, postgres: Postgres, database: str
) -> None:
    order = people.customer().order()
    [times] = postgres.execute(
        "SELECT o.created_at, o.updated_at, e.created_at FROM orders o"
        " JOIN order_events e ON e.order_id = o.id WHERE o.id = %s",
        order["id"],
        dsn=database,
    )
    assert len(set(times)) == 1


@pytest.mark.parametrize("change", CHANGES)
def test_a_stuck_order_leaves_connections_for_the_others(
    database: str, holding: Callable[..., Held], change: str
) -> None:
    """Two requests wait in the database, the others without a connection."""
    app = create_app(
        settings_for(
            database,
            DB_POOL_SIZE="4",
            DB_POOL_TIMEOUT="60",
            LOCK_TIMEOUT_MS="80000",
            STATEMENT_TIMEOUT_MS="120000",
        )
    )
    people = People(database, InProcess(app))
    admin, driver = people.admin(), people.driver()
    order, other = (people.customer().order() for _ in range(2))
    held = holding(LOCK_ORDER, order["id"])
    with ThreadPoolExecutor(6) as pool:
        path = f"/api/orders/{order['id']}"
        waiting = [pool.submit(CHANGES[change], admin, path, driver) for _ in range(6)]
        try:
            held.await_waiters(2)
            # All of them have arrived: four are refused without waiting for the lock.
            eventually(lambda: sum(future.done() for future in waiting) == 4)
            assert {one.result().code for one in waiting if one.done()} == {"unavailable"}
            assert admin.api.get(f"/api/orders/{other['id']}").status_code == 200
        finally:
            held.close()
    assert {future.result().status_code for future in waiting} & {200, 204}
    with app.app_context():
        db.engine.dispose()


def test_a_driver_who_is_being_deactivated_is_assigned_no_order(
    people: People, holding: Callable[..., Held]
) -> None:
    admin, driver = people.admin(), people.driver()
    order = people.customer().order()
    held = holding("UPDATE users SET active = false WHERE id = %s", driver.id)
    path = f"/api/orders/{order['id']}/driver"
    with in_background(lambda: admin.api.put(path, json={"driver_id": driver.id})) as answer:
        held.await_waiters()
        held.commit()
        assert answer.result().code == "validation_failed"
    assert admin.read(order)["driver"] is None


def test_a_driver_is_not_deactivated_in_the_middle_of_an_assignment(
    people: People, holding: Callable[..., Held]
) -> None:
    admin, driver = people.admin(), people.driver()
    order = people.customer().order()
    # The order's event waits here, after the driver was checked.
    held = holding(
        "INSERT INTO order_events (order_id, version, type, status, actor_id, actor_name,"
        " actor_role, customer_id) VALUES (%s, 2, 'created', 'Pending', 1, 'x', 'user', 1)",
        order["id"],
    )
    path = f"/api/orders/{order['id']}/driver"
    with in_background(lambda: admin.api.put(path, json={"driver_id": driver.id})) as assigned:
        held.await_waiters(1)
        with in_background(
            lambda: admin.api.patch(f"/api/admin/users/{driver.id}", json={"active": False})
        ) as deactivated:
            held.await_waiters(2)
            held.close()
            assert assigned.result().status_code == 200
            assert deactivated.result().status_code == 200


def test_two_admins_do_not_demote_each_other(
    people: People, holding: Callable[..., Held], postgres: Postgres, database: str
) -> None:
    one, two = people.admin(), people.admin()
    held = holding("SELECT 1 FROM users WHERE id = ANY (%s) FOR NO KEY UPDATE",
                   [int(one.id), int(two.id)])  # fmt: skip
    with (
        in_background(
            lambda: one.api.patch(f"/api/admin/users/{two.id}", json={"role": "driver"})
        ) as first,
        in_background(
            lambda: two.api.patch(f"/api/admin/users/{one.id}", json={"role": "driver"})
        ) as second,
    ):
        held.await_waiters(2)
        held.commit()
        answers = [first.result(), second.result()]
    assert sorted(answer.status_code for answer in answers) == [200, 403]
    roles = postgres.execute(
        "SELECT role FROM users WHERE id = ANY (%s) ORDER BY role",
        [int(one.id), int(two.id)],
        dsn=postgres.as_superuser(database),
    )
    assert roles == [("admin",), ("driver",)]


def test_an_admin_who_is_demoted_meanwhile_deactivates_nobody(
    people: People, holding: Callable[..., Held]
) -> None:
    admin, victim = people.admin(), people.customer()
    held = holding("UPDATE users SET role = 'user' WHERE id = %s", admin.id)
    with in_background(
        lambda: admin.api.patch(f"/api/admin/users/{victim.id}", json={"active": False})
    ) as answer:
        held.await_waiters()
        held.commit()
        assert answer.result().code == "forbidden"
    assert victim.api.get("/api/me").status_code == 200


@pytest.mark.parametrize(
    "change", ["active = false", "password_hash = 'another'"], ids=["deactivated", "new password"]
)
def test_a_login_during_a_change_of_the_account_is_refused(
    change: str, people: People, holding: Callable[..., Held]
) -> None:
    person = people.customer()
    held = holding(f"UPDATE users SET {change} WHERE id = %s", person.id)
    with in_background(
        lambda: people.nobody.post(
            "/api/login", json={"email": person.email, "password": person.password}
        )
    ) as answer:
        held.await_waiters()
        held.commit()
        assert answer.result().code == "invalid_credentials"


def test_the_session_of_a_login_just_before_a_deactivation_is_revoked(
    people: People, postgres: Postgres, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The session is inserted but not committed when the deactivation begins, which has to wait."""
    admin, person = people.admin(), people.customer()
    made, go_on = threading.Event(), threading.Event()
    genuine = accounts._account

    def slowly(user: Any) -> Any:  # called when the session is made, before the commit
        if str(user.id) == person.id and threading.current_thread().name == "login":
            made.set()
            assert go_on.wait(20)
        return genuine(user)

    monkeypatch.setattr(accounts, "_account", slowly)
    signed_in: list[Person] = []
    login = threading.Thread(
        target=lambda: signed_in.append(person.signed_in_again()), name="login"
    )
    login.start()
    assert made.wait(20)
    with in_background(
        lambda: admin.api.patch(f"/api/admin/users/{person.id}", json={"active": False})
    ) as answer:
        eventually(
            lambda: (
                answer.done()
                or postgres.execute(WAITERS, dsn=postgres.as_superuser(database))[0][0]
            )
        )
        go_on.set()
        assert answer.result().status_code == 200
    login.join()
    # After another activation the session is still revoked.
    admin.api.patch(f"/api/admin/users/{person.id}", json={"active": True})
    assert signed_in[0].api.get("/api/me").code == "invalid_token"


# --- idempotency keys ----------------------------------------------------------------------------

KEY = "the-same"


def place(owner: Person, description: str = "apples", key: str = KEY) -> Answer:
    body = {"description": description}
    return owner.api.post("/api/orders", json=body, headers={"Idempotency-Key": key})


@pytest.fixture(params=["as today", "by an older release"])
def first_call(
    request: pytest.FixtureRequest, holding: Callable[..., Held], database: str
) -> Callable[[Person], Held]:
    """Places an order with `KEY` in a transaction that stays open: ``first_call(owner)``.

    An older release takes no advisory lock, and claims the key before it places the order.
    """

    def call(owner: Person) -> Held:
        caller = session_of(database, int(owner.id))
        named = {
            **callers.parameters(caller),
            "description": "apples",
            "key": KEY,
            "fingerprint": hashlib.sha256(b"apples").hexdigest(),
            "lock": orders._lock_of(caller.user_id, KEY),
        }
        sql = re.sub(r"(?<!:):([a-z_]+)", r"%(\1)s", orders._PLACE_ONCE_SQL)
        if request.param == "by an older release":
            sql = sql.replace("pg_try_advisory_xact_lock(%(lock)s)", "true")
        held = holding(sql, **named)
        assert held.cursor.rowcount == 1
        return held

    return call


def test_a_repeated_key_waits_for_the_first_call_and_finds_its_order(
    people: People, first_call: Callable[[Person], Held]
) -> None:
    owner = people.customer()
    held = first_call(owner)
    with in_background(lambda: place(owner)) as answer:
        held.await_waiters()
        held.commit()
        assert answer.result().status_code == 201
    [order] = owner.api.get("/api/orders").json()["orders"]
    assert answer.result().json()["id"] == order["id"]


def test_a_key_in_use_is_waited_for_and_then_refuses_another_body(
    people: People, first_call: Callable[[Person], Held]
) -> None:
    owner = people.customer()
    held = first_call(owner)
    with in_background(lambda: place(owner, "pears")) as answer:
        held.await_waiters()
        held.commit()
        assert answer.result().code == "idempotency_key_reused"


def test_a_repeated_key_places_the_order_when_the_first_call_was_rolled_back(
    people: People, first_call: Callable[[Person], Held]
) -> None:
    owner = people.customer()
    held = first_call(owner)
    with in_background(lambda: place(owner)) as answer:
        held.await_waiters()
        held.rollback()
        assert answer.result().status_code == 201
    assert place(owner).json() == answer.result().json()
    assert [event["version"] for event in owner.history(answer.result().json())] == [1]


@pytest.mark.parametrize("end", ["deactivated", "signed out"])
@pytest.mark.parametrize("first_call", ["as today"], indirect=True)
def test_an_order_that_waited_for_its_key_is_judged_by_the_rights_after_the_wait(
    people: People, first_call: Callable[[Person], Held], end: str
) -> None:
    owner, boss = people.customer(), people.admin()
    held = first_call(owner)
    take_away, code = ENDS[end]
    with in_background(lambda: place(owner)) as answer:
        held.await_waiters()
        take_away(boss, owner)
        held.rollback()
        assert answer.result().code == code
    boss.api.patch(f"/api/admin/users/{owner.id}", json={"active": True})
    assert owner.signed_in_again().api.get("/api/orders").json()["orders"] == []


@pytest.mark.parametrize("first_call", ["as today"], indirect=True)
def test_a_stuck_key_leaves_connections_for_the_others(
    database: str, first_call: Callable[[Person], Held]
) -> None:
    """Two requests wait in the database, the others without a connection."""
    app = create_app(
        settings_for(
            database,
            DB_POOL_SIZE="4",
            DB_POOL_TIMEOUT="60",
            LOCK_TIMEOUT_MS="80000",
            STATEMENT_TIMEOUT_MS="120000",
        )
    )
    owner = People(database, InProcess(app)).customer()
    held = first_call(owner)
    with ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(place, owner) for _ in range(6)]
        try:
            held.await_waiters(2)
            eventually(lambda: sum(future.done() for future in waiting) == 4)
            assert {one.result().code for one in waiting if one.done()} == {"unavailable"}
            assert place(owner, key="another").status_code == 201
        finally:
            held.rollback()
    placed = [one.result() for one in waiting if one.result().status_code == 201]
    assert len(placed) == 2
    assert placed[0].json() == placed[1].json()
    with app.app_context():
        db.engine.dispose()
