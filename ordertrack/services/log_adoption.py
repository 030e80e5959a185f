"""Adopts a log that was restored from a dump of another PostgreSQL cluster.

Each row of the log has the id of the transaction that appended it, by which the relay knows which
rows are new. A dump contains these ids, but another cluster counts its own transactions. When it
reaches the id of a restored row, months later, that old event would be published as a new one.

Such a row is recognised because it can be read although, by the cluster's snapshot, its transaction
is not visible yet. That is never true of a row that was appended here.
"""

from sqlalchemy import text

from ordertrack.db import transaction
from ordertrack.services import owner

# FirstNormalFullTransactionId: lower than any transaction that could still append a row.
_OLDEST = 3

# Whether a row was appended in another cluster.
_FOREIGN = """xid >= pg_snapshot_xmin(pg_current_snapshot())
    AND NOT pg_visible_in_snapshot(xid, pg_current_snapshot())"""

# Whether there is such a row, by a few index lookups: for transactions that have not begun here
# yet, and for those that are running now. The cost does not grow with the log.
_ANY_FOREIGN = """
    SELECT EXISTS (SELECT FROM {log} WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
        OR EXISTS (SELECT FROM {log}
                    WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot()))))
"""

_LOGS = ("order_events", "access_changes")


class ForeignLog(Exception):
    """The log came from another PostgreSQL cluster. Its text says what to do."""


def require_own_log() -> None:
    """Raises `ForeignLog` when there are rows for `adopt`, `Unavailable`."""
    with transaction() as t:
        # PostgreSQL would read a whole table that was not analysed yet, as after a restore.
        for way in ("seqscan", "bitmapscan"):
            t.execute(text(f"SET LOCAL enable_{way} = off"))
        for log in _LOGS:
            if t.scalar(text(_ANY_FOREIGN.format(log=log))):
                raise ForeignLog(
                    f"{log} holds rows of another PostgreSQL cluster, as after restoring a dump; "
                    "served as they are, old events would be announced as new. Once, run: "
                    "flask --app wsgi audit adopt"
                )


def adopt() -> int:
    """Mark the rows of another cluster as old, and return their number. Idempotent.

    Only their ``xid`` changes, which no client sees; rows that were appended here stay untouched.
    It needs the owner of the tables, because it disables the triggers that refuse changes (other
    transactions cannot write until it is done).
    """
    rows = 0
    with owner.transaction() as t:
        t.execute(text("SET LOCAL statement_timeout = 0"))
        for log in _LOGS:
            t.execute(text(f"ALTER TABLE {log} DISABLE TRIGGER {log}_append_only_rows"))
            found = t.execute(
                text(f"UPDATE {log} SET xid = '{_OLDEST}' WHERE {_FOREIGN} RETURNING 1")
            )
            rows += len(found.all())
            t.execute(text(f"ALTER TABLE {log} ENABLE ALWAYS TRIGGER {log}_append_only_rows"))
    return rows
