"""Fan-out: delivers each event of the log to the connections that watch its order.

A *watcher* is one connection. It is in the *rooms* of the orders to which it has subscribed, and in
a feed's room. The hub is the only registry of rooms; the relay calls `publish` for every event of
the log, once and in log order.

Rules
-----
1. A subscription loses no event and repeats none, although its replay comes from the log and all
   later events from the relay. The replay ends at the version of the answer, its *watermark*; what
   the relay publishes up to the watermark is dropped for this watcher.
2. While the log is read, what is published for the watcher is held. If anything newer than the
   answer was published meanwhile, the log is read again. Otherwise the watcher joins the room and
   its answer is sent before the event loop runs anything else.
3. A watermark is kept until the relay has published everything that was committed when the answer
   was given: until the end of the first read that began afterwards.
4. A subscription that fails takes nothing from an earlier one, nor from a feed: what was held is
   delivered.
5. Nothing is delivered to a watcher that is being closed, and it joins no room.
6. `publish` never waits. A watcher to which an event cannot be delivered is closed, and the others
   get it.

States of a subscription, for one watcher and one order
-------------------------------------------------------
                event v is published    answer at version a   refused or failed   relay caught up
    LIVE        deliver                 -                     -                   -
    READING     v <= watermark: drop    newer published:      watermark > 0:      -
                else: hold                read again            SETTLING
                                        else: SETTLING with   else: LIVE
                                          watermark a         deliver the held
    SETTLING    v <= watermark: drop    -                     -                   LIVE (rule 3)
                else: deliver

A LIVE subscription has no `_Subscription`: the watcher is in the order's room. One that subscribes
again is READING again, with the watermark of its earlier answer.

An example
----------
    hub = Hub(catch_up=gate.catch_up)
    relay = Relay(dsn, publish=hub.publish, before_read=hub.before_read, …)
    answers = hub.subscribe(watcher, {42: 7})  # it has seen version 7 of order 42
    watcher.send(answers)                      # before anything else runs
    ...                                        # watcher.deliver(…) for version 8 and later
    hub.unsubscribe(watcher, 42)
    hub.remove(watcher)                        # when the connection has ended
"""

import logging
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from itertools import chain
from typing import Final, Protocol

from ordertrack import policy
from ordertrack.auth import Credential
from ordertrack.errors import DomainError, NotFound, Unavailable
from ordertrack.eventlog import Event
from ordertrack.policy import Actor
from ordertrack.schemas import present_event, to_json
from ordertrack.server.ws_frames import CloseCode, text_frame
from ordertrack.services.orders import Budget, CaughtUp, Start, Wanted, fit
from ordertrack.sio.engineio import EncodedMessage, encode_event

log = logging.getLogger(__name__)

# A read of the log takes about a millisecond; an order that changed during each of so many reads
# in a row is changing faster than a client can follow.
ATTEMPTS = 20

STAFF_FEED: Final = "feed"

Answers = dict[int, CaughtUp | DomainError]


class Announcement:
    """An event to be delivered, encoded at most once for each protocol, however many recipients."""

    def __init__(self, event: Event) -> None:
        self.event = event

    @cached_property
    def json(self) -> str:
        return to_json(present_event(self.event))

    @cached_property
    def frame(self) -> bytes:
        """For plain WebSockets: a text frame with the event."""
        return text_frame(self.json)

    @cached_property
    def message(self) -> EncodedMessage:
        """For Socket.IO: an ``order_update`` with the event."""
        return encode_event("order_update", self.json)


class Watcher(Protocol):
    """An authenticated connection, whichever protocol it speaks."""

    kind: str  # "socketio" or "websocket", as the metrics name it
    credential: Credential
    actor: Actor | None  # the user as of the last read of the database
    rooms: tuple[str, ...]  # kept by the hub, as a tuple because it is small
    closing: DomainError | None  # why it is being closed; None while it is open

    @property
    def is_alive(self) -> bool:
        """Whether the client is still there, as far as is known."""

    def deliver(self, announcement: Announcement) -> None:
        """Queue the event behind everything that was sent before. Never waits."""

    def joined(self, room: str) -> None:
        """The hub has put it into the room."""

    def left(self, room: str) -> None:
        """The hub has taken it out of the room."""

    def stop(self, error: DomainError) -> None:
        """Deliver nothing from now on: it is to be closed because of *error*."""

    def close_with_error(self, error: DomainError) -> None:
        """Tell the client why it may not go on, and close the connection."""

    def close(self, code: CloseCode, reason: str) -> None:
        """Close the connection so that the client reconnects and resumes."""


CatchUp = Callable[[Watcher, Wanted], tuple[Actor, Answers]]


class State(Enum):
    READING = auto()
    SETTLING = auto()


@dataclass(slots=True, eq=False)
class _Subscription:
    """A watcher's subscription to an order, until it is live. See the states above."""

    order_id: int
    watcher: Watcher
    watermark: int  # the version up to which the watcher has been answered
    state: State = State.READING
    newest: int = 0  # the highest version published while READING
    held: list[Announcement] = field(default_factory=list)  # not sent, because it was READING


def order_room(order_id: int) -> str:
    return str(order_id)


def feed_room(actor: Actor) -> str:
    """The room whose watchers get the events of all orders that *actor* may see."""
    return STAFF_FEED if actor.sees_all else _own_feed(actor.id)


def _own_feed(user_id: int) -> str:
    return f"{STAFF_FEED}:{user_id}"


class Hub:
    """The rooms of one process, and the watchers in them.

    *catch_up* reads where orders stand and what a watcher has missed (`DatabaseGate.catch_up`);
    *budget* bounds what one answer replays.
    """

    def __init__(self, catch_up: CatchUp, budget: Budget = Budget()) -> None:  # noqa: B008
        self._catch_up = catch_up
        self._budget = budget
        # A room with one watcher, as most are, is that watcher: a dictionary would take 240 bytes.
        self._rooms: dict[str, Watcher | dict[Watcher, None]] = {}
        self._subscriptions: dict[int, dict[Watcher, _Subscription]] = {}
        # SETTLING since before the relay's present read began: LIVE when it ends; and since then:
        # LIVE when the next one ends.
        self._settling_before_read: list[_Subscription] = []
        self._settling_since_read: list[_Subscription] = []
        # For the metrics. Memberships are counted by the watcher's kind and the kind of room.
        self.memberships = Counter(socketio_order=0, socketio_feed=0, websocket_order=0)
        self.subscribes = 0
        self.resumes = 0  # of those, with the version last seen
        self.resets = 0  # of those, too far behind to replay
        self.replayed = 0
        self.published = 0
        self.deliveries = 0

    # --- rooms --------------------------------------------------------------------------------

    def join(self, watcher: Watcher, room: str) -> None:
        """Put *watcher* into *room*, unless it is being closed."""
        if watcher.closing is not None or watcher in self._members(room):
            return
        members = self._rooms.get(room)
        if members is None:
            self._rooms[room] = watcher
        elif isinstance(members, dict):
            members[watcher] = None
        else:
            self._rooms[room] = {members: None, watcher: None}
        watcher.rooms += (room,)
        self.memberships[_membership(watcher, room)] += 1
        watcher.joined(room)

    def leave(self, watcher: Watcher, room: str) -> None:
        if watcher in self._members(room):
            watcher.rooms = tuple(one for one in watcher.rooms if one != room)
            self._remove(watcher, room)
            watcher.left(room)

    def remove(self, watcher: Watcher) -> None:
        """Take *watcher* out of all rooms: its connection has ended."""
        for room in watcher.rooms:
            self._remove(watcher, room)
        watcher.rooms = ()

    def _remove(self, watcher: Watcher, room: str) -> None:
        members = self._rooms[room]
        if isinstance(members, dict):
            del members[watcher]
        if not isinstance(members, dict) or not members:
            del self._rooms[room]
        self.memberships[_membership(watcher, room)] -= 1

    def _members(self, room: str) -> Collection[Watcher]:
        members = self._rooms.get(room)
        if members is None:
            return ()
        return members if isinstance(members, dict) else (members,)

    # --- subscribing --------------------------------------------------------------------------

    def subscribe(self, watcher: Watcher, wanted: Wanted) -> Answers:
        """Put *watcher* into the rooms of the orders *wanted*; where they stand, what it missed.

        The caller must send the answers to the client before it gives up the event loop. An order
        that the watcher may not see has an error for an answer. Whatever `catch_up` raises is
        passed on, and no room was joined.
        """
        begun = [self._begin(order_id, watcher) for order_id in wanted]
        try:
            # Each read keeps to the budget; several together may exceed it.
            answers = fit(self._read_until_current(watcher, wanted, begun), self._budget)
        except BaseException:
            for subscription in begun:
                self._withdraw(subscription)
            raise
        for subscription in begun:
            order_id = subscription.order_id
            answer = answers[order_id]
            if isinstance(answer, CaughtUp):
                self._settle(subscription, answer.version)
                self.join(watcher, order_room(order_id))
                self._count(wanted[order_id], answer)
            else:
                self._withdraw(subscription)
                self.leave(watcher, order_room(order_id))
        return answers

    def unsubscribe(self, watcher: Watcher, order_id: int) -> None:
        self.leave(watcher, order_room(order_id))

    def _begin(self, order_id: int, watcher: Watcher) -> _Subscription:
        of_order = self._subscriptions.setdefault(order_id, {})
        earlier = of_order.get(watcher)
        begun = _Subscription(order_id, watcher, earlier.watermark if earlier else 0)
        of_order[watcher] = begun
        return begun

    def _read_until_current(
        self, watcher: Watcher, wanted: Wanted, begun: Collection[_Subscription]
    ) -> Answers:
        """Read the log until no event that is newer than its answer has been published."""
        answers: Answers = {}
        outdated = list(wanted)
        for _ in range(ATTEMPTS):
            watcher.actor, found = self._catch_up(watcher, {one: wanted[one] for one in outdated})
            answers.update(found)
            outdated = [
                subscription.order_id
                for subscription in begun
                if isinstance(answer := answers[subscription.order_id], CaughtUp)
                and subscription.newest > answer.version
            ]
            if not outdated:
                return answers
        for order_id in outdated:
            answers[order_id] = Unavailable("The order is changing too fast. Subscribe again.")
        return answers

    def _settle(self, subscription: _Subscription, watermark: int) -> None:
        subscription.state = State.SETTLING
        subscription.watermark = watermark
        self._settling_since_read.append(subscription)

    def _withdraw(self, subscription: _Subscription) -> None:
        """There is no answer: go on as before, and deliver what was held (rule 4)."""
        if subscription.watermark:
            self._settle(subscription, subscription.watermark)
        else:
            self._forget(subscription)
        for announcement in subscription.held:
            self._deliver(announcement, [subscription.watcher])

    def _forget(self, subscription: _Subscription) -> None:
        of_order = self._subscriptions.get(subscription.order_id, {})
        if of_order.get(subscription.watcher) is subscription:
            del of_order[subscription.watcher]
            if not of_order:
                del self._subscriptions[subscription.order_id]

    def _count(self, after: int | Start | None, answer: CaughtUp) -> None:
        self.subscribes += 1
        self.resumes += isinstance(after, int)
        self.resets += answer.reset is not None
        self.replayed += len(answer.events)

    # --- called by the relay ------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """Deliver *event* to the watchers of its order. Events must come in log order."""
        announcement = Announcement(event)
        self.published += 1
        recipients = self._recipients(event)
        subscriptions = self._subscriptions.get(event.order_id)
        if subscriptions:
            recipients = self._hold_or_drop(announcement, recipients, subscriptions)
        self._deliver(announcement, recipients)

    def before_read(self) -> None:
        """The relay is about to read the log."""
        self._settling_before_read += self._settling_since_read
        self._settling_since_read = []

    def after_read(self) -> None:
        """The relay has published all that it read: watermarks from before the read can go."""
        for subscription in self._settling_before_read:
            self._forget(subscription)
        self._settling_before_read = []

    def _recipients(self, event: Event) -> list[Watcher]:
        """The watchers in the order's room and in the feeds that show it, each once."""
        of_order = self._members(order_room(event.order_id))
        feeds = [self._members(STAFF_FEED), self._members(_own_feed(event.customer_id))]
        if event.driver_id is not None:
            feeds.append(self._members(_own_feed(event.driver_id)))
        if any(feeds):
            return list(dict.fromkeys(chain(of_order, *feeds)))
        return list(of_order)

    def _hold_or_drop(
        self,
        announcement: Announcement,
        recipients: list[Watcher],
        subscriptions: Mapping[Watcher, _Subscription],
    ) -> list[Watcher]:
        """The recipients that get the event now, by the states above."""
        version = announcement.event.version
        for subscription in subscriptions.values():
            if subscription.state is State.READING:
                subscription.newest = version
        now = []
        for watcher in recipients:
            own = subscriptions.get(watcher)
            if own is None or (own.state is State.SETTLING and version > own.watermark):
                now.append(watcher)
            elif own.state is State.READING and version > own.watermark:
                own.held.append(announcement)
        return now

    def _deliver(self, announcement: Announcement, recipients: list[Watcher]) -> None:
        event = announcement.event
        if event.type == "driver_assigned":
            recipients = self._log_out_former_driver(event, recipients)
        delivered = 0
        for watcher in recipients:
            if watcher.closing is None:
                delivered += 1
                try:
                    watcher.deliver(announcement)
                except Exception:  # this watcher has a gap now, and the others must not get one
                    log.exception("An event could not be delivered")
                    watcher.close(CloseCode.INTERNAL_ERROR, "internal error")
        self.deliveries += delivered

    def _log_out_former_driver(self, event: Event, recipients: list[Watcher]) -> list[Watcher]:
        """Drivers who see only their own orders lose this one when it is given to another."""
        keeping = []
        for watcher in recipients:
            if watcher.actor is None or policy.can_see(watcher.actor, event):
                keeping.append(watcher)
            elif watcher.closing is None:
                watcher.close_with_error(NotFound("The order has been given to another driver."))
        return keeping


def _membership(watcher: Watcher, room: str) -> str:
    return f"{watcher.kind}_{'feed' if room.startswith(STAFF_FEED) else 'order'}"
