"""Subscriptions on the real log: replay and live events have no gap and no repeat between them.

Events are committed at every step of a subscription here, and at random in test_seam.py; a whole
server is tested in test_socketio_handlers.py and test_order_socket.py.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import psycopg2
import pytest
from flask import Flask
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from ordertrack.auth import from_token
from ordertrack.errors import DomainError, NotFound, Unavailable
from ordertrack.log_tail import Tail
from ordertrack.policy import Actor, DriverScope, Role
from ordertrack.realtime.hub import STAFF_FEED, Answers, Hub, feed_room
from ordertrack.schemas import present_event
from ordertrack.services import orders
from ordertrack.services.orders import CaughtUp, Wanted
from tests.realtime.fakes import FakeWatcher
from tests.support.people import People, Person


class Watcher(FakeWatcher):
    """A connection of a user."""

    def __init__(self, person: Person) -> None:
        super().__init__(int(person.id))
        self.person = person


def nothing(_: int) -> None: ...


class World:
    """A hub, and a relay that reads the real log when the test says so."""

    def __init__(self, app: Flask, dsn: str, scope: DriverScope = DriverScope.ALL) -> None:
        self.hub = Hub(self._catch_up)
        self._app = app
        self._scope = scope
        # Called before and after each read of a subscription, with the number of reads before it.
        self._before_read: Callable[[int], object] = nothing
        self._after_read: Callable[[int], object] = nothing
        self._reads = 0
        self._connection = psycopg2.connect(dsn)
        self._connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        self._cursor = self._connection.cursor()
        self._tail = Tail()
        self._tail.open(self._cursor)

    def close(self) -> None:
        self._connection.close()

    def relay(self) -> None:
        """One turn of the relay."""
        self.hub.before_read()
        _, events = self._tail.read(self._cursor)
        for event in events:
            self.hub.publish(event)
        self.hub.after_read()

    def subscribe(
        self,
        watcher: Watcher,
        order: dict[str, Any],
        after: int | None,
        *,
        before_read: Callable[[int], object] = nothing,
        after_read: Callable[[int], object] = nothing,
    ) -> CaughtUp | DomainError:
        """Subscribe with the real service. The hooks get the number of reads before."""
        self._before_read, self._after_read, self._reads = before_read, after_read, 0
        order_id = int(order["id"])
        return self.hub.subscribe(watcher, {order_id: after})[order_id]

    def _catch_up(self, watcher: Any, wanted: Wanted) -> tuple[Actor, Answers]:
        self._before_read(self._reads)
        with self._app.app_context():
            caller = replace(from_token(watcher.person.token).caller, scope=self._scope)
            answer = orders.catch_up(caller, wanted)
        self._after_read(self._reads)
        self._reads += 1
        return answer


@pytest.fixture
def world(app: Flask, database: str) -> Iterator[World]:
    with contextlib.closing(World(app, database)) as made:
        yield made


@pytest.fixture
def owner(people: People) -> Person:
    return people.customer()


def caught_up(answer: CaughtUp | DomainError) -> CaughtUp:
    assert isinstance(answer, CaughtUp)
    return answer


@pytest.mark.safety("exception-in-the-loop")
def test_a_failing_delivery_closes_that_watcher_and_no_other(
    world: World, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = owner.order()
    watchers = [Watcher(owner) for _ in range(3)]
    for watcher in watchers:
        world.subscribe(watcher, order, 1)
    broken = watchers[1]
    monkeypatch.setattr(broken, "deliver", lambda _: 1 / 0)
    owner.edit(order, "delivered")
    world.relay()
    owner.edit(order, "delivered as well")
    world.relay()
    assert [[event["version"] for event in one.events] for one in watchers] == [[2, 3], [], [2, 3]]
    assert broken.closed == [1011], "and only once: nothing is delivered to it after that"


# What may happen: before the subscription, before and after each of two reads, and after it; a
# commit (c), the relay's turn (r), or both in either order.
STEPS = 6


@pytest.mark.safety("snapshot-to-live")
@pytest.mark.parametrize("known", [None, 1], ids=["state", "what is new"])
@pytest.mark.parametrize("first", ["c", "cr"])
@pytest.mark.parametrize("second", ["c", "r", "cr", "rc"])
def test_a_commit_at_any_step_of_a_subscription_is_delivered_once(
    world: World, owner: Person, known: int | None, first: str, second: str
) -> None:
    """All ways in which two of the steps are interrupted, the others left alone."""
    for one, other in [(a, b) for a, b in product(range(STEPS), repeat=2) if a < b]:
        happens = {one: first, other: second}
        order = owner.order()
        watcher = Watcher(owner)
        number = 0

        def let(step: int, happens: dict[int, str] = happens, order: Any = order) -> None:
            nonlocal number
            for what in happens.get(step, ""):
                if what == "c":
                    number += 1
                    owner.edit(order, f"edit {number}")
                else:
                    world.relay()

        let(0)
        answer = caught_up(
            world.subscribe(
                watcher,
                order,
                known,
                before_read=lambda reads: let(1 + 2 * reads),
                after_read=lambda reads: let(2 + 2 * reads),
            )
        )
        delivered_before = len(watcher.events)
        let(5)
        world.relay()
        history = owner.history(order)
        begins = answer.version if known is None else known
        got = [present_event(event) for event in answer.events] + watcher.events[delivered_before:]
        assert delivered_before == 0
        assert got == history[begins:], (one, other)
        assert answer.order.version == answer.version
        # A second turn settles everything and tells nothing.
        world.relay()
        assert len(watcher.events) == len(got) - len(answer.events)
        assert world.hub._subscriptions == {}


def test_an_order_that_changes_during_every_read_is_unavailable(
    world: World, owner: Person
) -> None:
    order = owner.order()

    def change(reads: int) -> None:
        owner.edit(order, f"edit {reads}")
        world.relay()

    watcher = Watcher(owner)
    answer = world.subscribe(watcher, order, 0, after_read=change)
    assert isinstance(answer, Unavailable)
    owner.edit(order, "calm again")
    world.relay()
    assert watcher.events == []
    assert world.hub._subscriptions == {}


def test_a_relay_that_lags_far_behind_repeats_nothing(world: World, owner: Person) -> None:
    order = owner.order()
    for number in range(5):
        owner.edit(order, f"edit {number}")
    watcher = Watcher(owner)
    assert caught_up(world.subscribe(watcher, order, 2)).version == 6
    owner.edit(order, "live")
    world.relay()  # reads all of it only now
    assert [event["version"] for event in watcher.events] == [7]


def test_a_watermark_set_during_a_turn_is_kept_until_the_next_turn_ends(
    world: World, owner: Person
) -> None:
    order = owner.order()
    watcher = Watcher(owner)
    world.relay()
    world.hub.before_read()  # and finds nothing
    owner.edit(order, "after the turn's read")
    assert caught_up(world.subscribe(watcher, order, 1)).version == 2
    world.hub.after_read()
    world.relay()  # finds what the watcher was answered already
    assert watcher.events == []


def test_subscribing_again_neither_loses_nor_repeats(world: World, owner: Person) -> None:
    order = owner.order()
    watcher = Watcher(owner)
    world.subscribe(watcher, order, None)
    owner.edit(order, "first")
    world.relay()
    owner.edit(order, "second")  # the relay does not know yet
    answer = caught_up(world.subscribe(watcher, order, 2))
    assert [event.version for event in answer.events] == [3]
    owner.edit(order, "third")
    world.relay()
    assert [event["version"] for event in watcher.events] == [2, 4]


# --- when there is no answer -------------------------------------------------------------------


def failing(error: Exception) -> Callable[[int], object]:
    def fail(_: int) -> None:
        raise error

    return fail


def test_a_subscription_that_fails_takes_nothing_from_an_earlier_one(
    world: World, owner: Person
) -> None:
    order = owner.order()
    watcher = Watcher(owner)
    world.subscribe(watcher, order, None)

    def meanwhile(_: int) -> None:
        owner.edit(order, "while the database was asked")
        world.relay()

    with pytest.raises(Unavailable):
        world.subscribe(
            watcher,
            order,
            1,
            before_read=meanwhile,
            after_read=failing(Unavailable("The database cannot answer right now.")),
        )
    owner.edit(order, "afterwards")
    world.relay()
    assert [event["version"] for event in watcher.events] == [2, 3]


def test_a_refused_subscription_takes_nothing_from_a_feed(
    world: World, people: People, owner: Person
) -> None:
    """The order is deleted while an admin's page, which has the feed, subscribes to it."""
    admin = people.admin()
    order = owner.order()
    watcher = Watcher(admin)
    world.hub.join(watcher, STAFF_FEED)

    def delete(_: int) -> None:
        owner.delete(order)
        world.relay()

    answer = world.subscribe(watcher, order, 1, before_read=delete)
    assert isinstance(answer, NotFound)
    assert [event["type"] for event in watcher.events[-1:]] == ["deleted"]


@pytest.mark.safety("replay-as-narrow-as-live")
def test_nothing_is_delivered_of_an_order_that_the_watcher_may_not_see(
    world: World, people: People, owner: Person
) -> None:
    order = owner.order()
    watcher = Watcher(people.customer())

    def change(_: int) -> None:
        owner.edit(order, "changed")
        world.relay()

    answer = world.subscribe(watcher, order, None, before_read=change, after_read=change)
    assert isinstance(answer, NotFound)
    world.relay()
    assert watcher.events == []


# --- audiences ---------------------------------------------------------------------------------


def test_a_watcher_in_a_room_and_a_feed_gets_each_event_once(
    world: World, people: People, owner: Person
) -> None:
    admin = people.admin()
    order = owner.order()
    world.relay()
    both, feed_only = Watcher(admin), Watcher(admin)
    for watcher in (both, feed_only):
        world.hub.join(watcher, STAFF_FEED)
    world.subscribe(both, order, None)
    owner.edit(order, "changed")
    world.relay()
    for watcher in (both, feed_only):
        mine = [event for event in watcher.events if event["order_id"] == order["id"]]
        assert mine == owner.history(order, after=1)


def test_the_feed_of_narrowed_drivers_follows_the_assignment(
    app: Flask, database: str, people: People, owner: Person
) -> None:
    admin, first, second = people.admin(), people.driver(), people.driver()
    with contextlib.closing(World(app, database, DriverScope.ASSIGNED)) as world:
        watchers = {}
        for person in (first, second):
            watchers[person] = Watcher(person)
            actor = Actor(int(person.id), person.name, Role.DRIVER, DriverScope.ASSIGNED)
            world.hub.join(watchers[person], feed_room(actor))
        order = owner.order()
        admin.assign(order, first)
        owner.edit(order, "for the first")
        admin.assign(order, second)
        owner.edit(order, "for the second")
        world.relay()
        versions = {
            person: [event["version"] for event in watcher.events]
            for person, watcher in watchers.items()
        }
        assert versions == {first: [2, 3], second: [4, 5]}


def test_a_driver_who_got_the_order_back_is_not_logged_out_for_losing_it_before(
    app: Flask, database: str, people: People, owner: Person
) -> None:
    """The relay is still to tell of the loss when the driver, who has it again, subscribes."""
    admin, first, second = people.admin(), people.driver(), people.driver()
    with contextlib.closing(World(app, database, DriverScope.ASSIGNED)) as world:
        order = owner.order()
        for driver in (first, second, first):
            admin.assign(order, driver)
        watcher = Watcher(first)
        assert caught_up(world.subscribe(watcher, order, None)).version == 4
        world.relay()
        assert (watcher.events, watcher.logged_out) == ([], [])
        admin.assign(order, second)
        world.relay()
        assert (watcher.events, watcher.logged_out) == ([], ["not_found"])
