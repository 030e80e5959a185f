"""Rows that have served: ended sessions, old idempotency keys, old sign-outs.

One process at a time does it, a bounded batch in each transaction, so that neither a large backlog
nor a second process holds anybody up. What is kept, and for how long, is in docs/operations.md.
"""

import logging
import random
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import text

from ordertrack.db import transaction

log = logging.getLogger(__name__)

# Seconds between turns: what a turn deletes has been waiting for days.
PERIOD: Final = 600.0

# Rows of one transaction: some milliseconds of work.
BATCH: Final = 500

# Batches of one table in one turn: what is left over has its turn next time.
MOST_BATCHES: Final = 200

# Any fixed number: whoever holds this advisory lock keeps house.
_LOCK: Final = 0x0DE27AD

# The time that a row stays after it has served. Sessions and keys for as long as somebody may want
# to look; sign-outs as the database demands (migration 0003).
_OVER: Final = {
    "sessions": (
        "expires_at < now() - interval '7 days'",
        "revoked_at < now() - interval '7 days'",
    ),
    "idempotency_keys": ("created_at < now() - interval '7 days'",),
    "access_changes": ("reason = 'signed_out' AND created_at < now() - interval '31 days'",),
}


@dataclass(slots=True)
class Stats:
    """What this process has done. Plain numbers; nothing is reset."""

    turns: int
    failures: int
    deleted: dict[str, int]


stats = Stats(0, 0, dict.fromkeys(_OVER, 0))


def turn(stopping: Callable[[], bool] = lambda: False) -> int:
    """Delete what is over; the number of rows. Nothing when another process is at it.

    Ends early when *stopping* says so. Raises `Unavailable` when the database cannot answer.
    """
    total = 0
    for table, conditions in _OVER.items():
        for condition in conditions:
            for _ in range(MOST_BATCHES):
                deleted = _batch(table, condition)
                stats.deleted[table] += deleted
                total += deleted
                if deleted < BATCH or stopping():
                    break
    stats.turns += 1
    return total


def _batch(table: str, condition: str) -> int:
    with transaction() as t:
        if not t.scalar(text("SELECT pg_try_advisory_xact_lock(:key)"), {"key": _LOCK}):
            return 0
        # By ctid, because the tables have different keys.
        done: Any = t.execute(
            text(
                f"DELETE FROM {table} WHERE {condition} AND ctid = ANY (ARRAY("
                f"SELECT ctid FROM {table} WHERE {condition} LIMIT :limit))"
            ),
            {"limit": BATCH},
        )
        return int(done.rowcount)


class Housekeeper:
    """Takes a turn now and then, from `start` until `stop`.

    *context* makes an application context, in which a turn finds its database. Under the server the
    thread is a green one, and waits for the database like a request does.
    """

    def __init__(
        self, context: Callable[[], AbstractContextManager[Any]], period: float = PERIOD
    ) -> None:
        self._context = context
        self._period = period
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self, timeout: float = 1.0) -> None:
        """No further turn begins; waits up to *timeout* seconds for the present one."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        # Spread, because processes are often started together.
        while not self._stopping.wait(self._period * random.uniform(0.5, 1)):  # noqa: S311
            try:
                with self._context():
                    deleted = turn(self._stopping.is_set)
            except Exception:
                stats.failures += 1
                log.exception("housekeeping failed; it is tried again later")
            else:
                if deleted:
                    log.info("housekeeping deleted %d rows", deleted)
