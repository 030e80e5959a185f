"""The relay tells of every event once, in version order, in whatever order transactions commit.

What it does when its connection or PostgreSQL dies is in tests/faults/.
"""

import contextlib
import random
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import psycopg2
import pytest
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from ordertrack import eventlog
from ordertrack.eventlog import Event, Tail
from tests.support.people import Person
from tests.support.servers import Server
from tests.support.sockets import Watcher, raw_watching, settled, watching
from tests.support.waiting import eventually

WRITERS = 8
CHANGES = 40

# One change of an order as the services make it, in a transaction that the test holds.
CHANGE = """
    WITH o AS (UPDATE orders SET version = version + 1 WHERE id = %s RETURNING *)
    INSERT INTO order_events (order_id, version, type, status, previous_status, actor_id,
                              actor_name, actor_role, customer_id, driver_id)
    SELECT id, version, 'description_changed', status, status, customer_id, 'Ann', 'user',
           customer_id, driver_id FROM o
    RETURNING version
"""


@contextmanager
def transaction(dsn: str) -> Iterator[Any]:
    """A connection in a transaction, rolled back at the end unless the test committed it."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        yield connection
        connection.rollback()


def change(connection: Any, order: dict[str, Any]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(CHANGE, [order["id"]])
        version: int = cursor.fetchone()[0]
        return version


@pytest.fixture
def owner(server: Server) -> Person:
    return server.people.customer()


@pytest.fixture
def watcher(server: Server, owner: Person) -> Iterator[Watcher]:
    with watching(server, owner.token) as connected:
        yield connected


def test_a_later_transaction_that_commits_first_is_told_at_once_and_the_first_when_it_commits(
    server: Server, owner: Person, watcher: Watcher
) -> None:
    slow, quick = owner.order("slow"), owner.order("quick")
    watcher.watch(slow)
    watcher.watch(quick)
    with transaction(server.dsn) as first:
        change(first, slow)  # its row has the lower id, and nobody can see it yet
        owner.edit(quick, "changed")
        assert settled(watcher, quick, 2) == [2]
        assert watcher.versions(slow) == []
        first.commit()
    assert settled(watcher, slow, 2) == [2]
    assert watcher.versions(quick) == [2]


def test_raw_sockets_hear_of_transactions_that_commit_late_too(
    server: Server, owner: Person
) -> None:
    slow, quick = owner.order("slow"), owner.order("quick")
    with (
        raw_watching(server, slow, owner.token, after=1) as slow_socket,
        raw_watching(server, quick, owner.token, after=1) as quick_socket,
        transaction(server.dsn) as first,
    ):
        change(first, slow)
        owner.edit(quick, "changed")
        assert quick_socket.next()["version"] == 2
        first.commit()
        assert slow_socket.next()["version"] == 2


def test_what_rolls_back_is_never_told(server: Server, owner: Person, watcher: Watcher) -> None:
    order = owner.order()
    watcher.watch(order)
    with transaction(server.dsn) as connection:
        assert change(connection, order) == 2
    # The next event takes the version that was given back, and is the first to be heard.
    owner.edit(order, "really")
    assert settled(watcher, order, 2) == [2]
    assert watcher.updates[-1] == owner.history(order, after=1)[0]


def test_many_changes_in_one_transaction_arrive_in_version_order(
    server: Server, owner: Person, watcher: Watcher
) -> None:
    order = owner.order()
    watcher.watch(order)
    with transaction(server.dsn) as connection:
        for _ in range(50):
            change(connection, order)
        connection.commit()
    assert settled(watcher, order, 51) == list(range(2, 52))


def test_eight_writers_with_rollbacks_lose_double_and_reorder_nothing(
    server: Server, owner: Person, watcher: Watcher
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
        tail = eventlog.events()
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
                change(connection, order)
            if chance.random() < 1 / 3:
                connection.rollback()
            else:
                connection.commit()


def read_on(
    tail: Tail[Event], connection: Any, writing: threading.Event, into: list[Event]
) -> None:
    """Read the log again and again, and once more after the writers are done."""
    with connection.cursor() as cursor:
        while writing.is_set():
            into += tail.read(cursor)
        into += tail.read(cursor)


def test_a_change_by_another_process_is_told_without_waiting_for_the_poll(
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
