"""Reads a list of orders along one index, looking at a bounded number of rows.

The index is the *path*; its order is the page's. Other filters are checked row by row. A statement
looks at `SCANNED` rows at most. When those do not fill the page, the page ends there, and the next
one continues behind them: a page may be short, or empty, and yet not be the last.

The choice is not left to PostgreSQL's planner. It expects matching rows to be spread evenly among
all orders, and would look for the fifty newest cancelled ones from the newest order backwards, past
millions when none was cancelled lately. So a walk is ordered by the path's own columns, ``ORDER BY
status DESC, id DESC``, and asks for a range of them instead of equality, which PostgreSQL would
simplify to ``ORDER BY id``. With sorting discouraged (`order_query.PINNED`) only that index is
left.
"""

from dataclasses import dataclass, replace
from typing import Any, Final

from ordertrack.policy import DriverScope
from ordertrack.services import callers
from ordertrack.services.order_query import CONDITIONS, IS_OPEN, OPEN, STAFF, Page, Query, fetch
from ordertrack.services.order_rows import COLUMNS

# Rows that one statement looks at for a page, and again for its counts: some 10 ms from memory, in
# the sequence in which orders were placed, where they lie together on disk. Those of one customer,
# driver or status lie apart, and so do customers' names: each of them costs `_APART` rows more.
SCANNED: Final = 5_000
_APART: Final = 2


@dataclass(frozen=True, slots=True)
class Branch:
    """One walk: a condition on the caller `a`, the path, and conditions to check row by row."""

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
        """All conditions that must be checked row by row."""
        return [*self.conditions, *(["o.deleted_at IS NULL"] if self.path == "all" else ())]


def own(query: Query) -> list[Branch]:
    """The walk along one customer's orders, for that customer."""
    rest = tuple(one for name, one in query.conditions.items() if name != "customer_id")
    return [Branch("true", "customer_id", rest)]


def staff(query: Query) -> list[Branch]:
    """The walks that together find what staff may see of a list."""
    every = tuple(query.conditions.values())
    if query.filters.deleted:
        return [Branch("a.role = 'admin'", "deleted", every)]
    path = _path(query)
    covered = _COVERED.get(path, (path,))
    rest = tuple(one for name, one in query.conditions.items() if name not in covered)
    whole = Branch("a.sees_all", path, rest)
    if query.caller.scope is DriverScope.ALL:
        return [whole]
    narrowed = f"{STAFF} AND NOT a.sees_all"
    return [
        whole,
        Branch(narrowed, "assigned", every),
        Branch(narrowed, "own", ("o.driver_id IS DISTINCT FROM a.id", *every)),
    ]


# --- paths ---------------------------------------------------------------------------------------

# The filters that hold for all rows of a path. A path that is not here is named after its only one.
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

# The time of the order that the page before ended with.
TIME_BEFORE: Final = """coalesce((SELECT last.created_at FROM orders last WHERE last.id <= :before
                                 ORDER BY last.id DESC LIMIT 1), '-infinity')"""


def steps(path: str, values: dict[str, Any], before: int | None) -> tuple[str, str]:
    """A path's rows, as a condition on `o`, and their ORDER BY."""
    if path == "all":
        return "o.id < :before", "o.id DESC"
    if path == "deleted":
        return "o.deleted_at IS NOT NULL AND o.id < :before", "o.id DESC"
    if path == "created":
        # A page continues from the time of the order before it: when a clock was set back, ids and
        # times disagree about which order is newer, and times decide.
        bounds = ["o.deleted_at IS NULL"]
        bounds += [CONDITIONS[name] for name in _COVERED[path] if name in values]
        if before is not None:
            time = TIME_BEFORE
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


def _path(query: Query) -> str:
    """The path with the fewest rows among those that the filters offer."""
    values = query.values
    if "customer_id" in values:
        return "customer_id"
    if "driver_id" in values and values.get("status") in OPEN:
        return "open_of_driver"
    offered = []
    if "created_before" in values or "created_from" in values:
        offered.append("created")
    offered += [name for name in ("driver_id", "status") if name in values]
    if len(offered) < 2:
        return offered[0] if offered else "all"
    numbers = _probe(query, offered)
    return min(offered, key=lambda name: numbers[name])


def _probe(query: Query, paths: list[str]) -> dict[str, int]:
    """How many rows each path has, up to `SCANNED`; 0 for customers, for whom nothing is read.

    Counts from the first page for all pages, so that all take the same path. Paths differ in their
    order when times and ids disagree: a list whose path changed between pages would miss orders.
    """
    query = replace(query, before=None)
    counts = []
    for path in paths:
        rows, order = steps(path, query.values, None)
        counts.append(
            f"""(SELECT count(*) FROM (SELECT o.id FROM orders o WHERE {rows}
                  ORDER BY {order} LIMIT {SCANNED}) AS o) AS {path}"""
        )
    found = fetch(
        f"""WITH {callers.ACTOR_CTE}
            SELECT n.* FROM actor a CROSS JOIN LATERAL (SELECT {", ".join(counts)}) AS n
             WHERE {STAFF}""",
        query.parameters,
    )
    return dict(found[0]._mapping) if found else dict.fromkeys(paths, 0)


# --- walking -------------------------------------------------------------------------------------


def page(query: Query, branches: list[Branch], *, by_number: str = "false") -> Page:
    """The page of a list whose orders the *branches* find. Raises `InvalidToken`.

    Does not check the caller's role, but reads no order for callers that no branch is for.
    *by_number* says which orders `o` the caller `a` may find by their number.
    """
    walks, floors = [], []
    for number, branch in enumerate(branches):
        rows, order = steps(branch.path, query.values, query.before)
        conditions = branch.judged + query.but_the_number
        bound = branch.reach if conditions else ":wanted"
        judged = f"WHERE {' AND '.join(conditions)}" if conditions else ""
        name = f"walk_{number}"
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
    found = " UNION ALL ".join(f"SELECT * FROM walk_{number}" for number in range(len(walks)))
    order = f"{query.number_first}{by_time(branches)}o.id DESC"
    floor = f"greatest({', '.join(floors)})" if floors else "CAST(NULL AS bigint)"
    # Of several walks, rows below the highest floor are dropped, because one of the walks has not
    # looked at orders so old. A caller that sees all orders has one walk.
    together = ""
    if len(branches) > 1:
        together = "WHERE s.floor IS NULL OR a.sees_all OR o.id >= s.floor"
    numbered = ""
    if query.number_first:
        numbered = f"UNION ALL SELECT o.* FROM orders o WHERE o.id = :number AND {by_number}"
    return query.page(
        fetch(
            f"""WITH {callers.ACTOR_CTE}, {", ".join(walks)},
                stopped AS MATERIALIZED (SELECT {floor} AS floor)
                SELECT s.floor, {COLUMNS}
                  FROM actor a CROSS JOIN stopped s
                  LEFT JOIN LATERAL (
                       SELECT * FROM (
                           SELECT * FROM ({found}) AS o {together}
                           {numbered}) AS o
                        ORDER BY {order} LIMIT :wanted) AS o ON true
                 ORDER BY {order}""",
            query.parameters,
        )
    )


def by_time(branches: list[Branch]) -> str:
    """The beginning of a page's ORDER BY: for callers with a walk along the time, the time.

    A page must be in the order of its walk, or the next one would miss some orders.
    """
    along = [branch for branch in branches if branch.path == "created"]
    if not along:
        return ""
    if len(along) == len(branches):
        return "o.created_at DESC, "
    of_them = " OR ".join(branch.caller for branch in along)
    return f"CASE WHEN {of_them} THEN o.created_at END DESC, "
