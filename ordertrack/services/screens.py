"""What a screen shows, in one statement each: the caller, the orders, and what stands around them.

The same rights as in `services.orders`, judged by the same policy. What is changed here, several at
once, is changed by the functions there.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from ordertrack import db, policy
from ordertrack.errors import DomainError
from ordertrack.eventlog import Event
from ordertrack.lifecycle import TERMINAL, Standing, Status
from ordertrack.policy import Actor, Caller
from ordertrack.services import callers, order_lists, orders
from ordertrack.services.order_lists import Count, Filters, Page
from ordertrack.services.orders import OrderView

# Events that an order's page shows besides the steps themselves; the whole trail has its own page.
RECENT: Final = 50

TRAIL_PAGE: Final = 200

# Orders of one status on a driver's screen, the longest-waiting first.
WAITING: Final = 50

# Rows that an export reads at a time: it holds no transaction open while a slow client reads.
EXPORT_BATCH: Final = 1000


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver that orders can be given to."""

    id: int
    name: str


@dataclass(frozen=True, slots=True)
class OrderScreen:
    """One order with its trail: the steps, and the latest of the other events, ascending.

    ``held`` is what the caller is to the order; ``drivers`` is empty for those who cannot assign.
    ``deleted_at`` is set only for those who may still read the trail.
    """

    actor: Actor
    order: OrderView
    held: frozenset[Standing]
    events: list[Event]
    drivers: list[Driver]
    deleted_at: datetime | None


@dataclass(frozen=True, slots=True)
class Listing:
    """Orders, and who looks at them."""

    actor: Actor
    orders: list[OrderView]


@dataclass(frozen=True, slots=True)
class Board:
    """A dispatcher's overview. ``counts`` obeys every filter but the status itself."""

    page: Page
    counts: dict[Status, Count]
    drivers: list[Driver]


_DRIVERS = """
    (SELECT coalesce(json_agg(json_build_array(d.id, d.name) ORDER BY lower(d.name), d.id), '[]')
       FROM users d WHERE d.role = 'driver' AND d.active)
"""

# --- one order ---------------------------------------------------------------------------------

_ORDER = db.Statement(
    f"""
    WITH {callers.ACTOR_CTE}
    SELECT a.id AS actor_id, a.name AS actor_name, a.role AS actor_role, {orders.ORDER_COLUMNS},
           (SELECT json_agg(json_build_array(
                       e.id, e.order_id, e.version, e.type, e.status, e.previous_status, e.actor_id,
                       e.actor_name, e.actor_role, e.note, e.changes, e.customer_id, e.driver_id,
                       e.created_at) ORDER BY e.version)
              FROM order_events e
             WHERE e.order_id = o.id AND (e.version > o.version - :recent
                                          OR e.type IN ('created', 'status_changed'))) AS events,
           CASE WHEN a.role = 'admin' THEN {_DRIVERS} END AS drivers
      FROM actor a
      LEFT JOIN (orders o {orders.NAMES}) ON o.id = :id
    """,
    **callers.CALLER,
    id="bigint",
    recent="integer",
)


def order(caller: Caller, order_id: int) -> OrderScreen:
    """One order's page. Raises `NotFound` when it does not exist for this caller."""
    screen = _order_screen(caller, order_id, RECENT)
    if screen.deleted_at is not None:
        raise orders.no_such_order()
    return screen


def trail(caller: Caller, order_id: int, *, after: int = 0) -> OrderScreen:
    """An order with a page of its trail from a version on; for admins also of a deleted one.

    There is more when the last event's version is not the order's. Raises `NotFound` when the
    caller may not read it.
    """
    screen = _order_screen(caller, order_id, 0)
    page = orders.history(caller, order_id, after=after, limit=TRAIL_PAGE)
    return replace(screen, events=page.events)


def _order_screen(caller: Caller, order_id: int, recent: int) -> OrderScreen:
    row = _ORDER.one(**callers.parameters(caller), id=order_id, recent=recent)
    if row is None:
        raise callers.session_revoked()
    actor = orders.actor_of(caller, row)
    if row.id is None:
        raise orders.no_such_order()
    facts = orders.facts_of(row)
    if not policy.can_read_history(actor, facts):
        raise orders.no_such_order()
    return OrderScreen(
        actor,
        orders.view_of(actor, facts),
        policy.standings(actor, facts),
        [_event(values) for values in row.events],
        [Driver(*values) for values in row.drivers or ()],
        row.deleted_at,
    )


def _event(values: list[Any]) -> Event:
    *head, moment = values
    return Event(*tuple[Any, ...]([*head, datetime.fromisoformat(moment)]))


# --- lists -------------------------------------------------------------------------------------


# Along the indexes of what is open: of each status as for `services.lists`, or of one driver. Names
# are looked up one by one: PostgreSQL does not know how few orders these are, and would read all
# people to join them.
_LOOKED_UP = """o.id, o.description, o.status, o.version, o.customer_id,
    (SELECT c.name FROM users c WHERE c.id = o.customer_id) AS customer_name, o.driver_id,
    (SELECT d.name FROM users d WHERE d.id = o.driver_id) AS driver_name,
    o.created_at, o.updated_at, o.deleted_at"""
_WAITING = db.Statement(
    f"""
    WITH {callers.ACTOR_CTE}
    SELECT a.id AS actor_id, a.name AS actor_name, a.role AS actor_role, {_LOOKED_UP}
      FROM actor a
      LEFT JOIN (unnest(CAST(:statuses AS text[])) WITH ORDINALITY AS stage (status, place)
           CROSS JOIN LATERAL (
               (SELECT * FROM orders o
                 WHERE a.role <> 'user' AND a.sees_all AND NOT :mine
                   AND o.deleted_at IS NULL
                   AND o.status >= stage.status AND o.status <= stage.status
                 ORDER BY o.status, o.id LIMIT :limit)
               UNION ALL
               (SELECT * FROM orders o
                 WHERE a.role <> 'user' AND (:mine OR NOT a.sees_all)
                   AND o.deleted_at IS NULL AND {order_lists.IS_OPEN}
                   AND o.driver_id = a.id AND o.status = stage.status
                 ORDER BY o.id LIMIT :limit)) o) ON true
     ORDER BY stage.place, o.id
    """,
    **callers.CALLER,
    statuses="text[]",
    mine="boolean",
    limit="integer",
)


def waiting(caller: Caller, *, mine: bool) -> Listing:
    """The orders that a driver can move, by status and age; *mine*: those assigned to the caller.

    At most `WAITING` of each status. Raises `Forbidden` for customers.
    """
    rows = _WAITING.all(
        **callers.parameters(caller),
        statuses=[status.value for status in Status if status not in TERMINAL],
        mine=mine,
        limit=WAITING,
    )
    if not rows:
        raise callers.session_revoked()
    actor = orders.actor_of(caller, rows[0])
    callers.require_staff(actor)
    found = [orders.facts_of(row) for row in rows if row.id is not None]
    return Listing(actor, [orders.view_of(actor, one) for one in found])


# --- the board ---------------------------------------------------------------------------------

_LIST_DRIVERS = db.Statement(f"SELECT {_DRIVERS} AS drivers")


def board(caller: Caller, filters: Filters, *, before: int | None, limit: int) -> Board:
    """The orders that staff may see, newest first: at most *limit* with id < *before*.

    Raises `Forbidden` for customers, and for drivers who ask for deleted orders.
    """
    page, counts = order_lists.overview(caller, filters, before=before, limit=limit)
    return Board(page, counts, [Driver(*one) for one in _LIST_DRIVERS.one().drivers])


def export(caller: Caller, filters: Filters) -> Iterator[OrderView]:
    """All orders that `board` would show, newest first, read in batches as they are consumed.

    Raises what `board` raises, at the first step; ends early when the caller's session does.
    """
    before = None
    while True:
        page = order_lists.staff_page(caller, filters, before=before, limit=EXPORT_BATCH)
        yield from page.orders
        before = page.older
        if before is None:
            return


# --- several at once ---------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one order of several: it was changed, or ``refused`` says why not."""

    order_id: int
    refused: DomainError | None


def chosen(caller: Caller, order_ids: Sequence[int]) -> Listing:
    """Those of *order_ids* that the caller may see, in that order, to ask before changing them.

    Raises `Forbidden` for customers, `InvalidToken`.
    """
    actor, found = orders.catch_up(caller, dict.fromkeys(order_ids))
    callers.require_staff(actor)
    answers = (found[order_id] for order_id in dict.fromkeys(order_ids))
    return Listing(actor, [one.order for one in answers if isinstance(one, orders.CaughtUp)])


_ALL_DRIVERS = db.Statement(
    f"WITH {callers.ACTOR_CTE} SELECT a.id, a.name, a.role, {_DRIVERS} AS drivers FROM actor a",
    **callers.CALLER,
)


def drivers(caller: Caller) -> list[Driver]:
    """The drivers that orders can be given to. Raises `Forbidden` unless an admin asks."""
    row = _ALL_DRIVERS.one(**callers.parameters(caller))
    if row is None:
        raise callers.session_revoked()
    callers.require_admin(Actor(row.id, row.name, policy.Role(row.role), caller.scope))
    return [Driver(*values) for values in row.drivers]


def move_many(caller: Caller, order_ids: Sequence[int], target: Status) -> list[Outcome]:
    """Move each order to *target* by itself: one that cannot does not hold up the others.

    Raises `Forbidden` for customers, `InvalidToken`.
    """
    callers.require_staff(callers.identify(caller))
    return [
        _outcome(order_id, orders.change_status, caller, order_id, target) for order_id in order_ids
    ]


def assign_many(caller: Caller, order_ids: Sequence[int], driver_id: int | None) -> list[Outcome]:
    """Give each order to the driver, or to none, by itself.

    Raises `Forbidden` unless the caller is an admin, `InvalidToken`.
    """
    callers.require_admin(callers.identify(caller))
    return [
        _outcome(order_id, orders.assign_driver, caller, order_id, driver_id)
        for order_id in order_ids
    ]


def _outcome(order_id: int, change: Callable[..., object], *arguments: Any) -> Outcome:
    try:
        change(*arguments)
    except DomainError as error:
        return Outcome(order_id, error)
    return Outcome(order_id, None)
