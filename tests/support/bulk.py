"""Fills large tables with users, orders and their log, as after years of use.

For query plans and sizes, not for behaviour: the events are dense and plausible, but not valid.
Only on a database of the test's own, because constraints and triggers are disabled meanwhile.
"""

from contextlib import closing
from dataclasses import dataclass

import psycopg2

DRIVERS = 200
ADMINS = 20

# A word that no generated description holds; `rare` is in one order of a hundred thousand.
ABSENT = "quetzalcoatl"
RARE = "zanzibar"
COMMON = "parcel"

# How much of the newest part of the orders is still open, in thousandths of all of them.
_OPEN = {"Pending": 1, "Processing": 1, "Shipped": 1}

_DAYS = 3 * 365


@dataclass(frozen=True)
class Size:
    """How many rows to make."""

    orders: int
    events_per_order: int = 10

    @property
    def users(self) -> int:
        return max(self.orders // 10, 2000)


# Ids 1 … ADMINS are admins, the next DRIVERS are drivers, the rest are customers.
_USERS = f"""
    INSERT INTO users (name, email, password_hash, role, created_at)
    SELECT (ARRAY['Ada','Bela','Chandra','Dewi','Emeka','Farida','Goran','Hana','Ines','Jun'])
               [1 + i %% 10] || ' ' || initcap(substr(md5(i::text), 1, 8)) || ' ' || i,
           'user' || i || '@example.org', 'x',
           CASE WHEN i <= {ADMINS} THEN 'admin'
                WHEN i <= {ADMINS + DRIVERS} THEN 'driver' ELSE 'user' END,
           now() - interval '{_DAYS} days'
      FROM generate_series(1, %(users)s) AS i
"""

# The oldest are final, the newest are open. A customer in a thousand has a hundred times as many
# orders as the others, and a driver in ten nearly none.
_ORDERS = f"""
    INSERT INTO orders (customer_id, driver_id, description, status, previous_status, version,
                        created_at, updated_at, deleted_at)
    SELECT {ADMINS + DRIVERS} + 1 + CASE
               WHEN i %% 10 = 0 THEN hashint8(i) & 63
               ELSE (hashint8extended(i, 1) & 9223372036854775807)
                    %% (%(users)s - {ADMINS + DRIVERS}) END,
           CASE WHEN i > %(orders)s * 0.999 THEN NULL
                ELSE {ADMINS} + 1 + ((hashint8(i) & 2147483647) %% {DRIVERS * 9 // 10}) END,
           '{COMMON} ' || (hashint8(i) & 65535) || ' '
               || (ARRAY['lamp','chair','table','sofa','shelf','carpet','mirror','stool','desk',
                         'bed'])[1 + (hashint8(i) & 2147483647) %% 10]
               || ' for the ' || substr(md5(i::text), 1, 12) || ' room, second floor'
               || CASE WHEN i %% 100000 = 777 THEN ' {RARE}' ELSE '' END,
           CASE WHEN i > %(orders)s * 0.999 THEN 'Pending'
                WHEN i > %(orders)s * 0.998 THEN 'Processing'
                WHEN i > %(orders)s * 0.997 THEN 'Shipped'
                WHEN i < %(orders)s * 0.05 THEN 'Cancelled' ELSE 'Completed' END,
           NULL, %(per)s,
           now() - interval '{_DAYS} days' * (1 - i / %(orders)s::float8),
           now() - interval '{_DAYS} days' * (1 - i / %(orders)s::float8) + interval '1 hour',
           CASE WHEN i %% 1000 = 500 AND i < %(orders)s * 0.5 THEN now() END
      FROM generate_series(1, %(orders)s::bigint) AS i
"""

# In blocks of a thousand orders, so that the events of one order lie apart, as in use.
_EVENTS = f"""
    INSERT INTO order_events (xid, order_id, version, type, status, previous_status, actor_id,
                              actor_name, actor_role, changes, customer_id, driver_id, created_at)
    SELECT (3 + i * least(%(orders)s::bigint * %(per)s / 2, past) / (%(orders)s::bigint * %(per)s)
            )::text::xid8, o, v,
           CASE WHEN v = 1 THEN 'created' WHEN v = 2 THEN 'driver_assigned'
                ELSE 'status_changed' END,
           CASE WHEN v <= 2 THEN 'Pending' WHEN v = 3 THEN 'Processing' ELSE 'Shipped' END,
           CASE WHEN v = 1 THEN NULL ELSE 'Pending' END,
           {ADMINS} + 1 + o %% {DRIVERS}, 'Dewi', 'driver',
           CASE WHEN v = 1 THEN jsonb_build_object('description',
               '{COMMON} ' || (hashint8(o) & 65535) || ' '
               || (ARRAY['lamp','chair','table','sofa','shelf','carpet','mirror','stool','desk',
                         'bed'])[1 + (hashint8(o) & 2147483647) %% 10]
               || ' for the ' || substr(md5(o::text), 1, 12) || ' room, second floor'
               || CASE WHEN o %% 100000 = 777 THEN ' {RARE}' ELSE '' END) END,
           {ADMINS + DRIVERS} + 1, NULL,
           now() - interval '{_DAYS} days' * (1 - o / %(orders)s::float8) + interval '5 min' * v
      FROM (SELECT pg_current_xact_id()::text::bigint - 4 AS past) AS p, (
            SELECT i, i / (1000 * %(per)s) * 1000 + i %% 1000 + 1 AS o,
                   i %% (1000 * %(per)s) / 1000 + 1 AS v
              FROM generate_series(0, %(orders)s::bigint * %(per)s - 1) AS i) AS e
"""


def fill(superuser_dsn: str, size: Size) -> None:
    """Fill the migrated, empty database. Indexes are dropped and created again afterwards.

    *size.orders* is a multiple of a thousand. The log's transaction ids ascend from 3 to those of
    the present, two events in each where there have been so many (`pg_resetwal -e 1` sees to that).
    """
    values = {"users": size.users, "orders": size.orders, "per": size.events_per_order}
    with closing(psycopg2.connect(superuser_dsn)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute("SET maintenance_work_mem = '1GB'; SET session_replication_role = replica")
        for table, rows in (("users", _USERS), ("orders", _ORDERS), ("order_events", _EVENTS)):
            again = _set_aside(cursor, table)
            cursor.execute(rows, values)
            for statement in again:
                cursor.execute(statement)
        for table in ("users", "orders", "order_events"):
            cursor.execute(f"VACUUM (ANALYZE) {table}")


def _set_aside(cursor: "psycopg2.extensions.cursor", table: str) -> list[str]:
    """Drop the indexes and keys of a table; the statements that create them again.

    Foreign keys and checks stay away: they cost hours at this size, and no plan depends on them.
    """
    cursor.execute(
        """SELECT conname FROM pg_constraint
            WHERE conrelid = %s::regclass AND contype IN ('f', 'c')
            UNION ALL
           SELECT conrelid::regclass || '.' || conname FROM pg_constraint
            WHERE confrelid = %s::regclass AND contype = 'f'""",
        [table, table],
    )
    for (name,) in cursor.fetchall():
        other, _, constraint = name.rpartition(".")
        cursor.execute(f"ALTER TABLE {other or table} DROP CONSTRAINT IF EXISTS {constraint}")
    cursor.execute(
        """SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid), conname,
                  pg_get_constraintdef(c.oid)
             FROM pg_index LEFT JOIN pg_constraint c
                  ON c.conindid = indexrelid AND c.contype IN ('p', 'u')
            WHERE indrelid = %s::regclass""",
        [table],
    )
    again = []
    for index, definition, constraint, kept in cursor.fetchall():
        if constraint:
            cursor.execute(f"ALTER TABLE {table} DROP CONSTRAINT {constraint}")
            again.append(f"ALTER TABLE {table} ADD CONSTRAINT {constraint} {kept}")
        else:
            cursor.execute(f"DROP INDEX {index}")
            again.append(definition)
    return again
