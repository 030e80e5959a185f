"""The bounds of a replay: in one acknowledgement, and on a plain WebSocket."""

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask

from ordertrack import eventlog
from ordertrack.auth import from_token
from ordertrack.errors import NotFound
from ordertrack.eventlog import Event
from ordertrack.policy import Actor, DriverScope, Role
from ordertrack.realtime.connections import Connections
from ordertrack.realtime.hub import Answers, Hub
from ordertrack.realtime.order_socket import OrderSockets, OrderWatcher
from ordertrack.services import orders
from ordertrack.services.orders import REPLAY_LIMIT, Budget, CaughtUp, Reset, fit
from tests.realtime.fakes import FakeWatcher, credential_for
from tests.server.wire import CLOSE, TEXT, handshake, peer
from tests.support.people import People, Person
from tests.support.servers import Server, running_server
from tests.support.watchers import raw_watching, settled, watching

QUEUE = 65_536

# An edit's event has its text, 2 KB; half a queue is what an answer holds.
TEXTS = ["a" * 2000, "b" * 2000]
FEW, MANY = 10, 80


@pytest.fixture(scope="module")
def small(database: str) -> Iterator[Server]:
    """A server with the smallest queues that may be set."""
    with running_server(database, QUEUE_MAX_BYTES=str(QUEUE)) as started:
        yield started


@pytest.fixture
def owner(small: Server) -> Person:
    return small.people.customer()


@pytest.fixture
def edited(owner: Person) -> Callable[[int], dict[str, Any]]:
    """Makes an order of the owner's with so many large events."""

    def make(times: int) -> dict[str, Any]:
        order = owner.order()
        for number in range(times):
            owner.edit(order, TEXTS[number % 2])
        return order

    return make


def test_an_acknowledgement_holds_no_more_than_fits_and_says_what_did_not(
    small: Server, owner: Person, edited: Callable[[int], dict[str, Any]]
) -> None:
    first, second, third, untouched = edited(FEW), edited(FEW), edited(FEW), owner.order()
    wanted = [{"order_id": one["id"], "after": 1} for one in (first, second, third, untouched)]
    with watching(small, owner.token) as watcher:
        answer = watcher.call("subscribe", {"orders": wanted})
        one, two, three, none = answer["results"]
        assert one["events"] == owner.history(first, after=1)
        for full, order in ((two, second), (three, third)):
            assert (full["events"], full["reset"]) == ([], True)
            assert full["reset_reason"] == "answer_full"
            assert full["order"] == owner.read(order)
        assert (none["events"], "reset" in none) == ([], False)
        # What did not fit can be had, and it is watched already.
        again = watcher.call("subscribe", {"orders": wanted[1:]})["results"]
        assert again[0]["events"] == owner.history(second, after=1)
        assert again[1]["reset_reason"] == "answer_full"
        assert watcher.watch(third, after=1)["events"] == owner.history(third, after=1)
        owner.edit(third, "live")
        assert settled(watcher, third, FEW + 2) == [FEW + 2]


def test_an_order_of_which_more_was_missed_than_any_answer_holds_is_reset(
    small: Server, owner: Person, edited: Callable[[int], dict[str, Any]]
) -> None:
    large, small_one = edited(MANY), edited(1)
    with watching(small, owner.token) as watcher:
        answer = watcher.watch(large, after=1)
        assert (answer["events"], answer["reset_reason"]) == ([], "too_many")
        assert answer["order"] == owner.read(large)
        wanted = [{"order_id": one["id"], "after": 1} for one in (large, small_one)]
        both = watcher.call("subscribe", {"orders": wanted})["results"]
        assert both[0]["reset_reason"] == "too_many", "or it would be asked for again for ever"
        assert watcher.watch(small_one, after=1)["events"] == owner.history(small_one, after=1)


def test_a_plain_websocket_gets_a_large_replay_in_pages(
    small: Server, owner: Person, edited: Callable[[int], dict[str, Any]]
) -> None:
    """All of it, and what happens meanwhile behind it; no more at a time than may be queued."""
    order = edited(MANY)
    path = f"/ws/orders/{order['id']}?after=0"
    opening = handshake(path, small.port, Authorization=f"Bearer {owner.token}")
    with peer(small.port, receive_buffer=4096, opening=opening) as client:
        assert client.status == 101
        for number in range(5):  # before it has read anything
            owner.edit(order, TEXTS[(MANY + number) % 2])
        versions = []
        while not versions or versions[-1] < MANY + 6:
            opcode, payload = client.read()
            assert opcode == TEXT, (opcode, payload)
            versions.append(int(payload.split(b'"version":', 1)[1].split(b",", 1)[0]))
    assert versions == list(range(1, MANY + 7))


def test_a_plain_websocket_that_does_not_read_its_replay_is_closed(
    small: Server, owner: Person, edited: Callable[[int], dict[str, Any]]
) -> None:
    order = edited(MANY)
    path = f"/ws/orders/{order['id']}?after=0"
    opening = handshake(path, small.port, Authorization=f"Bearer {owner.token}")
    with peer(small.port, receive_buffer=4096, opening=opening) as client:
        for number in range(MANY):  # more than may be held back
            owner.edit(order, TEXTS[(MANY + number) % 2])
        opcode, payload = client.read()
        while opcode == TEXT:
            opcode, payload = client.read()
        assert (opcode, payload[:2]) == (CLOSE, (1013).to_bytes(2, "big"))


def test_a_replay_ends_when_the_order_is_deleted(
    small: Server, owner: Person, edited: Callable[[int], dict[str, Any]]
) -> None:
    order = edited(MANY)
    path = f"/ws/orders/{order['id']}?after=0"
    opening = handshake(path, small.port, Authorization=f"Bearer {owner.token}")
    with peer(small.port, receive_buffer=4096, opening=opening) as client:
        owner.delete(order)
        got = 0
        opcode, payload = client.read()
        while opcode == TEXT:
            got += 1
            opcode, payload = client.read()
        assert (opcode, payload) == (CLOSE, (1008).to_bytes(2, "big") + b"not_found")
        assert got < MANY + 1


def test_a_small_replay_is_whole_whatever_the_queue(small: Server, owner: Person) -> None:
    order = owner.order()
    for number in range(20):
        owner.edit(order, f"box {number}")
    with raw_watching(small, order, owner.token, after=0) as raw:
        assert raw.take(21) == owner.history(order)


# --- the sum -----------------------------------------------------------------------------------


def caught_up(events: int, size: int, reset: Reset | None = None) -> CaughtUp:
    event: Event = None  # type: ignore[assignment] (nobody looks at it)
    return CaughtUp(None, events, [event] * events, reset, size)  # type: ignore[arg-type]


def test_a_budget_goes_to_the_first_orders() -> None:
    budget = Budget(events=10, bytes=1000)
    gone = NotFound("gone")
    answers = fit(
        {
            1: caught_up(4, 100),
            2: caught_up(0, 0),
            3: gone,
            4: caught_up(6, 900),
            5: caught_up(1, 1),
            6: caught_up(0, 0),
            7: caught_up(1, 1001),
            8: caught_up(0, 0, Reset.TOO_MANY),
        },
        budget,
    )
    assert answers[3] is gone
    found = {n: (len(a.events), a.reset) for n, a in answers.items() if isinstance(a, CaughtUp)}
    assert found == {
        1: (4, None),
        2: (0, None),
        4: (6, None),
        5: (0, Reset.ANSWER_FULL),
        6: (0, None),
        7: (0, Reset.TOO_MANY),
        8: (0, Reset.TOO_MANY),
    }


def test_what_exceeds_the_budget_is_not_read(
    app: Flask, people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = people.customer()
    made = [owner.order() for _ in range(6)]
    for order in made:
        owner.edit(order, "changed")
    read: list[int] = []
    between = eventlog.between

    def counted(spans: Any, limit: int) -> dict[int, list[Event]]:
        read.extend(span.order_id for span in spans)
        return between(spans, limit)

    monkeypatch.setattr(eventlog, "between", counted)
    monkeypatch.setattr(orders, "_READ_AT_ONCE", 2)
    with app.app_context():
        _, answers = orders.catch_up(
            from_token(owner.token).caller,
            {int(order["id"]): 1 for order in made},
            Budget(events=3),
        )
    assert read == [int(order["id"]) for order in made[:4]], "two at a time, to the budget's end"
    found = [answer.reset for answer in answers.values() if isinstance(answer, CaughtUp)]
    assert found == [None] * 3 + [Reset.ANSWER_FULL] * 3


def test_several_reads_for_one_answer_share_its_budget() -> None:
    """Each of them keeps to the budget; what they found together does not."""
    found: Answers = {1: caught_up(2, 100), 2: caught_up(2, 100)}
    actor = Actor(1, "Ann", Role.ADMIN, DriverScope.ALL)
    hub = Hub(lambda *_: (actor, dict(found)), Budget(events=3, bytes=1000))
    answers = hub.subscribe(FakeWatcher(), {1: 0, 2: 0})
    assert [answer.reset for answer in answers.values() if isinstance(answer, CaughtUp)] == [
        None,
        Reset.ANSWER_FULL,
    ]
    assert (hub.resets, hub.replayed) == (1, 2)


@pytest.mark.parametrize(("events", "size"), [(11, 500), (5, 1001)])
def test_the_first_order_either_fits_or_never_will(events: int, size: int) -> None:
    """So that asking again for what found the answer full ends."""
    [answer] = fit({1: caught_up(events, size)}, Budget(events=20, bytes=1000)).values()
    assert isinstance(answer, CaughtUp)
    assert answer.reset is (None if size <= 1000 else Reset.TOO_MANY)


def test_what_is_replayed_of_one_order_fits_an_answer() -> None:
    assert Budget().events >= REPLAY_LIMIT


def test_a_watcher_that_leaves_during_a_replay_in_pages_leaves_no_reference_cycle() -> None:
    class Traced(Actor):
        """An actor that can be referenced weakly: a watcher has no room for that."""

    hub = Hub(lambda *_: pytest.fail("nothing is read"))
    connections = Connections(limit=1, per_user=1)
    sockets = object.__new__(OrderSockets)
    watcher = OrderWatcher(credential_for(1, 1, 900), hub, connections, QUEUE)
    watcher.actor = Traced(1, "Ann", Role.USER, DriverScope.ALL)
    kept = weakref.ref(watcher.actor)
    watcher.replay_in_pages(sockets._pages(watcher, order_id=1, after=0, upto=REPLAY_LIMIT))
    watcher.ended()
    gc.disable()
    try:
        del watcher
        assert kept() is None
    finally:
        gc.enable()
