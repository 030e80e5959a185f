"""Registry of HTTP connections that wait for their client: evicts the oldest at a limit.

A connection waits for a next request, for the rest of one, or for the client to read a response. It
then holds a greenlet and a descriptor and does no work, so clients that only wait could hold all
that there is.
"""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

# In all: each costs some 10 KiB, most of it its greenlet.
MAX_WAITING: Final = 4_096

# From one address: enough for a company behind it whose clients all reconnect at once. The
# connection that has waited longest is the least likely to be used again.
MAX_PER_ADDRESS: Final = 1_024


class Evictable(Protocol):
    @property
    def network(self) -> str: ...
    def hang_up(self) -> None: ...


C = TypeVar("C", bound=Evictable)


class WaitingConnections(Generic[C]):
    """Waiting connections, the one that has waited longest first.

    When there are more than *most*, or more than *per_address* from one address (None: no bound, as
    behind a proxy all have the proxy's), the oldest is hung up on.
    """

    def __init__(
        self, *, most: int = MAX_WAITING, per_address: int | None = MAX_PER_ADDRESS
    ) -> None:
        self.evicted = 0
        self._most = most
        self._per_address = per_address
        # Not plain dictionaries: after many deletions, finding their first key takes long.
        self._all: OrderedDict[C, None] = OrderedDict()
        self._by_address: dict[str, OrderedDict[C, None]] = {}

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._all))

    def add(self, connection: C) -> None:
        self._all[connection] = None
        if self._per_address is not None:
            own = self._by_address.get(connection.network)
            if own is None:
                own = self._by_address[connection.network] = OrderedDict()
            own[connection] = None
            if len(own) > self._per_address:
                self._evict(next(iter(own)))
        if len(self._all) > self._most:
            self.evict_oldest()

    def discard(self, connection: C) -> None:
        if connection not in self._all:
            return
        del self._all[connection]
        if self._per_address is None:
            return
        own = self._by_address[connection.network]
        del own[connection]
        if not own:
            del self._by_address[connection.network]

    def evict_oldest(self) -> C | None:
        """Hang up on the connection that has waited longest, and return it; None if none waits."""
        oldest = next(iter(self._all), None)
        if oldest is not None:
            self._evict(oldest)
        return oldest

    def _evict(self, connection: C) -> None:
        self.discard(connection)
        self.evicted += 1
        connection.hang_up()
