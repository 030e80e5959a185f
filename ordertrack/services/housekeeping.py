"""Deletes rows that are no longer needed: revoked and expired sessions, old idempotency keys, old
logouts.

One process at a time does it, a bounded batch per transaction, so that requests never wait for it.
What is kept, and for how long, is in docs/operations.md.
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

# Seconds between runs: the rows that a run deletes are days old.
PERIOD: Final = 600.0

# Rows per transaction: some milliseconds of work.
BATCH: Final = 500

# Batches per condition and run; the next run deletes the rest.
MAX_BATCHES: Final = 200

# The advisory lock of the process that is at work; any fixed number.
_LOCK: Final = 0x0DE27AD

# By table, which rows to delete. Sessions and keys stay for a week, for support; logouts as long as
# the database demands (migration 0003).
_DELETED: Final = {
    "sessions": (
        "expires_at < now() - interval '7 days'",
        "revoked_at < now() - interval '7 days'",
    ),
    "idempotency_keys": ("created_at < now() - interval '7 days'",),
    "access_changes": ("reason = 'signed_out' AND created_at < now() - interval '31 days'",),
}


@dataclass(slots=True)
class Stats:
    """What this process has done. Counters are never reset."""

    runs: int
    failures: int
    deleted: dict[str, int]


stats = Stats(0, 0, dict.fromkeys(_DELETED, 0))


def run(stopping: Callable[[], bool] = lambda: False) -> int:
    """Delete the rows that are no longer needed, and return their number.

    Does nothing while another process is at work; ends early when *stopping* returns true. Raises
    `Unavailable` when the database cannot answer.
    """
    total = 0
    for table, conditions in _DELETED.items():
        for condition in conditions:
            for _ in range(MAX_BATCHES):
                deleted = _batch(table, condition)
                stats.deleted[table] += deleted
                total += deleted
                if deleted < BATCH or stopping():
                    break
    stats.runs += 1
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
    """A thread that calls `run` from time to time, from `start` until `stop`.

    *context* makes an application context, from which `run` has its database. Under the server the
    thread is a green one, and waits for the database as a request does.
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
        """Start no further run; wait up to *timeout* seconds for the present one."""
        self._stopping.set()
        self._thread.join(timeout)

    def _run(self) -> None:
        # At random times, because processes are often started together.
        while not self._stopping.wait(self._period * random.uniform(0.5, 1)):  # noqa: S311
            try:
                with self._context():
                    deleted = run(self._stopping.is_set)
            except Exception:
                stats.failures += 1
                log.exception("housekeeping failed; it is tried again later")
            else:
                if deleted:
                    log.info("housekeeping deleted %d rows", deleted)
