"""Changes several orders, each by itself: one that cannot be changed does not stop the others.

The changes are those of `services.orders`, with the same checks, events and errors.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ordertrack.errors import DomainError
from ordertrack.lifecycle import Status
from ordertrack.policy import Caller
from ordertrack.services import callers, orders
from ordertrack.services.order_query import Page


@dataclass(frozen=True, slots=True)
class Outcome:
    """Whether one order of several was changed; ``refused`` says why not."""

    order_id: int
    refused: DomainError | None


def chosen(caller: Caller, order_ids: Sequence[int]) -> Page:
    """Those of *order_ids* that the caller may see, in that order, to ask before changing them.

    Raises `Forbidden` for customers, `InvalidToken`.
    """
    actor, found = orders.catch_up(caller, dict.fromkeys(order_ids))
    callers.require_staff(actor)
    answers = (found[order_id] for order_id in dict.fromkeys(order_ids))
    return Page(actor, [one.order for one in answers if isinstance(one, orders.CaughtUp)])


def move(caller: Caller, order_ids: Iterable[int], target: Status) -> list[Outcome]:
    """Move each order to *target*. Raises `Forbidden` for customers, `InvalidToken`."""
    callers.require_staff(callers.identify(caller))
    return [
        _outcome(order_id, lambda number: orders.change_status(caller, number, target))
        for order_id in order_ids
    ]


def assign(caller: Caller, order_ids: Iterable[int], driver_id: int | None) -> list[Outcome]:
    """Give each order to the driver, or to none.

    Raises `Forbidden` unless the caller is an admin, `InvalidToken`.
    """
    callers.require_admin(callers.identify(caller))
    return [
        _outcome(order_id, lambda number: orders.assign_driver(caller, number, driver_id))
        for order_id in order_ids
    ]


def _outcome(order_id: int, change: Callable[[int], object]) -> Outcome:
    try:
        change(order_id)
    except DomainError as error:
        return Outcome(order_id, error)
    return Outcome(order_id, None)
