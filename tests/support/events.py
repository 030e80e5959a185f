"""Writes orders and their events without the application, also in a transaction left open."""

import contextlib
from dataclasses import dataclass
from typing import Any

import psycopg2

from tests.support.people import id_of

# The change of an order and its events in one statement, as the services make them.
_APPEND = """
    WITH o AS (UPDATE orders SET version = version + %(count)s WHERE id = %(order)s RETURNING *),
    e AS (INSERT INTO order_events (order_id, version, type, status, previous_status, actor_id,
                                    actor_name, actor_role, customer_id, driver_id)
          SELECT id, n, 'description_changed', status, status, customer_id, 'Ann', 'user',
                 customer_id, driver_id
            FROM o, generate_series(version - %(count)s + 1, version) AS n ORDER BY n
          RETURNING id, version, xid)
    SELECT id, version, xid::text::bigint FROM e ORDER BY id DESC LIMIT 1
"""

_ORDER = """
    WITH u AS (INSERT INTO users (name, email, password_hash)
               VALUES ('Ann', gen_random_uuid()::text, '-') RETURNING id)
    INSERT INTO orders (customer_id, description) SELECT id, 'apples' FROM u RETURNING id
"""


@dataclass(frozen=True)
class Appended:
    """The row of an appended event: its id, its order's new version, its transaction's id."""

    id: int
    version: int
    xid: int


def insert_order(dsn: str) -> int:
    """Insert an order of a new customer, at version 1 and without an event; its id."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection, connection.cursor() as cursor:
        cursor.execute(_ORDER)
        (order_id,) = cursor.fetchone() or (0,)
        connection.commit()
        return int(order_id)


def append_event(dsn: str, order: Any, *, count: int = 1) -> Appended:
    """Append *count* events to *order* in one committed transaction; the last of them."""
    with contextlib.closing(psycopg2.connect(dsn)) as connection:
        appended = append_uncommitted(connection, order, count=count)
        connection.commit()
        return appended


def append_uncommitted(connection: Any, order: Any, *, count: int = 1) -> Appended:
    """As `append_event`, in the transaction of *connection*, which the test commits or not."""
    with connection.cursor() as cursor:
        cursor.execute(_APPEND, {"order": int(id_of(order)), "count": count})
        return Appended(*cursor.fetchone())
