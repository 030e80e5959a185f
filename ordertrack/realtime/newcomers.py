"""Sessions that have not asked to be let in yet: they cost a stranger nothing, so they are few."""

from collections import OrderedDict
from collections.abc import Iterator
from typing import Generic, TypeVar

T = TypeVar("T")


class Newcomers(Generic[T]):
    """At most `most` in all and `per_address` from one address, the oldest first."""

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
        self._all[newcomer] = address
        own = self._by_address.setdefault(address, OrderedDict())
        own[newcomer] = None
        if len(own) > self._per_address:
            oldest = next(iter(own))
        elif len(self._all) > self._most:
            oldest = next(iter(self._all))
        else:
            return None
        self.discard(oldest)
        return oldest

    def discard(self, newcomer: T) -> None:
        """Take one out; one that is not here already is."""
        address = self._all.pop(newcomer, None)
        if address is not None:
            own = self._by_address[address]
            del own[newcomer]
            if not own:
                del self._by_address[address]
