"""From the log to the sockets: who watches what, and the seam between replay and live.

A *watcher* is one connection. It joins the rooms of orders, or a feed; the relay hands every event
of the log to `Hub.publish`, once and in order, and it goes to everybody in the order's room.

The seam. A client that subscribes must get the events that it missed from the log and all later
ones live: none lost between the two, none twice. While `subscribe` reads the log, the watcher is in
*transit* for that order: what is published meanwhile is held back from it. If anything newer than
the answer was published, the log is read again; else the watcher joins without giving up the loop,
and the acknowledgement leaves before anything else can. The relay may still be behind what was
read, so events up to the answer's version stay suppressed for this watcher (its *floor*) until the
relay has caught up with that moment.
"""

import logging
from collections.abc import Callable, Collection, Mapping
from itertools import chain
from typing import Protocol

from ordertrack import policy
from ordertrack.errors import DomainError, NotFound, Unavailable
from ordertrack.eventlog import Event
from ordertrack.policy import Actor, DriverScope
from ordertrack.schemas import present_event, to_json
from ordertrack.server.ws_frames import CloseCode, text_frame
from ordertrack.services import orders
from ordertrack.services.orders import Budget, CaughtUp, Start, fit
from ordertrack.sio.engineio import EncodedMessage, encode_event

log = logging.getLogger(__name__)

# A read of the log takes about a millisecond; an order that changed during each of so many reads
# in a row is changing faster than anybody can watch it.
ATTEMPTS = 20


Wanted = orders.Wanted
Read = Callable[[Wanted], tuple[Actor, dict[int, CaughtUp | DomainError]]]


class Announcement:
    """An event on its way out: encoded once for each protocol, and only if somebody speaks it."""

    __slots__ = ("_frame", "_json", "_outgoing", "event")

    def __init__(self, event: Event) -> None:
        self.event = event
        self._json: str | None = None
        self._frame: bytes | None = None
        self._outgoing: EncodedMessage | None = None

    @property
    def json(self) -> str:
        if self._json is None:
            self._json = to_json(present_event(self.event))
        return self._json

    @property
    def frame(self) -> bytes:
        """For raw WebSockets: a text frame with the event."""
        if self._frame is None:
            self._frame = text_frame(self.json)
        return self._frame

    @property
    def outgoing(self) -> EncodedMessage:
        """For Socket.IO: an ``order_update`` with the event."""
        if self._outgoing is None:
            self._outgoing = encode_event("order_update", self.json)
        return self._outgoing


class Watcher(Protocol):
    """One connection, of either kind."""

    actor: Actor | None

    def deliver(self, announcement: Announcement) -> None:
        """Queue the event behind all that was sent before. Never blocks, never raises."""

    def join(self, room: str) -> None:
        """Be in the room from now on; one that has gone meanwhile is not."""

    def leave(self, room: str) -> None: ...

    def sign_out(self, error: DomainError) -> None:
        """Tell the client why, and close."""

    def hang_up(self, code: int, reason: str) -> None:
        """Close so that the client comes back."""


class _Transit:
    """A watcher on its way into a room: see the module's theory."""

    __slots__ = ("answered", "floor", "held", "newest")

    def __init__(self, earlier: "_Transit | None") -> None:
        # What an earlier answer reached, as long as the relay may be behind that.
        self.answered = earlier.floor or 0 if earlier else 0
        self.newest = 0  # the highest version published while the log was being read
        self.held: list[Announcement] = []  # what the watcher would have been told meanwhile
        self.floor: int | None = None  # None: still reading; else what the answer reached


def order_room(order_id: int) -> str:
    return str(order_id)


STAFF_FEED = "feed"


def feed_room(actor: Actor) -> str:
    """The room in which *actor* hears of every order that it may see."""
    if actor.sees_all:
        return STAFF_FEED
    return f"feed:{actor.id}"


class Hub:
    """The watchers of one process. *members* answers who is in a room now."""

    def __init__(
        self,
        members: Callable[[str], Collection[Watcher]],
        scope: DriverScope,
        budget: Budget = Budget(),  # noqa: B008 (immutable)
    ) -> None:
        self._members = members
        self._scope = scope
        self.budget = budget  # of one answer
        self._transit: dict[int, dict[Watcher, _Transit]] = {}
        # Transits that are over once the relay has caught up: those begun before the read that is
        # under way, and those begun since.
        self._settled: list[tuple[int, Watcher, _Transit]] = []
        self._settling: list[tuple[int, Watcher, _Transit]] = []
        self.subscribes = 0
        self.resumes = 0  # of those, with the version last seen
        self.resets = 0  # of those, too far behind to replay
        self.replayed = 0
        self.published = 0
        self.deliveries = 0

    # --- the way in ---------------------------------------------------------------------------

    def subscribe(
        self, watcher: Watcher, wanted: Wanted, read: Read
    ) -> dict[int, CaughtUp | DomainError]:
        """Put *watcher* into the rooms of the orders *wanted*, and say what it missed.

        *read* is asked where the orders stand (`services.orders.catch_up`). The caller must send
        the answer to the client before it gives up the loop. An order that cannot be watched has
        its error as answer. Whatever *read* raises is passed on, and nothing was joined.
        """
        transits = {}
        for order_id in wanted:
            there = self._transit.setdefault(order_id, {})
            there[watcher] = transits[order_id] = _Transit(there.get(watcher))
        try:
            # Each read keeps to the budget; what several found may be more.
            answers = fit(self._read_until_current(watcher, wanted, transits, read), self.budget)
        except BaseException:
            for order_id, transit in transits.items():
                self._give_up(order_id, watcher, transit)
            raise
        for order_id, transit in transits.items():
            answer = answers[order_id]
            if isinstance(answer, CaughtUp):
                self._settle(order_id, watcher, transit, answer.version)
                watcher.join(order_room(order_id))
                self._count(wanted[order_id], answer)
            else:
                self._give_up(order_id, watcher, transit)
                watcher.leave(order_room(order_id))
        return answers

    def _read_until_current(
        self,
        watcher: Watcher,
        wanted: Wanted,
        transits: Mapping[int, _Transit],
        read: Read,
    ) -> dict[int, CaughtUp | DomainError]:
        answers: dict[int, CaughtUp | DomainError] = {}
        behind = wanted
        for _ in range(ATTEMPTS):
            watcher.actor, found = read(behind)
            answers.update(found)
            behind = {
                order_id: wanted[order_id]
                for order_id, answer in answers.items()
                if isinstance(answer, CaughtUp) and transits[order_id].newest > answer.version
            }
            if not behind:
                return answers
        for order_id in behind:
            answers[order_id] = Unavailable("The order is changing too fast. Subscribe again.")
        return answers

    def _give_up(self, order_id: int, watcher: Watcher, transit: _Transit) -> None:
        """There is no answer to stand for what was held back: it was owed to a feed, or to an
        earlier subscription."""
        if transit.answered:
            self._settle(order_id, watcher, transit, transit.answered)
        else:
            self._drop(order_id, watcher, transit)
        for announcement in transit.held:
            self._deliver(announcement, [watcher])

    def _settle(self, order_id: int, watcher: Watcher, transit: _Transit, floor: int) -> None:
        """From now on only what is newer than *floor*, which the watcher has been answered."""
        transit.floor = floor
        self._settling.append((order_id, watcher, transit))

    def _drop(self, order_id: int, watcher: Watcher, transit: _Transit) -> None:
        there = self._transit.get(order_id)
        if there is not None and there.get(watcher) is transit:
            del there[watcher]
            if not there:
                del self._transit[order_id]

    def _count(self, after: int | Start | None, answer: CaughtUp) -> None:
        self.subscribes += 1
        self.resumes += isinstance(after, int)
        self.resets += answer.reset is not None
        self.replayed += len(answer.events)

    def unsubscribe(self, watcher: Watcher, order_id: int) -> None:
        watcher.leave(order_room(order_id))

    # --- the way out --------------------------------------------------------------------------

    def publish(self, event: Event) -> None:
        """Deliver *event* to all who watch its order. Called by the relay alone, in log order."""
        announcement = Announcement(event)
        self.published += 1
        recipients = self._audience(event)
        transits = self._transit.get(event.order_id)
        if transits:
            recipients = self._without_those_in_transit(announcement, recipients, transits)
        self._deliver(announcement, recipients)

    def _without_those_in_transit(
        self,
        announcement: Announcement,
        recipients: list[Watcher],
        transits: Mapping[Watcher, _Transit],
    ) -> list[Watcher]:
        version = announcement.event.version
        for transit in transits.values():
            if transit.floor is None:
                transit.newest = version
        free = []
        for watcher in recipients:
            passing = transits.get(watcher)
            if passing is None or (passing.floor is not None and version > passing.floor):
                free.append(watcher)
            elif passing.floor is None and version > passing.answered:
                passing.held.append(announcement)
        return free

    def _deliver(self, announcement: Announcement, recipients: list[Watcher]) -> None:
        event = announcement.event
        if event.type == "driver_assigned" and self._scope is DriverScope.ASSIGNED:
            recipients = self._without_those_who_lost_it(event, recipients)
        self.deliveries += len(recipients)
        for watcher in recipients:
            try:
                watcher.deliver(announcement)
            except Exception:  # it has a gap now, and nobody else is to have one
                log.exception("An event could not be delivered")
                watcher.hang_up(CloseCode.INTERNAL_ERROR, "internal error")

    def _audience(self, event: Event) -> list[Watcher]:
        """Everybody in the order's room and in the feeds that show it, each once."""
        room = self._members(order_room(event.order_id))
        feeds = [self._members(STAFF_FEED), self._members(f"feed:{event.customer_id}")]
        if event.driver_id is not None:
            feeds.append(self._members(f"feed:{event.driver_id}"))
        if any(feeds):
            return list(dict.fromkeys(chain(room, *feeds)))
        return list(room)

    def _without_those_who_lost_it(self, event: Event, recipients: list[Watcher]) -> list[Watcher]:
        """Drivers who see only their own orders lose this one when it becomes another's."""
        facts = _EventFacts(event)
        keeping = []
        for watcher in recipients:
            if watcher.actor is None or policy.can_see(watcher.actor, facts):
                keeping.append(watcher)
            else:
                watcher.sign_out(NotFound("The order has been given to another driver."))
        return keeping

    # --- what the relay tells -----------------------------------------------------------------

    def reading(self) -> None:
        """The relay is about to read the log."""
        self._settled += self._settling
        self._settling = []

    def caught_up(self) -> None:
        """All that the read found has been published: older floors have done their work."""
        for order_id, watcher, transit in self._settled:
            self._drop(order_id, watcher, transit)
        self._settled = []


class _EventFacts:
    """An event's order as `policy` wants to know it."""

    is_deleted = False

    def __init__(self, event: Event) -> None:
        self.customer_id = event.customer_id
        self.driver_id = event.driver_id
        self.status: str = event.status
