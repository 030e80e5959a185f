"""A request for a page of a list of orders, its conditions in SQL, and the page.

Both ways to read a list use it: `order_walk` reads along an index, `order_search` looks a text up.
"""

from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any, Final

from sqlalchemy import Row, text

from ordertrack import db
from ordertrack.errors import TookTooLong, Unavailable
from ordertrack.lifecycle import TERMINAL, Status
from ordertrack.policy import Actor, Caller
from ordertrack.services import callers
from ordertrack.services.order_rows import OrderView, split, view_of

# An id above all others (PostgreSQL's largest bigint).
MAX_ID: Final = 2**63 - 1

# Lists read little: neither compiling the statement nor parallel workers are worth their start.
SMALL: Final = "SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0"
# Leaves only the index whose order the statement asks for; see `order_walk`.
PINNED: Final = f"{SMALL}; SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off"

STAFF: Final = "a.role <> 'user'"

OPEN: Final = tuple(status.value for status in Status if status not in TERMINAL)
# Written as in the index of the open orders, so that PostgreSQL knows that it may use it.
IS_OPEN: Final = "o.status IN (" + ", ".join(f"'{status}'" for status in OPEN) + ")"


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions on the orders of a list; None and False are none. Times are aware, in UTC.

    ``text`` is part of the description; ``words`` is part of it or of the customer's name, or the
    order's number. ``customer`` is part of the customer's name or address.
    """

    status: Status | None = None
    text: str | None = None
    words: str | None = None
    driver_id: int | None = None
    unassigned: bool = False
    customer: str | None = None
    customer_id: int | None = None
    created_from: datetime | None = None
    created_before: datetime | None = None
    deleted: bool = False


@dataclass(frozen=True, slots=True)
class Page:
    """Orders, newest first, and the caller that they are for.

    ``older`` is the ``before`` of the next page, None on the last one. ``cut_short``: the page ends
    because the limit of rows to look at was reached, not because it is full.
    """

    actor: Actor
    orders: list[OrderView]
    older: int | None = None
    cut_short: bool = False


# By filter, a condition on an order `o`. Names come from a subquery that PostgreSQL cannot turn
# into a search through all users.
CONDITIONS: Final = {
    "status": "o.status = :status",
    "text": "o.description ILIKE :text",
    "words": """(o.description ILIKE :words OR o.id = :number
                 OR (SELECT c.name ILIKE :words FROM users c WHERE c.id = o.customer_id))""",
    "driver_id": "o.driver_id = :driver_id",
    "unassigned": "o.driver_id IS NULL",
    "customer": """(SELECT c.name ILIKE :customer OR c.email ILIKE :customer
                      FROM users c WHERE c.id = o.customer_id)""",
    "customer_id": "o.customer_id = :customer_id",
    "created_from": "o.created_at >= :created_from",
    "created_before": "o.created_at < :created_before",
}


@dataclass(frozen=True)
class Query:
    """One request for a part of a list: at most *limit* orders with id < *before*."""

    caller: Caller
    filters: Filters
    before: int | None
    limit: int

    @cached_property
    def values(self) -> dict[str, Any]:
        """The filters that narrow, as values of parameters, and the number in ``words``."""
        given = self.filters
        values = {
            "status": given.status.value if given.status else None,
            "text": containing(given.text) if given.text else None,
            "words": containing(given.words) if given.words else None,
            "driver_id": given.driver_id,
            "unassigned": given.unassigned or None,
            "customer": containing(given.customer) if given.customer else None,
            "customer_id": given.customer_id,
            "created_from": given.created_from,
            "created_before": given.created_before,
        }
        narrowing: dict[str, Any] = {name: one for name, one in values.items() if one is not None}
        if given.words:
            narrowing["number"] = _number(given.words)
        return narrowing

    @property
    def conditions(self) -> dict[str, str]:
        return {name: CONDITIONS[name] for name in self.values if name in CONDITIONS}

    @property
    def visible(self) -> str:
        """Conditions on an order `o` that is in the list and that staff `a` may see in it."""
        if self.filters.deleted:
            visible = ["a.role = 'admin'", "o.deleted_at IS NOT NULL"]
        else:
            sees = f"({callers.STAFF_SEES} OR o.customer_id = a.id)"
            visible = [STAFF, "o.deleted_at IS NULL", sees]
        return " AND ".join([*visible, *self.conditions.values()])

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            **self.values,
            **callers.parameters(self.caller),
            "before": self.before or MAX_ID,
            # One more than is shown tells whether there is a next page.
            "wanted": self.limit + 1,
        }

    # An order that is found by its number comes first, however old it is, and is not among those
    # that follow by age.

    @property
    def has_number(self) -> bool:
        return self.values.get("number") is not None

    @property
    def number_first(self) -> str:
        """The beginning of the first page's ORDER BY."""
        return "(o.id = :number) DESC, " if self.has_number and self.before is None else ""

    @property
    def but_the_number(self) -> list[str]:
        return ["o.id <> :number"] if self.has_number else []

    def page(self, rows: list[Row[Any]]) -> Page:
        """The page in *rows*, whose ``floor`` is the id where a walk stopped, or NULL.

        Raises `InvalidToken` when there are none: the caller's session was revoked.
        """
        actor, found = split(self.caller, rows)
        floor = rows[0].floor
        shown = [view_of(actor, row) for row in found[: self.limit]]
        if len(found) > self.limit:
            older = shown[-1].id
            if self.number_first and older == self.values["number"]:
                # A page with that order alone: the next one begins with the newest.
                older = found[self.limit].id + 1
            return Page(actor, shown, older)
        return Page(actor, shown, floor, cut_short=floor is not None)


def _number(words: str) -> int | None:
    """The order's number that *words* may be. The board writes it as #12."""
    digits = words.removeprefix("#")
    is_number = digits.isascii() and digits.isdecimal() and int(digits) <= MAX_ID
    return int(digits) if is_number else None


def containing(words: str) -> str:
    """An ILIKE pattern in which the user's % and _ mean themselves."""
    escaped = words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


def fetch(statement: str, parameters: dict[str, Any], settings: str = PINNED) -> list[Row[Any]]:
    """The rows of a list's statement. Raises `Unavailable`, with advice when it took too long."""
    try:
        return list(db.fetch_all(text(statement), parameters, settings=settings))
    except TookTooLong as error:
        raise Unavailable(
            "This list takes too long to put together. Narrow it down, for example by customer,"
            " driver, status or dates, or try again later."
        ) from error
