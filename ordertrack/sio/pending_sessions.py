"""Sessions that have not asked to be let in yet: they cost a stranger nothing, so they are few."""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from ordertrack.networks import network_of

T = TypeVar("T")


class PendingSessions(Generic[T]):
    """At most `most` in all and `per_address` from one address, the oldest first.

    When there are too many in all, an address that has more than its share of them gives up one of
    its own: else it would push out whoever takes longer for a round trip than it does to fill up.
    """

    def __init__(self, most: int, per_address: int) -> None:
        self._most = most
        self._per_address = per_address
        self._all: OrderedDict[T, str] = OrderedDict()
        self._by_address: dict[str, OrderedDict[T, None]] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __contains__(self, newcomer: T) -> bool:
        return newcomer in self._all

    def __iter__(self) -> Iterator[T]:
        return iter(list(self._all))

    def add(self, newcomer: T, address: str) -> T | None:
        """Take one in; answers the one that has to go for it, which is taken out already."""
        address = network_of(address)
        self._all[newcomer] = address
        own = self._by_address.setdefault(address, OrderedDict())
        own[newcomer] = None
        full = len(self._all) > self._most
        if len(own) > self._per_address or (full and len(own) > self._share()):
            oldest = next(iter(own))
        elif full:
            oldest = next(iter(self._all))
        else:
            return None
        self.discard(oldest)
        return oldest

    def _share(self) -> int:
        """What each address could have if all had the same."""
        return max(1, self._most // len(self._by_address))

    def oldest(self, fits: Callable[[T], bool]) -> T | None:
        """The oldest that `fits`, of the address that has most; None when there is none."""
        for own in sorted(self._by_address.values(), key=len, reverse=True):
            for newcomer in own:
                if fits(newcomer):
                    return newcomer
        return None

    def discard(self, newcomer: T) -> None:
        """Take one out; one that is not here already is."""
        address = self._all.pop(newcomer, None)
        if address is not None:
            own = self._by_address[address]
            del own[newcomer]
            if not own:
                del self._by_address[address]
