"""The state machine of an order: statuses, transitions, and the standing that each needs. Pure.

`TRANSITIONS` is the whole table: every status has a row, also the final ones. The rest of this
module and the picture in the documentation are derived from it.
"""

from collections.abc import Iterable
from enum import StrEnum
from typing import Final


class Status(StrEnum):
    PENDING = "Pending"
    PROCESSING = "Processing"
    SHIPPED = "Shipped"
    COMPLETED = "Completed"
    CANCELLED = "Cancelled"


def status_of(stored: str) -> Status:
    """The status of a stored name, also of one that only a newer release knows.

    Such a status is shown, has no transitions, and is not in ``list(Status)``. For names in
    requests, which must be known, use `Status`.
    """
    try:
        return Status(stored)
    except ValueError:
        unknown = str.__new__(Status, stored)
        unknown._name_ = unknown._value_ = stored
        return unknown


class Standing(StrEnum):
    """What a user is to one order, which decides their rights. A user may have several standings:
    an admin may own an order.
    """

    OWNER = "owner"
    DRIVER = "driver"
    ADMIN = "admin"


_STAFF: Final = frozenset({Standing.DRIVER, Standing.ADMIN})
_CUSTOMER_SIDE: Final = frozenset({Standing.OWNER, Standing.ADMIN})
_ADMIN_ONLY: Final = frozenset({Standing.ADMIN})

TRANSITIONS: Final[dict[Status, dict[Status, frozenset[Standing]]]] = {
    Status.PENDING: {Status.PROCESSING: _STAFF, Status.CANCELLED: _CUSTOMER_SIDE},
    Status.PROCESSING: {Status.SHIPPED: _STAFF, Status.CANCELLED: _ADMIN_ONLY},
    Status.SHIPPED: {Status.COMPLETED: _STAFF},
    Status.COMPLETED: {},
    Status.CANCELLED: {},
}

INITIAL: Final = Status.PENDING
MAIN_FLOW: Final = (Status.PENDING, Status.PROCESSING, Status.SHIPPED, Status.COMPLETED)
TERMINAL: Final = frozenset(status for status, steps in TRANSITIONS.items() if not steps)


def predecessors(target: Status, standing: Standing) -> list[Status]:
    """The statuses from which *standing* may move an order to *target*."""
    return [
        status
        for status, steps in TRANSITIONS.items()
        if standing in steps.get(target, frozenset())
    ]


def next_statuses(current: Status, standings: Iterable[Standing]) -> list[Status]:
    """The statuses that any of *standings* may set now, in the order of the table."""
    held = frozenset(standings)
    return [target for target, allowed in TRANSITIONS.get(current, {}).items() if held & allowed]


def may_ever_set(target: Status, standings: Iterable[Standing]) -> bool:
    """Whether any of *standings* may set *target* from some status."""
    return any(predecessors(target, standing) for standing in standings)
