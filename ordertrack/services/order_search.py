"""Searches orders by a text in their descriptions, or in customers' names and addresses.

For rare texts, which a walk (`order_walk`) would have to look for among all orders. The indexes
are pg_trgm's, which the migrations make where that extension can be had.
"""

import re
from typing import Final

from sqlalchemy import text

from ordertrack import db
from ordertrack.errors import TookTooLong
from ordertrack.models import SEARCH_INDEXES
from ordertrack.services import callers
from ordertrack.services.order_query import SMALL, Page, Query, fetch
from ordertrack.services.order_rows import COLUMNS
from ordertrack.services.order_walk import TIME_BEFORE, Branch, by_time

# Orders that a search may find. A text that is in more of them is soon found by walking.
CANDIDATES: Final = 2_000

# A text made of common syllables may have much to read; then the page is what walking found.
_SEARCH_MS: Final = 500

# A bitmap scan is the one way in which these indexes can be read.
_BY_BITMAP: Final = (
    f"{SMALL}; SET LOCAL statement_timeout = {_SEARCH_MS};"
    " SET LOCAL enable_seqscan = off; SET LOCAL enable_indexscan = off"
)

# pg_trgm finds a text by its runs of three letters or digits; without one it would read all of it.
_SEARCHABLE = re.compile(r"[^\W_]{3}")

_HAS_INDEXES = f"""
    SELECT count(*) = {len(SEARCH_INDEXES)} AS found FROM pg_index
     WHERE indisvalid AND indexrelid IN (
           {", ".join(f"to_regclass('{name}')" for name in SEARCH_INDEXES)})
"""

# Orders that have, or once had, a description with the text.
_DESCRIBED = """
    (SELECT e.order_id AS id FROM order_events e
      WHERE e.type IN ('created', 'description_changed')
        AND e.changes ->> 'description' ILIKE {pattern} LIMIT :most)
"""

# Orders of customers with the text. The customers count as candidates themselves: where there are
# too many, some were left out.
_PLACED_BY = """
    (WITH people AS MATERIALIZED (SELECT c.id FROM users c WHERE {people} LIMIT :most)
     SELECT CAST(NULL AS bigint) AS id FROM people
      UNION ALL
    (SELECT o.id FROM people
      CROSS JOIN LATERAL (
          SELECT o.id FROM orders o WHERE o.customer_id = people.id AND {live} LIMIT :most) AS o
      LIMIT :most))
"""


def candidates(query: Query) -> list[int] | None:
    """The ids of all orders that a search by index finds: a few too many, none too few.

    None where there is no such index, or it is no help: the text is too short or in too much, or
    written as an order's number.
    """
    filters = query.filters
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
    if not fetch(_HAS_INDEXES, {})[0].found:
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


def page(query: Query, branches: list[Branch], ids: list[int]) -> Page:
    """The page of the list among the orders that were found, in the order of the walks."""
    order = f"{query.number_first}{by_time(branches)}o.id DESC"
    rest = "o.id < :before"
    if query.before is not None and by_time(branches):
        along = " OR ".join(one.caller for one in branches if one.path == "created")
        time = f"(o.created_at, o.id) < ({TIME_BEFORE}, :before)"
        rest = f"CASE WHEN {along} THEN {time} ELSE {rest} END"
    conditions = ["o.id = ANY (:ids)", rest, query.visible]
    if not query.number_first:
        conditions += query.but_the_number
    return query.page(
        fetch(
            f"""WITH {callers.ACTOR_CTE}
                SELECT CAST(NULL AS bigint) AS floor, {COLUMNS}
                  FROM actor a
                  LEFT JOIN LATERAL (
                       SELECT * FROM orders o
                        WHERE {" AND ".join(conditions)}
                        ORDER BY {order} LIMIT :wanted) AS o ON true
                 ORDER BY {order}""",
            query.parameters | {"ids": ids},
        )
    )
