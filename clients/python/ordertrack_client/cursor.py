"""The cursor of one order: the rule by which every event arrives once and in version order.

Pure: no clock, no I/O, no threads. static/js/order-stream.js has the same class.
"""

from collections.abc import Iterable

from ordertrack_client.protocol import Event, Order


class OrderCursor:
    """The position of a client in one order's log: lets only the next version pass.

    seen    the version up to which events were passed on; None while the order's state is unknown
    known   the highest version that the server has mentioned

    A repeated event is dropped. An event after a gap is dropped, too, and makes the cursor
    `behind`: it comes again, in its place, when the gap is filled from the server's log.
    """

    __slots__ = ("known", "seen")

    def __init__(self, after: int | None = None) -> None:
        self.seen = after
        self.known = after or 0

    @property
    def behind(self) -> bool:
        """Whether events are missing."""
        return self.seen is not None and self.known > self.seen

    def take(self, events: Iterable[Event], version: int = 0) -> list[Event]:
        """Take events, wherever they come from, and the order's latest version, if it is known.

        Returns the events to pass on now: their versions continue from `seen` one by one.
        """
        following: list[Event] = []
        self.known = max(self.known, version)
        for event in events:
            self.known = max(self.known, event["version"])
            if self.seen is not None and event["version"] == self.seen + 1:
                self.seen = event["version"]
                following.append(event)
        return following

    def answer(
        self, order: Order, version: int, events: Iterable[Event], *, reset: bool = False
    ) -> tuple[Order | None, list[Event]]:
        """Take the acknowledgement of a subscription.

        Returns the state that replaces the present one, or None, and the events to pass on.
        """
        if self.seen is not None and not reset:
            return None, self.take(events, version)
        self.known = max(self.known, version)
        if self.seen is not None and version <= self.seen:
            return None, []  # an old answer: the cursor is past it
        self.seen = version
        return order, []

    def restart(self) -> None:
        """Forget the position: the next answer's state becomes the start."""
        self.seen = None
        self.known = 0
