"""Connections that wait for their client, and which of them have to go when there are too many."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Final, Generic, Protocol, TypeVar

# In all: each costs some 10 KiB, most of it its greenlet.
MAX_WAITING: Final = 4_096

# From one address: room for a company behind it whose people all come back at once. The connection
# that has waited longest is the one that is missed least.
MAX_PER_ADDRESS: Final = 1_024


class Peer(Protocol):
    @property
    def network(self) -> str: ...
    def hang_up(self) -> None: ...


AnyPeer = TypeVar("AnyPeer", bound=Peer)


class Waiting(Generic[AnyPeer]):
    """Connections that wait for their client, the one that has waited longest first.

    It waits for a next request, for the rest of one, or to be rid of an answer: whatever takes a
    connection and no work. When there are more than *most*, or more than *per_address* from one
    address (None: no bound, as all come from the proxy), the oldest is hung up on.
    """

    def __init__(
        self, *, most: int = MAX_WAITING, per_address: int | None = MAX_PER_ADDRESS
    ) -> None:
        self.given_up = 0
        self._most = most
        self._per_address = per_address
        # Not plain dictionaries: to find the first key behind many deleted ones takes them long.
        self._all: OrderedDict[AnyPeer, None] = OrderedDict()
        self._by_address: dict[str, OrderedDict[AnyPeer, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[AnyPeer]:
        return iter(list(self._all))

    def add(self, connection: AnyPeer) -> None:
        self._all[connection] = None
        if self._per_address is not None:
            own = self._by_address.get(connection.network)
            if own is None:
                own = self._by_address[connection.network] = OrderedDict()
            own[connection] = None
            if len(own) > self._per_address:
                self._give_up(next(iter(own)))
        if len(self._all) > self._most:
            self.give_up_oldest()

    def discard(self, connection: AnyPeer) -> None:
        if connection not in self._all:
            return
        del self._all[connection]
        if self._per_address is None:
            return
        own = self._by_address[connection.network]
        del own[connection]
        if not own:
            del self._by_address[connection.network]

    def give_up_oldest(self) -> AnyPeer | None:
        """Hang up on the connection that has waited longest; answers it, None when none waits."""
        oldest = next(iter(self._all), None)
        if oldest is not None:
            self._give_up(oldest)
        return oldest

    def _give_up(self, connection: AnyPeer) -> None:
        self.discard(connection)
        self.given_up += 1
        connection.hang_up()
