"""After a dump was restored into another PostgreSQL cluster: the log's transaction ids are strange.

Each row of the log carries the transaction that appended it, and the relay tells by that what is
new. A dump takes these numbers along, but another cluster counts its own transactions. Rows whose
number it has not reached yet cannot be told from rows that will be appended then: as the cluster
came to their numbers, old events would be announced as new ones, months later.

Such rows are easy to tell: one can read them, although the cluster says of their transaction that
nothing of it can be seen. Of a row that was appended here that is never true.
"""

from sqlalchemy import text

from ordertrack.db import transaction
from ordertrack.services import owner

# FirstNormalFullTransactionId: lower than any transaction that could still append a row.
_LONG_AGO = 3

_FROM_ELSEWHERE = """xid >= pg_snapshot_xmin(pg_current_snapshot())
    AND NOT pg_visible_in_snapshot(xid, pg_current_snapshot())"""

# The same rows, found without reading any other: transactions that have not begun here yet, and
# those that run now, of which there are a few. However many rows there are, and however long
# somebody's transaction has been open, that is as many looks at the index.
_ANY_FROM_ELSEWHERE = """
    SELECT EXISTS (SELECT FROM {log} WHERE xid >= pg_snapshot_xmax(pg_current_snapshot()))
        OR EXISTS (SELECT FROM {log}
                    WHERE xid = ANY (ARRAY(SELECT pg_snapshot_xip(pg_current_snapshot()))))
"""

_LOGS = ("order_events", "access_changes")


class LogFromElsewhere(Exception):
    """The log came from another PostgreSQL cluster. Its text says what to do."""


def require_own_log() -> None:
    """Raises `LogFromElsewhere` for rows that `adopt` has to see first, `Unavailable`."""
    with transaction() as t:
        # A table that was never analysed, as after a restore, would be read from end to end.
        for way in ("seqscan", "bitmapscan"):
            t.execute(text(f"SET LOCAL enable_{way} = off"))
        for log in _LOGS:
            if t.scalar(text(_ANY_FROM_ELSEWHERE.format(log=log))):
                raise LogFromElsewhere(
                    f"{log} holds rows of another PostgreSQL cluster, as after restoring a dump; "
                    "served as they are, old events would be announced as new. Once, run: "
                    "flask --app wsgi audit adopt"
                )


def adopt() -> int:
    """Mark what came from another cluster as long past; the number of rows.

    Of each such row only ``xid`` changes, which no client ever sees. What was appended here is not
    touched, so this is safe at any time, also twice. It needs the owner of the tables, because the
    triggers that refuse changes are off meanwhile (nobody else can write until it is done).
    """
    rows = 0
    with owner.transaction() as t:
        t.execute(text("SET LOCAL statement_timeout = 0"))
        for log in _LOGS:
            t.execute(text(f"ALTER TABLE {log} DISABLE TRIGGER {log}_append_only_rows"))
            found = t.execute(
                text(f"UPDATE {log} SET xid = '{_LONG_AGO}' WHERE {_FROM_ELSEWHERE} RETURNING 1")
            )
            rows += len(found.all())
            t.execute(text(f"ALTER TABLE {log} ENABLE ALWAYS TRIGGER {log}_append_only_rows"))
    return rows
