"""Lists of orders: filtered, newest first, each statement bounded however many orders there are.

A list is read along one index, the *path*, in the order of the page; whatever else is asked for is
judged row by row. A statement looks at `SCANNED` rows at most. When those do not fill the page, the
page ends there, and the next one goes on behind them: a page may be short, or empty, and yet not be
the last.

The planner is not trusted with the choice. It expects what matches to lie evenly among all orders,
and would look for the fifty newest cancelled ones from the newest order backwards, past millions
when none was cancelled lately. So the walk is ordered by the path's own columns, ``ORDER BY status
DESC, id DESC``, and asks for a range of them rather than for equality, which PostgreSQL would
simplify to ``ORDER BY id``; with sorting discouraged only that index remains.
"""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Row, text

from ordertrack import db
from ordertrack.errors import TookTooLong, Unavailable
from ordertrack.lifecycle import TERMINAL, Status
from ordertrack.models import SEARCH_INDEXES
from ordertrack.policy import Actor, Caller, DriverScope
from ordertrack.services import callers, orders
from ordertrack.services.orders import OrderView

# Rows that one statement looks at for a page, and again for its counts: some 10 ms from memory.
# That is for orders as they were placed, which lie together. Those of one customer, driver or
# status lie apart, and so do the names of customers: either costs as much as two rows more.
SCANNED: Final = 5_000
_APART: Final = 2

# Where the count of a status ends: "10,000+".
COUNTED: Final = 10_000

# Orders that a search by index may find. What is found in more of them is soon found by walking.
CANDIDATES: Final = 2_000

# With this many found among the newest orders, a text is in too many to collect them all.
_COMMON: Final = 10

# A search by index whose text is made of common syllables may have much to read; then the page is
# what walking found.
_SEARCH_MS: Final = 500

_BEYOND: Final = 2**63 - 1

# So little is read that neither compiling nor sharing the work is worth its start.
_SMALL: Final = "SET LOCAL jit = off; SET LOCAL max_parallel_workers_per_gather = 0"
_PINNED: Final = f"{_SMALL}; SET LOCAL enable_sort = off; SET LOCAL enable_seqscan = off"
# Collecting by bitmap is the one way in which the search indexes can be read.
_BY_BITMAP: Final = (
    f"{_SMALL}; SET LOCAL statement_timeout = {_SEARCH_MS};"
    " SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off"
)


@dataclass(frozen=True, slots=True)
class Filters:
    """What a list is narrowed to; None and False narrow nothing. Times are aware, in UTC.

    ``text`` is looked for in descriptions; ``words`` there and in customers' names, and is an
    order's number, too. ``customer`` is part of a customer's name or address.
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
    """Orders, newest first, and who looks at them.

    ``older`` is the ``before`` of the next page, None when this is the last. ``cut_short``: the
    page ends because enough orders were looked at, not because it is full.
    """

    actor: Actor
    orders: list[OrderView]
    older: int | None
    cut_short: bool = False


@dataclass(frozen=True, slots=True)
class Count:
    """How many there are, or, with ``more``, how many there are at least."""

    number: int
    more: bool = False

    def __add__(self, other: "Count") -> "Count":
        return Count(self.number + other.number, self.more or other.more)

    def __str__(self) -> str:
        return f"{self.number:,}+" if self.more else f"{self.number:,}"


def own_page(caller: Caller, filters: Filters, *, before: int | None, limit: int) -> Page:
    """The caller's own orders: at most *limit* with id < *before*. Raises `InvalidToken`."""
    values = _values(filters) | {"customer_id": caller.user_id}
    query = _Query(values, caller, before, limit)
    conditions = _conditions(values)
    del conditions["customer_id"]
    return _page(query, [_Branch("true", "customer_id", tuple(conditions.values()))])


def staff_page(caller: Caller, filters: Filters, *, before: int | None, limit: int) -> Page:
    """The orders that a member of staff may see: at most *limit* with id < *before*.

    Raises `Forbidden` for customers, and for drivers who ask for deleted orders; no order is looked
    at for them. Raises `InvalidToken`.
    """
    query = _Query(_values(filters), caller, before, limit)
    return _staff_page(query, filters)[0]


def overview(
    caller: Caller, filters: Filters, *, before: int | None, limit: int
) -> tuple[Page, dict[Status, Count]]:
    """As `staff_page`, and how many orders of each status the whole list has, whichever status it
    is narrowed to. Raises what `staff_page` raises.
    """
    query = _Query(_values(filters), caller, before, limit)
    page, ids = _staff_page(query, filters)
    return page, _counts(query, filters, ids)


def _staff_page(query: "_Query", filters: Filters) -> tuple[Page, list[int] | None]:
    """The page, and the ids that a search by index found if it took one."""
    visible = _in_the_list(query, filters)
    branches = _branches(query, filters)
    page = _page(query, branches, visible=visible)
    _require_right(page.actor, filters)
    if query.number_first and page.orders and page.orders[0].id == query.values["number"]:
        return page, None  # who gives the number of an order looks for that order
    if page.cut_short and len(page.orders) < _COMMON:
        ids = _candidates(query, filters)
        if ids is not None:
            return _page_among(ids, query, branches, visible), ids
    return page, None


def _require_right(actor: Actor, filters: Filters) -> None:
    callers.require_staff(actor)
    if filters.deleted:
        callers.require_admin(actor)


# --- what is asked for ---------------------------------------------------------------------------

# By filter, as conditions on an order `o`. Names come from a subquery that PostgreSQL cannot turn
# into a search through all people.
_CONDITIONS = {
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


@dataclass(frozen=True, slots=True)
class _Query:
    """The filters that narrow, who asks, and for which part of the list."""

    values: dict[str, Any]
    caller: Caller
    before: int | None
    limit: int

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

    @property
    def parameters(self) -> dict[str, Any]:
        return {
            **self.values,
            **callers.parameters(self.caller),
            "before": self.before or _BEYOND,
            # One more than is shown tells whether there is a next page.
            "wanted": self.limit + 1,
        }


@dataclass(frozen=True, slots=True)
class _Branch:
    """One walk: for whom, along which path, and what is judged row by row."""

    caller: str
    path: str
    conditions: tuple[str, ...]

    @property
    def reach(self) -> int:
        """How many rows it looks at."""
        apart = self.path not in ("all", "created")
        asks_for_names = any("users" in condition for condition in self.conditions)
        return SCANNED // (1 + _APART * (apart + asks_for_names))

    @property
    def judged(self) -> list[str]:
        """All conditions that the path itself does not hold."""
        return [*self.conditions, *(["o.deleted_at IS NULL"] if self.path == "all" else ())]


def _values(filters: Filters) -> dict[str, Any]:
    words = filters.words
    values = {
        "status": filters.status.value if filters.status else None,
        "text": containing(filters.text) if filters.text else None,
        "words": containing(words) if words else None,
        "driver_id": filters.driver_id,
        "unassigned": filters.unassigned or None,
        "customer": containing(filters.customer) if filters.customer else None,
        "customer_id": filters.customer_id,
        "created_from": filters.created_from,
        "created_before": filters.created_before,
    }
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    if words:
        # The board writes an order's number as #12.
        digits = words.removeprefix("#")
        is_number = digits.isascii() and digits.isdecimal() and int(digits) <= _BEYOND
        given["number"] = int(digits) if is_number else None
    return given


def _conditions(values: dict[str, Any]) -> dict[str, str]:
    return {name: _CONDITIONS[name] for name in values if name in _CONDITIONS}


def containing(words: str) -> str:
    """An ILIKE pattern in which the user's % and _ mean themselves."""
    escaped = words.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


_OPEN: Final = tuple(status.value for status in Status if status not in TERMINAL)
# Spelt out as the index of the open orders has it: that PostgreSQL then knows to be enough.
IS_OPEN: Final = "o.status IN (" + ", ".join(f"'{status}'" for status in _OPEN) + ")"

_STAFF = "a.role <> 'user'"


def _branches(query: _Query, filters: Filters) -> list[_Branch]:
    """The walks that together see what staff may see of the list."""
    conditions = _conditions(query.values)
    if filters.deleted:
        return [_Branch("a.role = 'admin'", "deleted", tuple(conditions.values()))]
    path = _path(query)
    covered = _COVERED.get(path, (path,))
    rest = tuple(condition for name, condition in conditions.items() if name not in covered)
    whole = _Branch("a.sees_all", path, rest)
    if query.caller.scope is DriverScope.ALL:
        return [whole]
    all_of_them = tuple(conditions.values())
    some = f"{_STAFF} AND NOT a.sees_all"
    return [
        whole,
        _Branch(some, "assigned", all_of_them),
        _Branch(some, "own", ("o.driver_id IS DISTINCT FROM a.id", *all_of_them)),
    ]


# --- paths ---------------------------------------------------------------------------------------

# The filters that a path holds, where it is not simply the one that gave it its name.
_COVERED = {
    "created": ("created_from", "created_before"),
    "open_of_driver": ("driver_id", "status"),
}

# The columns of a path before the id, and their values on it.
_KEYED = {
    "customer_id": {"customer_id": ":customer_id"},
    "driver_id": {"driver_id": ":driver_id"},
    "status": {"status": ":status"},
    "open_of_driver": {"driver_id": ":driver_id", "status": ":status"},
    "assigned": {"driver_id": "a.id"},
    "own": {"customer_id": "a.id"},
}


_TIME_BEFORE = """coalesce((SELECT last.created_at FROM orders last WHERE last.id <= :before
                                 ORDER BY last.id DESC LIMIT 1), '-infinity')"""


def _steps(path: str, values: dict[str, Any], before: int | None) -> tuple[str, str]:
    """Which rows a path leads along, and their order."""
    if path == "all":
        return "o.id < :before", "o.id DESC"
    if path == "deleted":
        return "o.deleted_at IS NOT NULL AND o.id < :before", "o.id DESC"
    if path == "created":
        # A page goes on from the time of the order before it: should a clock have been set back,
        # ids and times disagree about which is newer, and times decide.
        bounds = ["o.deleted_at IS NULL"]
        bounds += [_CONDITIONS[name] for name in _COVERED[path] if name in values]
        if before is not None:
            time = _TIME_BEFORE
            if "created_before" in values:
                # PostgreSQL starts from one of two bounds, and not always from the lower one.
                time = f"least({time}, :created_before)"
            bounds.append(f"(o.created_at, o.id) < ({time}, :before)")
        return " AND ".join(bounds), "o.created_at DESC, o.id DESC"
    keys = _KEYED[path]
    columns = ", ".join(f"o.{column}" for column in keys)
    key = ", ".join(keys.values())
    live = "o.deleted_at IS NULL"
    if path == "open_of_driver":
        live += f" AND {IS_OPEN}"
    rows = f"({columns}) >= ({key}) AND ({columns}, o.id) < ({key}, :before)"
    order = ", ".join(f"o.{column} DESC" for column in (*keys, "id"))
    return f"{live} AND {rows}", order


def _path(query: _Query) -> str:
    """The path with the fewest rows among those that the filters offer."""
    values = query.values
    if "customer_id" in values:
        return "customer_id"
    if "driver_id" in values and values.get("status") in _OPEN:
        return "open_of_driver"
    offered = []
    if "created_before" in values or "created_from" in values:
        offered.append("created")
    offered += [name for name in ("driver_id", "status") if name in values]
    if len(offered) < 2:
        return offered[0] if offered else "all"
    numbers = _probe(query, offered)
    return min(offered, key=lambda name: numbers[name])


def _probe(query: _Query, paths: list[str]) -> dict[str, int]:
    """How many rows each path has, up to `SCANNED`; for those who may not see them, none.

    From the beginning, whatever the page: paths differ in their order, so that a list whose path
    changed on the way would miss some, should times and ids disagree about what is newer.
    """
    query = replace(query, before=None)
    counts = []
    for path in paths:
        rows, order = _steps(path, query.values, None)
        counts.append(
            f"""(SELECT count(*) FROM (SELECT o.id FROM orders o WHERE {rows}
                  ORDER BY {order} LIMIT {SCANNED}) AS o) AS {path}"""
        )
    found = _fetch(
        f"""WITH {callers.ACTOR_CTE}
            SELECT n.* FROM actor a CROSS JOIN LATERAL (SELECT {", ".join(counts)}) AS n
             WHERE {_STAFF}""",
        query.parameters,
    )
    return dict(found[0]._mapping) if found else dict.fromkeys(paths, 0)


# --- walking -------------------------------------------------------------------------------------


def _page(query: _Query, branches: list[_Branch], *, visible: str = "false") -> Page:
    """The statement for a page. Does not check the caller's role, but looks at nothing unless a
    branch is for it. Raises `InvalidToken`.

    *visible* says which orders `o` the caller `a` may find by their number.
    """
    walks, floors, names = [], [], []
    for number, branch in enumerate(branches):
        rows, order = _steps(branch.path, query.values, query.before)
        conditions = branch.judged + query.but_the_number
        bound = branch.reach if conditions else ":wanted"
        judged = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        name = f"walk_{number}"
        names.append(f"SELECT * FROM {name}")
        walks.append(
            f"""{name} AS MATERIALIZED (
                SELECT o.* FROM actor a CROSS JOIN LATERAL (
                    SELECT * FROM (SELECT * FROM orders o WHERE {rows}
                                    ORDER BY {order} LIMIT {bound}) AS o
                    {judged} ORDER BY {order} LIMIT :wanted) AS o
                 WHERE {branch.caller})"""
        )
        if conditions:
            # The last row that was looked at, if that is why the page is short.
            floors.append(
                f"""CASE WHEN (SELECT count(*) FROM {name}) < :wanted THEN (
                    SELECT o.id FROM actor a CROSS JOIN LATERAL (
                        SELECT o.id FROM orders o WHERE {rows}
                         ORDER BY {order} OFFSET {branch.reach - 1} LIMIT 1) AS o
                     WHERE {branch.caller}) END"""
            )
    order = f"{query.number_first}{_by_time(branches)}o.id DESC"
    floor = f"greatest({', '.join(floors)})" if floors else "CAST(NULL AS bigint)"
    # Of several walks none counts beyond the place where the first one stopped. Who sees all has
    # one.
    together = ""
    if len(branches) > 1:
        together = "WHERE s.floor IS NULL OR a.sees_all OR o.id >= s.floor"
    by_number = ""
    if query.number_first:
        by_number = f"UNION ALL SELECT o.* FROM orders o WHERE o.id = :number AND {visible}"
    found = _fetch(
        f"""WITH {callers.ACTOR_CTE}, {", ".join(walks)},
            stopped AS MATERIALIZED (SELECT {floor} AS floor)
            SELECT a.id AS actor_id, a.name AS actor_name, a.role AS actor_role, s.floor,
                   {orders.ORDER_COLUMNS}
              FROM actor a CROSS JOIN stopped s
              LEFT JOIN LATERAL (
                   SELECT * FROM (
                       SELECT * FROM ({" UNION ALL ".join(names)}) AS o {together}
                       {by_number}) AS o
                    ORDER BY {order} LIMIT :wanted) AS o ON true
              LEFT JOIN users c ON c.id = o.customer_id
              LEFT JOIN users d ON d.id = o.driver_id
             ORDER BY {order}""",
        query.parameters,
    )
    return _presented(found, query)


def _by_time(branches: list[_Branch]) -> str:
    """The beginning of the ORDER BY of a page whose walks lead along the time, for those callers
    whose walks do: a page must be in the order of its walk, or the next one would miss some."""
    along = [branch for branch in branches if branch.path == "created"]
    if not along:
        return ""
    if len(along) == len(branches):
        return "o.created_at DESC, "
    callers = " OR ".join(branch.caller for branch in along)
    return f"CASE WHEN {callers} THEN o.created_at END DESC, "


def _presented(found: list[Row[Any]], query: _Query) -> Page:
    if not found:
        raise callers.session_revoked()
    actor, floor = orders.actor_of(query.caller, found[0]), found[0].floor
    rows = [row for row in found if row.id is not None]
    shown = [orders.view_of(actor, orders.facts_of(row)) for row in rows[: query.limit]]
    if len(rows) > query.limit:
        older = shown[-1].id
        if query.number_first and older == query.values["number"]:
            older = rows[query.limit].id + 1  # a page of it alone; those by age are yet to come
        return Page(actor, shown, older)
    return Page(actor, shown, floor, cut_short=floor is not None)


def _fetch(statement: str, parameters: dict[str, Any], settings: str = _PINNED) -> list[Row[Any]]:
    try:
        return list(db.fetch_all(text(statement), parameters, settings=settings))
    except TookTooLong as error:
        raise Unavailable(
            "This list takes too long to put together. Narrow it down, for example by customer,"
            " driver, status or dates, or try again later."
        ) from error


# --- searching by index --------------------------------------------------------------------------

# pg_trgm finds a text by its runs of three letters or digits; without one it would read all of it.
_SEARCHABLE = re.compile(r"[^\W_]{3}")

_HAS_INDEXES = f"""
    SELECT count(*) = {len(SEARCH_INDEXES)} AS found FROM pg_index
     WHERE indisvalid AND indexrelid IN (
           {", ".join(f"to_regclass('{name}')" for name in SEARCH_INDEXES)})
"""
_DESCRIBED = """
    (SELECT e.order_id AS id FROM order_events e
      WHERE e.type IN ('created', 'description_changed')
        AND e.changes ->> 'description' ILIKE {pattern} LIMIT :most)
"""
# The people count as candidates themselves: where there are too many, some were left out.
_PLACED_BY = """
    (WITH people AS MATERIALIZED (SELECT c.id FROM users c WHERE {people} LIMIT :most)
     SELECT CAST(NULL AS bigint) AS id FROM people
      UNION ALL
    (SELECT o.id FROM people
      CROSS JOIN LATERAL (
          SELECT o.id FROM orders o WHERE o.customer_id = people.id AND {live} LIMIT :most) AS o
      LIMIT :most))
"""


def _candidates(query: _Query, filters: Filters) -> list[int] | None:
    """The ids of all orders that a search by index finds: a few too many, none too few.

    None where there is no such index, or it is no help: the text is too short or in too much, or
    written as an order's number.
    """
    live = "o.deleted_at IS NOT NULL" if filters.deleted else "o.deleted_at IS NULL"
    if filters.text or filters.words:
        name = "words" if filters.words else "text"
        sources = [_DESCRIBED.format(pattern=f":{name}")]
        if filters.words:
            sources.append(_PLACED_BY.format(people="c.name ILIKE :words", live=live))
    elif filters.customer:
        name = "customer"
        people = "c.name ILIKE :customer OR c.email ILIKE :customer"
        sources = [_PLACED_BY.format(people=people, live=live)]
    else:
        return None
    is_number = filters.words is not None and filters.words.startswith("#") and query.has_number
    if is_number or not _SEARCHABLE.search(query.values[name]):
        return None
    if not _fetch(_HAS_INDEXES, {})[0].found:
        return None
    parameters = query.parameters | {"most": CANDIDATES + 1}
    try:
        found = db.fetch_all(text(" UNION ALL ".join(sources)), parameters, settings=_BY_BITMAP)
    except TookTooLong:
        return None
    if len(found) > CANDIDATES:
        return None
    number = query.values.get("number")
    return [row.id for row in found if row.id is not None] + ([number] if number else [])


def _page_among(ids: list[int], query: _Query, branches: list[_Branch], visible: str) -> Page:
    """The page of the list among the orders that were found, in the order of the walks."""
    order = f"{query.number_first}{_by_time(branches)}o.id DESC"
    rest = "o.id < :before"
    if query.before is not None and _by_time(branches):
        along = " OR ".join(one.caller for one in branches if one.path == "created")
        time = f"(o.created_at, o.id) < ({_TIME_BEFORE}, :before)"
        rest = f"CASE WHEN {along} THEN {time} ELSE {rest} END"
    conditions = ["o.id = ANY (:ids)", rest, visible]
    if not query.number_first:
        conditions += query.but_the_number
    found = _fetch(
        f"""WITH {callers.ACTOR_CTE}
            SELECT a.id AS actor_id, a.name AS actor_name, a.role AS actor_role,
                   CAST(NULL AS bigint) AS floor, {orders.ORDER_COLUMNS}
              FROM actor a
              LEFT JOIN LATERAL (
                   SELECT * FROM orders o
                    WHERE {" AND ".join(conditions)}
                    ORDER BY {order} LIMIT :wanted) AS o ON true
              LEFT JOIN users c ON c.id = o.customer_id
              LEFT JOIN users d ON d.id = o.driver_id
             ORDER BY {order}""",
        query.parameters | {"ids": ids},
    )
    return _presented(found, query)


def _in_the_list(query: _Query, filters: Filters) -> str:
    """Conditions on an order `o` that is in the list and that the caller `a` may see in it."""
    if filters.deleted:
        visible = ["a.role = 'admin'", "o.deleted_at IS NOT NULL"]
    else:
        sees = f"({callers.STAFF_SEES} OR o.customer_id = a.id)"
        visible = [_STAFF, "o.deleted_at IS NULL", sees]
    return " AND ".join([*visible, *_conditions(query.values).values()])


# --- counting ------------------------------------------------------------------------------------


def _counts(query: _Query, filters: Filters, ids: list[int] | None) -> dict[Status, Count]:
    """How many orders of each status there are: exactly as far as one statement may look, and at
    least so many where it had to stop.
    """
    values = {name: value for name, value in query.values.items() if name != "status"}
    query = _Query(values, query.caller, None, 0)
    parameters = query.parameters | {"ids": ids, "counted": COUNTED + 1}
    counts = {status: Count(0) for status in Status}
    if ids is not None:
        statement = f"""WITH {callers.ACTOR_CTE}
            SELECT o.status, count(*) AS number FROM actor a CROSS JOIN orders o
             WHERE o.id = ANY (:ids) AND {_in_the_list(query, filters)}
             GROUP BY o.status"""
        for row in _fetch(statement, parameters):
            counts[Status(row.status)] += Count(row.number)
        return counts
    for branch in _branches(query, filters):
        if branch.path == "all" and not branch.conditions:
            statement, at_most = _count_each(branch), COUNTED
        else:
            statement, at_most = _count_along(branch, values), None
        rows = _fetch(f"WITH {callers.ACTOR_CTE} {statement}", parameters)
        looked_at = sum(row.looked_at for row in rows)
        for row in rows:
            if at_most is None:
                counts[Status(row.status)] += Count(row.number)
            else:
                counts[Status(row.status)] += Count(min(row.number, at_most), row.number > at_most)
        if at_most is None and looked_at >= branch.reach:
            counts = {status: count + Count(0, more=True) for status, count in counts.items()}
    return counts


def _count_each(branch: _Branch) -> str:
    """Count along the index of the statuses, each up to `COUNTED`."""
    each = []
    for status in Status:
        rows, order = _steps("status", {}, None)
        rows, order = (part.replace(":status", f"'{status}'") for part in (rows, order))
        each.append(
            f"""SELECT '{status}' AS status, count(*) AS number, 0 AS looked_at
                  FROM actor a CROSS JOIN LATERAL (
                       SELECT o.id FROM orders o WHERE {rows}
                        ORDER BY {order} LIMIT :counted) AS o
                 WHERE {branch.caller}"""
        )
    return " UNION ALL ".join(each)


def _count_along(branch: _Branch, values: dict[str, Any]) -> str:
    """Count what matches among the newest rows of the branch's path."""
    rows, order = _steps(branch.path, values, None)
    conditions = (
        [*branch.conditions, "o.deleted_at IS NULL"]
        if branch.path == "all"
        else list(branch.conditions)
    )
    judged = " AND ".join(conditions) or "true"
    return f"""SELECT o.status, count(*) FILTER (WHERE {judged}) AS number, count(*) AS looked_at
                 FROM actor a CROSS JOIN LATERAL (
                      SELECT * FROM orders o WHERE {rows}
                       ORDER BY {order} LIMIT {branch.reach}) AS o
                WHERE {branch.caller}
                GROUP BY o.status"""
