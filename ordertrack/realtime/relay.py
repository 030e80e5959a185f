"""The relay tails the log and hands each event to `publish`, in order.

It owns a connection outside the pool and a cursor into the log (a snapshot, see `eventlog`). It
wakes at once for its own process's commits, soon for others' (NOTIFY), and looks every *poll*
seconds anyway: wake-ups are hints, the log is the truth, and nothing depends on a hint's arrival.

NOTIFY takes one lock for the whole server at commit, so no order's transaction sends it. The relay
does, on its own connection and once per turn however many commits it stands for.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from ordertrack import eventlog
from ordertrack.eventlog import AccessEnded, Event
from ordertrack.realtime import transport

log = logging.getLogger(__name__)

CHANNEL = "order_events"

# Between attempts to reach the database again: at once, then this, doubled up to the last.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 1.0

EXIT_CODE = 70  # EX_SOFTWARE: the relay met an error of ours, and a deaf server must not go on


class Relay:
    """Follows the log of the database *dsn*; `start` it once, in the serving process."""

    def __init__(
        self,
        dsn: str,
        *,
        publish: Callable[[Event], None],
        end_access: Callable[[AccessEnded], None],
        reading: Callable[[], None],
        caught_up: Callable[[], None],
        poll: float,
        on_failure: Callable[[int], None] = os._exit,
    ) -> None:
        self._dsn = dsn
        self._publish = publish
        self._end_access = end_access
        self._reading = reading
        self._caught_up = caught_up
        self._poll = poll
        self._on_failure = on_failure
        self._flag = transport.Signal()
        self._others_wait = False  # whether other processes are still to be told of our commits
        self._seen: str | None = None
        self._seen_access: str | None = None
        self._backend = 0
        self._stopped = False
        self.is_following = False
        self.turns = 0
        self.reconnects = 0

    def start(self) -> None:
        """Follow the log from now on; returns when the first read is behind us or failed."""
        transport.spawn(self._guarded, self._follow)
        transport.spawn(self._guarded, self._listen)

    def stop(self) -> None:
        self._stopped = True
        self._flag.set()

    def wake(self) -> None:
        """This process has committed something."""
        self._others_wait = True
        self._flag.set()

    def _guarded(self, loop: Callable[[Any], None]) -> None:
        """Run *loop* on a connection of its own, again whenever the connection was lost."""
        wait = 0.0
        while not self._stopped:
            try:
                connection = self._connect()
                try:
                    wait = 0.0
                    loop(connection)
                finally:
                    connection.close()
            except (psycopg2.OperationalError, psycopg2.InterfaceError, OSError) as error:
                if loop == self._follow:
                    self.is_following = False
                    self.reconnects += 1
                log.warning("relay lost the database: %s", str(error).strip())
                transport.sleep(wait)
                wait = min(max(wait * 2, _FIRST_WAIT), _LONGEST_WAIT)
            except Exception:
                log.critical("the relay failed; a deaf server must not go on", exc_info=True)
                self.is_following = False
                self._on_failure(EXIT_CODE)
                return

    def _connect(self) -> Any:
        connection = psycopg2.connect(
            self._dsn,
            application_name="ordertrack relay",
            connect_timeout=5,
            options="-c timezone=UTC -c statement_timeout=10000",
            keepalives_idle=5,
            keepalives_interval=2,
            keepalives_count=3,
        )
        connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
        return connection

    def _follow(self, connection: Any) -> None:
        self._backend = connection.info.backend_pid
        cursor = connection.cursor()
        if self._seen is None or self._seen_access is None:
            self._seen = self._seen_access = eventlog.start(cursor)
        while not self._stopped:
            if self._others_wait:
                self._others_wait = False
                cursor.execute(f"NOTIFY {CHANNEL}")
            self._turn(cursor)
            self.is_following = True
            self._flag.wait(self._poll)

    def _turn(self, cursor: Any) -> None:
        assert self._seen is not None and self._seen_access is not None
        self.turns += 1
        self._reading()
        # The cursor moves on event by event only in memory: a connection lost in between is lost
        # before anything was read, or after everything was.
        seen, events = eventlog.tail(cursor, self._seen)
        self._seen = seen
        for event in events:
            self._publish(event)
        self._caught_up()
        self._seen_access, ended = eventlog.tail_access(cursor, self._seen_access)
        for right in ended:
            self._end_access(right)

    def _listen(self, connection: Any) -> None:
        """Wake when another process says that it has committed."""
        connection.cursor().execute(f"LISTEN {CHANNEL}")
        self._flag.set()  # what was said before we listened was not heard
        while not self._stopped:
            if not transport.wait_readable(connection, timeout=30):
                continue
            connection.poll()
            heard = [notice for notice in connection.notifies if notice.pid != self._backend]
            connection.notifies.clear()
            if heard:
                self._flag.set()
