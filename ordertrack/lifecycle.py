"""The life of an order: its states, and who may take which step. Pure.

`STEPS` is the whole rule. Every state has a row, also those without exits; the picture in the
documentation is drawn from it, and everything else in this module is derived from it.
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
    """A stored status. One that a newer release has introduced stays what it is called.

    Such a status is shown, leads nowhere, and is not among ``list(Status)``. Requests do not come
    through here: to them it is unknown.
    """
    try:
        return Status(stored)
    except ValueError:
        unknown = str.__new__(Status, stored)
        unknown._name_ = unknown._value_ = stored
        return unknown


class Standing(StrEnum):
    """What somebody is to one order. One person may have several (an admin's own order)."""

    OWNER = "owner"
    DRIVER = "driver"
    ADMIN = "admin"


_STAFF: Final = frozenset({Standing.DRIVER, Standing.ADMIN})
_CUSTOMER_SIDE: Final = frozenset({Standing.OWNER, Standing.ADMIN})
_ADMIN_ONLY: Final = frozenset({Standing.ADMIN})

STEPS: Final[dict[Status, dict[Status, frozenset[Standing]]]] = {
    Status.PENDING: {Status.PROCESSING: _STAFF, Status.CANCELLED: _CUSTOMER_SIDE},
    Status.PROCESSING: {Status.SHIPPED: _STAFF, Status.CANCELLED: _ADMIN_ONLY},
    Status.SHIPPED: {Status.COMPLETED: _STAFF},
    Status.COMPLETED: {},
    Status.CANCELLED: {},
}

INITIAL: Final = Status.PENDING
MAIN_FLOW: Final = (Status.PENDING, Status.PROCESSING, Status.SHIPPED, Status.COMPLETED)
TERMINAL: Final = frozenset(status for status, steps in STEPS.items() if not steps)


def predecessors(target: Status, standing: Standing) -> list[Status]:
    """The states from which *standing* may move an order to *target*; empty when there are none."""
    return [status for status, steps in STEPS.items() if standing in steps.get(target, frozenset())]


def next_statuses(current: Status, standings: Iterable[Standing]) -> list[Status]:
    """What a caller with any of *standings* may set now, in the order of the table."""
    held = frozenset(standings)
    return [target for target, allowed in STEPS.get(current, {}).items() if held & allowed]


def may_ever_set(target: Status, standings: Iterable[Standing]) -> bool:
    """Whether *target* is a status that any of *standings* may set from some state."""
    return any(predecessors(target, standing) for standing in standings)


def is_edge(previous: Status, status: Status) -> bool:
    """Whether the table has the step at all, whoever takes it (the audit check asks this)."""
    return status in STEPS[previous]
