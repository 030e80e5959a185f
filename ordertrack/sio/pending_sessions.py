"""Sessions that have not authenticated yet. They need no token, so their number is bounded."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ordertrack.networks import network_of

T = TypeVar("T")


class PendingSessions(Generic[T]):
    """At most `most` sessions in all and `per_address` from one address, the oldest first.

    When there are too many in all, an address that has more than its share loses its own oldest:
    else a flood from one address would evict the slow clients of all others.
    """

    def __init__(self, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._all: OrderedDict[T, str] = OrderedDict()  # each with its address
        self._by_address: dict[str, OrderedDict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, session: T) -> bool:
        return session in self._all

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._all))

    def add(self, session: T, address: str) -> T | None:
        """Add a session; the answer is the one that is evicted for it, and already removed."""
        address = network_of(address)
        self._all[session] = address
        own = self._by_address.setdefault(address, OrderedDict())
        own[session] = None
        full = len(self._all) > self._most
        share = max(1, self._most // len(self._by_address))  # if all addresses had the same
        if len(own) > self._per_address or (full and len(own) > share):
            evicted = next(iter(own))
        elif full:
            evicted = next(iter(self._all))
        else:
            return None
        self.discard(evicted)
        return evicted

    def oldest(self, fits: Callable[[T], bool]) -> T | None:
        """The oldest that `fits`, of the address that has most sessions among those with one."""
        found, most = None, 0
        for own in self._by_address.values():
            if len(own) > most and (oldest := next(filter(fits, own), None)) is not None:
                found, most = oldest, len(own)
        return found

    def discard(self, session: T) -> None:
        """Remove a session, if it is here."""
        address = self._all.pop(session, None)
        if address is not None:
            own = self._by_address[address]
            del own[session]
            if not own:
                del self._by_address[address]
