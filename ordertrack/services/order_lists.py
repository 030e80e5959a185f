"""The lists of orders: a customer's own, those of staff, and a driver's deliveries.

Each statement is bounded however many orders there are: lists are read in pages, newest first, by
`order_walk`, and by `order_search` when a text is rare.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

from ordertrack import db
from ordertrack.lifecycle import Status
from ordertrack.policy import Caller
from ordertrack.services import accounts, callers, order_search, order_walk
from ordertrack.services.accounts import Driver
from ordertrack.services.order_query import IS_OPEN, OPEN, Filters, Page, Query, fetch
from ordertrack.services.order_rows import COLUMNS, OrderView, split, view_of
from ordertrack.services.order_walk import Branch

# Where the count of a status ends: "10,000+".
COUNTED: Final = 10_000

# With this many found among the newest orders, a text is in too many orders to collect them all.
_COMMON: Final = 10

# Orders of one status among a driver's deliveries, the longest-waiting first.
WAITING: Final = 50

# Rows that an export reads at a time: it holds no transaction open while a slow client reads.
EXPORT_BATCH: Final = 1000


def own_page(caller: Caller, filters: Filters, *, before: int | None, limit: int) -> Page:
    """The caller's own orders: at most *limit* with id < *before*. Raises `InvalidToken`."""
    query = Query(caller, replace(filters, customer_id=caller.user_id), before, limit)
    return order_walk.page(query, order_walk.own(query))


def staff_page(caller: Caller, filters: Filters, *, before: int | None, limit: int) -> Page:
    """The orders that a member of staff may see: at most *limit* with id < *before*.

    Raises `Forbidden` for customers, and for drivers when *filters* say deleted orders; no order is
    read for them. Raises `InvalidToken`.
    """
    return _staff_page(Query(caller, filters, before, limit))[0]


def _staff_page(query: Query) -> tuple[Page, list[int] | None]:
    """The page, and the ids that a search by index found if there was one."""
    branches = order_walk.staff(query)
    page = order_walk.page(query, branches, by_number=query.visible)
    callers.require_staff(page.actor)
    if query.filters.deleted:
        callers.require_admin(page.actor)
    if query.number_first and page.orders and page.orders[0].id == query.values["number"]:
        return page, None  # the order with this number is what was looked for
    if page.cut_short and len(page.orders) < _COMMON:
        ids = order_search.candidates(query)
        if ids is not None:
            return order_search.page(query, branches, ids), ids
    return page, None


def export(caller: Caller, filters: Filters) -> Iterator[OrderView]:
    """All orders of `staff_page`, newest first, read in batches as they are consumed.

    Raises what `staff_page` raises, at the first step; ends early when the session is revoked.
    """
    before = None
    while True:
        page = staff_page(caller, filters, before=before, limit=EXPORT_BATCH)
        yield from page.orders
        before = page.older
        if before is None:
            return


# --- the board -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Count:
    """A number of orders; with ``more`` a lower bound of it."""

    number: int
    more: bool = False

    def __add__(self, other: "Count") -> "Count":
        return Count(self.number + other.number, self.more or other.more)

    def __str__(self) -> str:
        return f"{self.number:,}+" if self.more else f"{self.number:,}"


@dataclass(frozen=True, slots=True)
class Board:
    """A page for dispatchers. ``counts`` applies every filter except the status."""

    page: Page
    counts: dict[Status, Count]
    drivers: list[Driver]


def board(caller: Caller, filters: Filters, *, before: int | None, limit: int) -> Board:
    """As `staff_page`, with how many orders of each status the whole list has, and all drivers.

    Raises what `staff_page` raises.
    """
    page, ids = _staff_page(Query(caller, filters, before, limit))
    unnarrowed = Query(caller, replace(filters, status=None), None, 0)
    return Board(page, _counts(unnarrowed, ids), accounts.drivers())


def _counts(query: Query, ids: list[int] | None) -> dict[Status, Count]:
    """The number of orders of each status; a lower bound where a statement reached its limit."""
    parameters = query.parameters | {"ids": ids, "counted": COUNTED + 1}
    counts = {status: Count(0) for status in Status}
    if ids is not None:
        statement = f"""WITH {callers.ACTOR_CTE}
            SELECT o.status, count(*) AS number FROM actor a CROSS JOIN orders o
             WHERE o.id = ANY (:ids) AND {query.visible}
             GROUP BY o.status"""
        for row in fetch(statement, parameters):
            counts[Status(row.status)] += Count(row.number)
        return counts
    for branch in order_walk.staff(query):
        if branch.path == "all" and not branch.conditions:
            statement, at_most = _count_each(branch), COUNTED
        else:
            statement, at_most = _count_along(branch, query.values), branch.reach
        rows = fetch(f"WITH {callers.ACTOR_CTE} {statement}", parameters)
        for row in rows:
            counts[Status(row.status)] += Count(min(row.number, at_most), row.number > at_most)
        if sum(row.looked_at for row in rows) >= branch.reach:
            counts = {status: count + Count(0, more=True) for status, count in counts.items()}
    return counts


def _count_each(branch: Branch) -> str:
    """Count along the index of the statuses, each up to `COUNTED`."""
    each = []
    for status in Status:
        rows, order = order_walk.steps("status", {}, None)
        rows, order = (part.replace(":status", f"'{status}'") for part in (rows, order))
        each.append(
            f"""SELECT '{status}' AS status, count(*) AS number, 0 AS looked_at
                  FROM actor a CROSS JOIN LATERAL (
                       SELECT o.id FROM orders o WHERE {rows}
                        ORDER BY {order} LIMIT :counted) AS o
                 WHERE {branch.caller}"""
        )
    return " UNION ALL ".join(each)


def _count_along(branch: Branch, values: dict[str, Any]) -> str:
    """Count what matches among the rows that the branch looks at, the newest of its path."""
    rows, order = order_walk.steps(branch.path, values, None)
    judged = " AND ".join(branch.judged) or "true"
    return f"""SELECT o.status, count(*) FILTER (WHERE {judged}) AS number, count(*) AS looked_at
                 FROM actor a CROSS JOIN LATERAL (
                      SELECT * FROM orders o WHERE {rows}
                       ORDER BY {order} LIMIT {branch.reach}) AS o
                WHERE {branch.caller}
                GROUP BY o.status"""


# --- deliveries ----------------------------------------------------------------------------------

# The open orders by status and age: along the index of each status, or of a driver's open orders.
_WAITING = db.Statement(
    f"""
    WITH {callers.ACTOR_CTE}
    SELECT {COLUMNS}
      FROM actor a
      LEFT JOIN (unnest(CAST(:statuses AS text[])) WITH ORDINALITY AS stage (status, place)
           CROSS JOIN LATERAL (
               (SELECT * FROM orders o
                 WHERE a.sees_all AND NOT :mine
                   AND o.deleted_at IS NULL
                   AND o.status >= stage.status AND o.status <= stage.status
                 ORDER BY o.status, o.id LIMIT :limit)
               UNION ALL
               (SELECT * FROM orders o
                 WHERE a.role <> 'user' AND (:mine OR NOT a.sees_all)
                   AND o.deleted_at IS NULL AND {IS_OPEN}
                   AND o.driver_id = a.id AND o.status = stage.status
                 ORDER BY o.id LIMIT :limit)) o) ON true
     ORDER BY stage.place, o.id
    """,
    **callers.CALLER,
    statuses="text[]",
    mine="boolean",
    limit="integer",
)


def waiting(caller: Caller, *, mine: bool) -> Page:
    """The orders that a driver can move, by status and age; *mine*: those assigned to the caller.

    At most `WAITING` of each status. Raises `Forbidden` for customers.
    """
    rows = _WAITING.all(**callers.parameters(caller), statuses=list(OPEN), mine=mine, limit=WAITING)
    actor, found = split(caller, rows)
    callers.require_staff(actor)
    return Page(actor, [view_of(actor, row) for row in found])
