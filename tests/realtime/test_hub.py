"""The seam between replay and live on the real log: commits at every step of a subscription.

A Hypothesis machine tears it further apart in test_seam.py; what a whole server does is in
test_rooms.py and test_websocket.py.
"""

import contextlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import product
from typing import Any

import psycopg2
import pytest
from flask import Flask
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from ordertrack import eventlog
from ordertrack.auth import from_token
from ordertrack.errors import DomainError, NotFound, Unavailable
from ordertrack.policy import Actor, DriverScope, Role
from ordertrack.realtime.hub import STAFF_FEED, Announcement, Hub, Wanted, feed_room
from ordertrack.schemas import present_event
from ordertrack.services import orders
from ordertrack.services.orders import CaughtUp
from tests.support.people import People, Person

Answers = dict[int, CaughtUp | DomainError]


class Watcher:
    """A connection that keeps what it is told."""

    def __init__(self, world: "World", person: Person) -> None:
        self.actor: Actor | None = None
        self.person = person
        self.told: list[dict[str, Any]] = []
        self.signed_out: list[str] = []
        self.hung_up: list[int] = []
        self._world = world

    def deliver(self, announcement: Announcement) -> None:
        self.told.append(present_event(announcement.event))

    def join(self, room: str) -> None:
        self._world.rooms[room][self] = None

    def leave(self, room: str) -> None:
        self._world.rooms[room].pop(self, None)

    def sign_out(self, error: DomainError) -> None:
        self.signed_out.append(error.code)
        self._leave_all()

    def hang_up(self, code: int, reason: str) -> None:
        self.hung_up.append(code)
        self._leave_all()

    def _leave_all(self) -> None:
        for members in self._world.rooms.values():
            members.pop(self, None)


class World:
    """A fan-out, and a relay that reads the real log when the test says so."""

    def __init__(self, app: Flask, dsn: str, scope: DriverScope = DriverScope.ALL) -> None:
        self.rooms: dict[str, dict[Watcher, None]] = defaultdict(dict)
        self.hub = Hub(lambda room: self.rooms[room], scope)
        self._app = app
        self._scope = scope
        self._connection = psycopg2.connect(dsn)
        self._connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        self._cursor = self._connection.cursor()
        self._tail = eventlog.events()
        self._tail.open(self._cursor)

    def close(self) -> None:
        self._connection.close()

    def relay(self) -> None:
        """One turn."""
        self.hub.reading()
        for event in self._tail.read(self._cursor):
            self.hub.publish(event)
        self.hub.caught_up()

    def subscribe(
        self,
        watcher: Watcher,
        order: dict[str, Any],
        after: int | None,
        *,
        before_read: Callable[[int], object] = lambda _: None,
        after_read: Callable[[int], object] = lambda _: None,
    ) -> CaughtUp | DomainError:
        """Subscribe over the real service. The hooks are told how often was read before."""
        reads = 0

        def read(wanted: Wanted) -> tuple[Actor, Answers]:
            nonlocal reads
            before_read(reads)
            with self._app.app_context():
                caller = replace(from_token(watcher.person.token).caller, scope=self._scope)
                answer = orders.catch_up(caller, wanted)
            after_read(reads)
            reads += 1
            return answer

        order_id = int(order["id"])
        return self.hub.subscribe(watcher, {order_id: after}, read)[order_id]


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
def test_a_watcher_that_cannot_be_told_is_closed_and_the_others_are_told(
    world: World, owner: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = owner.order()
    watchers = [Watcher(world, owner) for _ in range(3)]
    for watcher in watchers:
        world.subscribe(watcher, order, 1)
    broken = watchers[1]
    monkeypatch.setattr(broken, "deliver", lambda _: 1 / 0)
    owner.edit(order, "told")
    world.relay()
    owner.edit(order, "told again")
    world.relay()
    assert [[event["version"] for event in one.told] for one in watchers] == [[2, 3], [], [2, 3]]
    assert broken.hung_up == [1011], "and only once: it is out of the room"


# What may happen: before the subscription, before and after each of two reads, and after it; a
# commit (c), the relay's turn (r), or both in either order.
STEPS = 6


@pytest.mark.safety("snapshot-to-live")
@pytest.mark.parametrize("known", [None, 1], ids=["state", "what is new"])
@pytest.mark.parametrize("first", ["c", "cr"])
@pytest.mark.parametrize("second", ["c", "r", "cr", "rc"])
def test_a_commit_at_any_step_is_told_once(
    world: World, owner: Person, known: int | None, first: str, second: str
) -> None:
    """All ways in which two of the steps are interrupted, the others left alone."""
    for one, other in [(a, b) for a, b in product(range(STEPS), repeat=2) if a < b]:
        happens = {one: first, other: second}
        order = owner.order()
        watcher = Watcher(world, owner)
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
        told_before = len(watcher.told)
        let(5)
        world.relay()
        history = owner.history(order)
        begins = answer.version if known is None else known
        heard = [present_event(event) for event in answer.events] + watcher.told[told_before:]
        assert told_before == 0
        assert heard == history[begins:], (one, other)
        assert answer.order.version == answer.version
        # A second turn settles everything and tells nothing.
        world.relay()
        assert len(watcher.told) == len(heard) - len(answer.events)
        assert world.hub._transit == {}


def test_an_order_that_never_stands_still_is_given_up(world: World, owner: Person) -> None:
    order = owner.order()

    def change(reads: int) -> None:
        owner.edit(order, f"edit {reads}")
        world.relay()

    watcher = Watcher(world, owner)
    answer = world.subscribe(watcher, order, 0, after_read=change)
    assert isinstance(answer, Unavailable)
    owner.edit(order, "calm again")
    world.relay()
    assert watcher.told == []
    assert world.hub._transit == {}


def test_a_relay_that_lags_far_behind_repeats_nothing(world: World, owner: Person) -> None:
    order = owner.order()
    for number in range(5):
        owner.edit(order, f"edit {number}")
    watcher = Watcher(world, owner)
    assert caught_up(world.subscribe(watcher, order, 2)).version == 6
    owner.edit(order, "live")
    world.relay()  # reads all of it only now
    assert [event["version"] for event in watcher.told] == [7]


def test_an_answer_given_during_a_turn_is_kept_until_the_turn_after_it(
    world: World, owner: Person
) -> None:
    order = owner.order()
    watcher = Watcher(world, owner)
    world.relay()
    world.hub.reading()  # and finds nothing
    owner.edit(order, "after the turn's read")
    assert caught_up(world.subscribe(watcher, order, 1)).version == 2
    world.hub.caught_up()
    world.relay()  # finds what the watcher was answered already
    assert watcher.told == []


def test_subscribing_again_neither_loses_nor_repeats(world: World, owner: Person) -> None:
    order = owner.order()
    watcher = Watcher(world, owner)
    world.subscribe(watcher, order, None)
    owner.edit(order, "first")
    world.relay()
    owner.edit(order, "second")  # the relay does not know yet
    answer = caught_up(world.subscribe(watcher, order, 2))
    assert [event.version for event in answer.events] == [3]
    owner.edit(order, "third")
    world.relay()
    assert [event["version"] for event in watcher.told] == [2, 4]


# --- when there is no answer -------------------------------------------------------------------


def failing(error: Exception) -> Callable[[int], object]:
    def fail(_: int) -> None:
        raise error

    return fail


def test_a_subscription_that_fails_takes_nothing_from_an_earlier_one(
    world: World, owner: Person
) -> None:
    order = owner.order()
    watcher = Watcher(world, owner)
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
    assert [event["version"] for event in watcher.told] == [2, 3]


def test_a_refused_subscription_takes_nothing_from_a_feed(
    world: World, people: People, owner: Person
) -> None:
    """The order is deleted while an admin's page, which has the feed, subscribes to it."""
    admin = people.admin()
    order = owner.order()
    watcher = Watcher(world, admin)
    world.rooms[STAFF_FEED][watcher] = None

    def delete(_: int) -> None:
        owner.delete(order)
        world.relay()

    answer = world.subscribe(watcher, order, 1, before_read=delete)
    assert isinstance(answer, NotFound)
    assert [event["type"] for event in watcher.told[-1:]] == ["deleted"]


@pytest.mark.safety("replay-as-narrow-as-live")
def test_who_may_not_see_an_order_is_told_nothing_of_it(
    world: World, people: People, owner: Person
) -> None:
    order = owner.order()
    watcher = Watcher(world, people.customer())

    def change(_: int) -> None:
        owner.edit(order, "changed")
        world.relay()

    answer = world.subscribe(watcher, order, None, before_read=change, after_read=change)
    assert isinstance(answer, NotFound)
    world.relay()
    assert watcher.told == []


# --- audiences ---------------------------------------------------------------------------------


def test_a_feed_hears_each_event_once_beside_a_room(
    world: World, people: People, owner: Person
) -> None:
    admin = people.admin()
    order = owner.order()
    world.relay()
    both, feed_only = Watcher(world, admin), Watcher(world, admin)
    world.rooms[STAFF_FEED] |= {both: None, feed_only: None}
    world.subscribe(both, order, None)
    owner.edit(order, "changed")
    world.relay()
    for watcher in (both, feed_only):
        mine = [event for event in watcher.told if event["order_id"] == order["id"]]
        assert mine == owner.history(order, after=1)


def test_the_feed_of_narrowed_drivers_follows_the_assignment(
    app: Flask, database: str, people: People, owner: Person
) -> None:
    admin, first, second = people.admin(), people.driver(), people.driver()
    with contextlib.closing(World(app, database, DriverScope.ASSIGNED)) as world:
        watchers = {}
        for person in (first, second):
            watchers[person] = Watcher(world, person)
            actor = Actor(int(person.id), person.name, Role.DRIVER, DriverScope.ASSIGNED)
            watchers[person].join(feed_room(actor))
        order = owner.order()
        admin.assign(order, first)
        owner.edit(order, "for the first")
        admin.assign(order, second)
        owner.edit(order, "for the second")
        world.relay()
        versions = {
            person: [event["version"] for event in watcher.told]
            for person, watcher in watchers.items()
        }
        assert versions == {first: [2, 3], second: [4, 5]}


def test_a_driver_that_got_its_order_back_is_not_signed_out_for_the_time_between(
    app: Flask, database: str, people: People, owner: Person
) -> None:
    """The relay is still to tell of the loss when the driver, who has it again, subscribes."""
    admin, first, second = people.admin(), people.driver(), people.driver()
    with contextlib.closing(World(app, database, DriverScope.ASSIGNED)) as world:
        order = owner.order()
        for driver in (first, second, first):
            admin.assign(order, driver)
        watcher = Watcher(world, first)
        assert caught_up(world.subscribe(watcher, order, None)).version == 4
        world.relay()
        assert (watcher.told, watcher.signed_out) == ([], [])
        admin.assign(order, second)
        world.relay()
        assert (watcher.told, watcher.signed_out) == ([], ["not_found"])
