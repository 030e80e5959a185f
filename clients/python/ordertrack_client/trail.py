"""What has been seen of one order: the rule that makes every event arrive once and in order.

Pure: no clock, no I/O, no threads. static/js/order-stream.js has the same class.
"""

from collections.abc import Iterable

from ordertrack_client.protocol import Event, Order


class Trail:
    """Hands on only the next version; whatever else arrives is dropped.

    seen    the version up to which events were handed on; None: the order's state is not known yet
    known   the highest version heard of

    A repeat is dropped because it was seen. An event from after a gap is dropped, too, but makes
    the trail `behind`: it comes again, in its place, when the gap is closed from the server's log.
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
        """Take events from wherever, and what is said to be the latest version.

        Answers those to hand on now: their versions go on from `seen`, one by one.
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
        """Take the answer to a subscription.

        Answers the state to start anew from, or None, and the events to hand on after it.
        """
        if self.seen is not None and not reset:
            return None, self.take(events, version)
        self.known = max(self.known, version)
        if self.seen is not None and version <= self.seen:
            return None, []  # an old answer: we are beyond it
        self.seen = version
        return order, []

    def restart(self) -> None:
        """Forget everything: the next answer's state is where to start from."""
        self.seen = None
        self.known = 0
