"""Admission of connections: evicts one that has not authenticated when a limit is reached.

Such a connection needs no token, so without eviction anyone could hold all that there is. Nothing
is admitted once the process drains.
"""

from collections.abc import Callable

from ordertrack.errors import Unavailable


class Admission:
    def __init__(self) -> None:
        self.is_draining = False
        self._evictors: list[Callable[[bool], bool]] = []

    def on_full(self, evict: Callable[[bool], bool]) -> None:
        """At a limit call ``evict(websocket)``, with the meaning of the method `evict`."""
        self._evictors.append(evict)

    def evict(self, *, websocket: bool) -> bool:
        """End a connection that has not authenticated; False if there is none.

        With *websocket* it is a WebSocket and ends at once; else it may be a request that ends
        soon.
        """
        return any(evict(websocket) for evict in self._evictors)


admission = Admission()


def no_capacity() -> Unavailable:
    """The refusal of a connection at a limit, or while the process drains."""
    return Unavailable("No more connections are taken now", retry_after=5)
