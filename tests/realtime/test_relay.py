"""The relay publishes every event once and in version order, however transactions commit.

What it does when its connection or PostgreSQL dies is in tests/faults/.
"""

import contextlib
import random
import re
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from ordertrack import log_tail
from ordertrack.eventlog import Event
from ordertrack.log_tail import Tail
from ordertrack.realtime import relay as relay_module
from ordertrack.realtime.relay import Relay
from ordertrack.server import loop
from tests.support.events import append_event, append_uncommitted, insert_order
from tests.support.people import Person
from tests.support.servers import Server
from tests.support.waiting import eventually
from tests.support.watchers import SocketIOWatcher, raw_watching, settled, watching

WRITERS = 8
CHANGES = 40


@contextmanager
def transaction(dsn: str) -> Iterator[Any]:
    """A connection in a transaction, rolled back at the end unless the test committed it."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def owner(server: Server) -> Person:
    return server.people.customer()


@pytest.fixture
def watcher(server: Server, owner: Person) -> Iterator[SocketIOWatcher]:
    with watching(server, owner.token) as connected:
        yield connected


def test_transactions_are_published_when_they_commit_whatever_their_order(
    server: Server, owner: Person, watcher: SocketIOWatcher
) -> None:
    slow, quick = owner.order("slow"), owner.order("quick")
    watcher.watch(slow)
    watcher.watch(quick)
    with transaction(server.dsn) as first:
        append_uncommitted(first, slow)  # its row has the lower id, and nobody can see it yet
        owner.edit(quick, "changed")
        assert settled(watcher, quick, 2) == [2]
        assert watcher.versions(slow) == []
        first.commit()
    assert settled(watcher, slow, 2) == [2]
    assert watcher.versions(quick) == [2]


def test_plain_websockets_get_events_of_transactions_that_commit_late(
    server: Server, owner: Person
) -> None:
    slow, quick = owner.order("slow"), owner.order("quick")
    with (
        raw_watching(server, slow, owner.token, after=1) as slow_socket,
        raw_watching(server, quick, owner.token, after=1) as quick_socket,
        transaction(server.dsn) as first,
    ):
        append_uncommitted(first, slow)
        owner.edit(quick, "changed")
        assert quick_socket.next()["version"] == 2
        first.commit()
        assert slow_socket.next()["version"] == 2


def test_an_event_that_rolls_back_is_never_published(
    server: Server, owner: Person, watcher: SocketIOWatcher
) -> None:
    order = owner.order()
    watcher.watch(order)
    with transaction(server.dsn) as connection:
        assert append_uncommitted(connection, order).version == 2
    # The next event takes the version that was given back, and is the first to be heard.
    owner.edit(order, "really")
    assert settled(watcher, order, 2) == [2]
    assert watcher.updates[-1] == owner.history(order, after=1)[0]


def test_many_changes_in_one_transaction_arrive_in_version_order(
    server: Server, owner: Person, watcher: SocketIOWatcher
) -> None:
    order = owner.order()
    watcher.watch(order)
    with transaction(server.dsn) as connection:
        for _ in range(50):
            append_uncommitted(connection, order)
        connection.commit()
    assert settled(watcher, order, 51) == list(range(2, 52))


def test_no_event_of_eight_writers_is_lost_repeated_or_reordered(
    server: Server, owner: Person, watcher: SocketIOWatcher
) -> None:
    """Watchers of both kinds and a reader of the log see each event once, in version order."""
    seed = random.randrange(2**32)
    print("seed", seed)  # noqa: T201 (shown when it fails)
    orders = [owner.order(f"order {n}") for n in range(WRITERS // 2)]
    ids = {int(order["id"]) for order in orders}
    watcher.call("subscribe", {"orders": [{"order_id": order["id"]} for order in orders]})
    writing = threading.Event()
    writing.set()
    read: list[Event] = []

    with ExitStack() as stack:
        raws = [
            stack.enter_context(raw_watching(server, order, owner.token, after=1))
            for order in orders
        ]
        # Somebody else's transaction has written something and stays open all the while.
        foreign = stack.enter_context(transaction(server.dsn))
        foreign.cursor().execute("INSERT INTO idempotency_keys VALUES (%s, 'x', 'x')", [owner.id])
        reading = stack.enter_context(contextlib.closing(psycopg2.connect(server.dsn)))
        reading.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        tail = Tail()
        tail.open(reading.cursor())
        reader = threading.Thread(target=read_on, args=(tail, reading, writing, read))
        reader.start()
        writers = [
            threading.Thread(target=write, args=(server.dsn, orders, seed + n))
            for n in range(WRITERS)
        ]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        writing.clear()
        reader.join()

        seen = defaultdict(list)
        for event in read:
            if event.order_id in ids:
                seen[event.order_id].append(event.version)
        for order, raw in zip(orders, raws, strict=True):
            history = owner.history(order, after=1)
            versions = [event["version"] for event in history]
            assert versions == list(range(2, len(history) + 2))
            assert len(history) > CHANGES / 2  # they did write
            assert seen[int(order["id"])] == versions
            assert settled(watcher, order, versions[-1]) == versions
            assert raw.take(len(history)) == history
        # Not one more, after all that.
        order = owner.order()
        watcher.watch(order)
        owner.edit(order, "the last")
        settled(watcher, order, 2)
        for order in orders:
            assert len(watcher.versions(order)) == len(set(watcher.versions(order)))


def write(dsn: str, orders: list[dict[str, Any]], seed: int) -> None:
    """Transactions of one to three changes, a third of them rolled back."""
    chance = random.Random(seed)
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        for _ in range(CHANGES):
            # In id order, or two writers could wait for each other.
            for order in sorted(
                chance.sample(orders, chance.randint(1, 3)), key=lambda one: int(one["id"])
            ):
                append_uncommitted(connection, order)
            if chance.random() < 1 / 3:
                connection.rollback()
            else:
                connection.commit()


def read_on(tail: Tail, connection: Any, writing: threading.Event, into: list[Event]) -> None:
    """Read the log again and again, and once more after the writers are done."""
    with connection.cursor() as cursor:
        while writing.is_set():
            into += tail.read(cursor)[1]
        into += tail.read(cursor)[1]


def test_a_commit_of_another_process_is_published_before_the_poll(
    server: Server, owner: Person, start_server: Any
) -> None:
    """With a poll of a minute, only the wake-up between processes can be that quick."""
    first = start_server(server.dsn, RELAY_POLL_MS="60000")
    second = start_server(server.dsn, RELAY_POLL_MS="60000")
    order = owner.order()
    with watching(first, owner.token) as watcher:
        watcher.watch(order)
        owner.at(second.transport).edit(order, "changed elsewhere")
        eventually(lambda: watcher.versions(order) == [2])


# --- who notifies whom -------------------------------------------------------------------------


class Ear:
    """Listens as a relay does, but does not pass for one."""

    def __init__(self, dsn: str) -> None:
        self._connection = psycopg2.connect(dsn)
        self._connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        self._cursor = self._connection.cursor()
        self._cursor.execute(f"LISTEN {relay_module.CHANNEL}")

    def heard(self) -> int:
        """How many notifications were committed since the last call."""
        self._cursor.execute("SELECT 1")
        number = len(self._connection.notifies)
        self._connection.notifies.clear()
        return number


def notifications(ear: Ear, owner: Person, watcher: SocketIOWatcher) -> int:
    """How many there are for one change, until it has been published."""
    order = owner.order()
    watcher.watch(order)
    ear.heard()
    owner.edit(order, "changed")
    settled(watcher, order, 2)
    return ear.heard()


def test_one_process_alone_notifies_nobody_and_two_notify_each_other(
    own_dsn: str, start_server: Callable[..., Server]
) -> None:
    first = start_server(own_dsn, RELAY_POLL_MS="60000")
    owner, ear = first.people.customer(), Ear(own_dsn)
    with watching(first, owner.token) as watcher:
        # Its own announcement may still be on its way.
        eventually(lambda: notifications(ear, owner, watcher) == 0)
        assert [notifications(ear, owner, watcher) for _ in range(5)] == [0] * 5

        second = start_server(own_dsn, RELAY_POLL_MS="60000")
        there = owner.at(second.transport)
        order = owner.order()
        with watching(second, owner.token) as watcher_there:
            watcher.watch(order)
            watcher_there.watch(order)
            for version in range(2, 12, 2):
                owner.edit(order, f"here {version}")
                there.edit(order, f"there {version}")
                for one in (watcher, watcher_there):
                    assert settled(one, order, version + 1) == list(range(2, version + 2))
        assert notifications(ear, owner, watcher) >= 1


def listening(stepped: "SteppedRelay") -> Any:
    """Where `_listen` can be called."""
    return contextlib.closing(stepped.relay._connect_listener())


def test_a_relay_knows_whether_there_are_others(
    own_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relay_module, "_SILENCE", 0.05)
    first, second = SteppedRelay(own_dsn), SteppedRelay(own_dsn)
    assert not first.relay._alone  # as long as it does not know
    with listening(first) as here:
        assert first.relay._alone
        with listening(second):
            assert not second.relay._alone
            first.relay._listen(here)
            assert not first.relay._alone
            first.relay._listen(here)  # nothing is heard, and the other is still there
            assert not first.relay._alone
        # A session ends a little after its connection.
        eventually(lambda: first.relay._listen(here) or first.relay._alone)


def test_a_relay_that_hears_of_another_notifies_it_of_what_it_kept_to_itself(own_dsn: str) -> None:
    first, second = SteppedRelay(own_dsn), SteppedRelay(own_dsn)
    with listening(first) as here, first.connected() as following:
        first.relay._follow(following)
        with listening(second) as there:
            first.relay.wake()
            first.relay._follow(following)  # it has not heard of the other yet
            second.relay._woken.wait(0)
            first.relay._listen(here)
            assert first.relay.is_woken
            first.relay._follow(following)
            second.relay._listen(there)
            assert second.relay.is_woken


def test_a_relay_takes_none_of_its_own_notifications_for_another_s(own_dsn: str) -> None:
    stepped = SteppedRelay(own_dsn)
    with listening(stepped) as connection, stepped.connected() as following:
        stepped.relay._alone = False
        stepped.relay.wake()
        stepped.relay._follow(following)
        stepped.relay._alone = True
        assert loop.wait_readable(connection, timeout=5)  # it did notify
        stepped.relay._listen(connection)
        assert stepped.relay._alone
        assert not stepped.relay.is_woken


def test_a_relay_that_cannot_listen_notifies_as_if_there_were_others(own_dsn: str) -> None:
    stepped, nowhere = SteppedRelay(own_dsn), SteppedRelay("host=/nowhere")
    with listening(stepped):
        assert stepped.relay._alone
    stepped.relay._connect = nowhere.relay._connect
    with pytest.raises(psycopg2.OperationalError):
        stepped.relay._connect_listener()
    assert not stepped.relay._alone


# --- when it looks -----------------------------------------------------------------------------


def turns(server: Server) -> int:
    """How often the relay has read the log."""
    found = re.search(r"^ordertrack_relay_turns_total (\S+)$", metrics(server), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def metrics(server: Server) -> str:
    return server.api.get("/metrics").text


def test_every_append_wakes_the_relay_and_nothing_else_does(
    server: Server, start_server: Callable[..., Server]
) -> None:
    quiet = start_server(server.dsn, RELAY_POLL_MS="60000")
    other = start_server(server.dsn, RELAY_POLL_MS="60000")
    admin, owner, driver = (
        getattr(quiet.people, role)() for role in ("admin", "customer", "driver")
    )
    leaving = owner.signed_in_again()
    api = quiet.api

    def settled_turns() -> tuple[int, int]:
        """Once both have looked for all that was said to them until now."""
        order = owner.order()
        with watching(other, owner.token) as watcher:
            watcher.watch(order)
            owner.edit(order, "heard")
            settled(watcher, order, 2)
        return eventually(lambda: _unchanged(lambda: (turns(quiet), turns(other))))

    before = settled_turns()
    order = {"id": "999999999"}
    for _ in range(3):
        wrong = {"email": owner.email, "password": "wrong password"}
        assert api.post("/api/login", json=wrong).status_code == 401
        owner.signed_in_again()
        assert owner.api.post("/api/orders", json={}).status_code == 422
        assert owner.api.delete(f"/api/orders/{order['id']}").status_code == 404
    assert (turns(quiet), turns(other)) == before

    order = owner.order()
    user = f"/api/admin/users/{driver.id}"
    appending: dict[str, Callable[[], object]] = {
        "created": owner.order,
        "description_changed": lambda: owner.edit(order, "changed"),
        "status_changed": lambda: driver.move(order, "Processing"),
        "driver_assigned": lambda: admin.assign(order, driver),
        "deleted": lambda: admin.delete(order),
        "signed_out": lambda: leaving.api.post("/api/logout"),
        "role_changed": lambda: admin.api.patch(user, json={"role": "user"}),
        "deactivated": lambda: admin.api.patch(user, json={"active": False}),
    }
    for what, append in appending.items():
        here, there = settled_turns()
        append()
        assert eventually(lambda n=here: turns(quiet) > n), what  # type: ignore[misc]
        assert eventually(lambda n=there: turns(other) > n), what  # type: ignore[misc]


def _unchanged(ask: Callable[[], tuple[int, int]]) -> tuple[int, int] | None:
    """What *ask* answers three times in a row; None if that is not yet so."""
    answers = []
    for _ in range(3):
        answers.append(ask())
        time.sleep(0.05)
    return answers[0] if answers.count(answers[0]) == len(answers) else None


# --- whether it follows ------------------------------------------------------------------------


def test_the_relay_counts_as_following_until_a_turn_takes_too_long(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(*_: object) -> None:
        return None

    relay = Relay(
        database, publish=nothing, revoke=nothing, before_read=nothing, after_read=nothing,
        on_gap=nothing, poll=0.5,
    )  # fmt: skip
    now = 1000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    assert not relay.is_following
    with contextlib.closing(psycopg2.connect(database)) as connection:
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        with connection.cursor() as cursor:
            relay._open_tail(cursor)
            relay._read_and_publish(cursor)
    assert relay.is_following
    now += 0.5 + 2 - 0.01  # the poll, and what a turn may take
    assert relay.is_following
    now += 0.02
    assert not relay.is_following


# --- when it cannot go on ----------------------------------------------------------------------


class SteppedRelay:
    """A relay that is taken through its turns by hand, and what it calls."""

    def __init__(self, dsn: str) -> None:
        self.calls: list[int | str] = []  # versions, reasons of revocations, "gap"
        self.relay = Relay(
            dsn,
            publish=lambda event: self.calls.append(event.version),
            revoke=lambda revoked: self.calls.append(revoked.reason),
            before_read=lambda: None,
            after_read=lambda: None,
            on_gap=lambda: self.calls.append("gap"),
            poll=0.0,
        )

    def connected(self) -> Any:
        """Where `_follow` can be called."""
        return contextlib.closing(self.relay._connect_follower())


@pytest.fixture
def own_dsn(fresh_database: Callable[[], str]) -> str:
    return fresh_database()


def test_too_many_rows_for_one_read_make_all_clients_resume(
    own_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_tail, "MOST", 10)
    stepped = SteppedRelay(own_dsn)
    order = insert_order(own_dsn)
    with stepped.connected() as connection:
        append_event(own_dsn, order, count=10)
        stepped.relay._follow(connection)
        assert stepped.calls == list(range(2, 12))
        append_event(own_dsn, order, count=11)
        stepped.relay._follow(connection)
        assert stepped.calls[10:] == ["gap"]
        append_event(own_dsn, order)
        stepped.relay._follow(connection)
        assert stepped.calls[11:] == [23]
    assert stepped.relay.restarts == 1


def test_all_clients_resume_after_a_long_outage_and_none_after_a_short_one(
    own_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(loop, "monotonic", lambda: now)
    stepped = SteppedRelay(own_dsn)
    order = insert_order(own_dsn)
    with stepped.connected() as connection:
        stepped.relay._follow(connection)
    append_event(own_dsn, order)
    now += 299
    with stepped.connected() as connection:
        stepped.relay._follow(connection)
    assert stepped.calls == [2]
    append_event(own_dsn, order)
    now += 301
    with stepped.connected() as connection:
        stepped.relay._follow(connection)
        assert stepped.calls[1:] == ["gap"]
        append_event(own_dsn, order)
        stepped.relay._follow(connection)
    assert stepped.calls[2:] == [4]


def test_an_interrupted_restart_of_the_cursor_is_repeated(
    own_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection dies after the new cursor was taken, and before any client was closed."""
    stepped = SteppedRelay(own_dsn)
    order = insert_order(own_dsn)
    with stepped.connected() as connection:
        stepped.relay._follow(connection)
    append_event(own_dsn, order)
    stepped.relay._timeline = "another"
    restart = stepped.relay._tail.restart

    def interrupted(cursor: Any) -> None:
        restart(cursor)
        monkeypatch.setattr(stepped.relay._tail, "restart", restart)
        raise psycopg2.OperationalError("gone")

    monkeypatch.setattr(stepped.relay._tail, "restart", interrupted)
    with pytest.raises(psycopg2.OperationalError):
        stepped.relay._connect_follower()
    assert stepped.calls == []
    with stepped.connected() as connection:
        assert stepped.calls == ["gap"]
        append_event(own_dsn, order)
        stepped.relay._follow(connection)
    assert stepped.calls == ["gap", 3]
    assert stepped.relay.restarts == 1


# --- revocations before events ------------------------------------------------------------------

REVOKE = """INSERT INTO access_changes (user_id, reason)
           SELECT customer_id, 'role_changed' FROM orders WHERE id = %s"""


def revoke_all_sessions(dsn: str, order: int) -> None:
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        connection.cursor().execute(REVOKE, [order])
        connection.commit()


def test_a_revocation_before_an_event_is_applied_before_the_event_is_published(
    own_dsn: str,
) -> None:
    stepped = SteppedRelay(own_dsn)
    order = insert_order(own_dsn)
    with stepped.connected() as connection:
        revoke_all_sessions(own_dsn, order)
        append_event(own_dsn, order)
        stepped.relay._follow(connection)
    assert stepped.calls == ["role_changed", 2]


class BrokenCursor(psycopg2.extensions.cursor):
    def fetchall(self) -> Any:
        raise psycopg2.OperationalError("gone")


def test_events_in_flight_when_the_connection_is_lost_are_published_on_the_next_one(
    own_dsn: str,
) -> None:
    stepped = SteppedRelay(own_dsn)
    order = insert_order(own_dsn)
    with stepped.connected() as connection:
        append_event(own_dsn, order)
        connection.cursor_factory = BrokenCursor
        with pytest.raises(psycopg2.OperationalError):
            stepped.relay._follow(connection)
    append_event(own_dsn, order)
    with stepped.connected() as connection:
        stepped.relay._follow(connection)
    assert stepped.calls == [2, 3]


def test_a_socket_error_while_publishing_does_not_pass_for_a_lost_connection(
    own_dsn: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    stepped = SteppedRelay(own_dsn)
    order = insert_order(own_dsn)

    def broken(_: Any) -> None:
        raise OSError("not the database's")

    monkeypatch.setattr(stepped.relay, "_publish", broken)
    with stepped.connected() as connection:
        append_event(own_dsn, order)
        with pytest.raises(RuntimeError) as failure:
            stepped.relay._follow(connection)
        assert not relay_module._is_lost_connection(failure.value, connection)
