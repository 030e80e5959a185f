"""The relay tails the log and hands each event to `publish`, in order.

It owns a connection outside the pool and a place in the log (`eventlog.Tail`). It wakes at once for
its own process's commits, soon for others' (NOTIFY), and looks every *poll* seconds anyway:
wake-ups are hints, the log is the truth, and nothing depends on a hint's arrival.

NOTIFY takes one lock for the whole server at commit, so no order's transaction sends it. The relay
does, on its own connection and once per turn however many commits it stands for.

Its connection may die at any time: it goes on from its place on the next one. Where that cannot be
(the database is another one since a failover, or too much has happened meanwhile), it starts anew
and calls `start_over`: whoever watches has missed something, and is to come back and resume by
version. Whatever else goes wrong ends the process, for a server that hears nothing must not look as
if it did.
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from ordertrack import db, eventlog
from ordertrack.connector import Connector
from ordertrack.eventlog import AccessEnded, Event, LogLost
from ordertrack.server import loop

log = logging.getLogger(__name__)

CHANNEL = "order_events"

# Between attempts to reach the database again: at once, then this, doubled up to the last.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 1.0

_START_SECONDS = 30.0

# A turn that takes longer than this, its wait included, and the relay no longer counts as
# following: its connection hangs, or the database does.
_PATIENCE = 2.0

# Without a connection for longer than this, and the relay starts anew, whatever has happened: who
# has not come back by itself meanwhile, watches a page that has stood still for minutes.
_LONGEST_OUTAGE = 300.0

# After so long a stretch of publishing, everybody else has a turn: a catch-up may be thousands of
# events for thousands of sockets.
_STRETCH = 0.01

EXIT_CODE = 70  # EX_SOFTWARE


class RelayStuck(Exception):
    """The relay did not get to the log in time."""


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
        start_over: Callable[[], None],
        poll: float,
        longest_outage: float = _LONGEST_OUTAGE,
        on_failure: Callable[[int], None] = os._exit,
    ) -> None:
        self._connect = Connector(
            dsn,
            suffix=" relay",
            session={"statement_timeout": "10000", "enable_seqscan": "off"},
            defaults={"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3},
        )
        self._publish = publish
        self._end_access = end_access
        self._reading = reading
        self._caught_up = caught_up
        self._start_over = start_over
        self._longest_outage = longest_outage
        self._poll = poll
        self._on_failure = on_failure
        # Called when the database has gone, before the next attempt: who runs an embedded one
        # starts it again here.
        self.revive: Callable[[], object] = lambda: None
        self._events = eventlog.events()
        self._ended_access = eventlog.ended_access()
        self._tails = (self._events, self._ended_access)
        self._unpublished: list[Event] = []  # read, while the connection was lost
        self._flag = loop.Signal()
        self._others_wait = False  # whether other processes are still to be told of our commits
        self._backend = 0
        self._last_turn: float | None = None  # when it ended; None while the connection is lost
        self._read_at: float | None = None  # when the log was last read to its end
        self._history: str | None = None  # which cluster and timeline that was
        self._gap: str | None = None  # why it cannot be read on; None once everybody knows
        self._stopped = False
        self.turns = 0
        self.reconnects = 0
        self.fresh_starts = 0

    @property
    def is_following(self) -> bool:
        """Whether what has been committed is on its way to the sockets."""
        if self._last_turn is None:
            return False
        return loop.monotonic() - self._last_turn < self._poll + _PATIENCE

    def start(self) -> None:
        """Follow the log from now on. Returns when "now" is settled: subscribe only afterwards.

        Raises `RelayStuck` when the database does not let us in.
        """
        db.after_append.append(self.wake)
        loop.spawn(self._keep, self._connect_following, self._follow)
        loop.spawn(self._keep, self._connect_listening, self._listen)
        deadline = loop.monotonic() + _START_SECONDS
        while not self.is_following:
            if loop.monotonic() > deadline:
                raise RelayStuck("the relay cannot reach the database")
            loop.sleep(0.01)

    def stop(self) -> None:
        self._stopped = True
        if self.wake in db.after_append:
            db.after_append.remove(self.wake)
        self._flag.set()

    @property
    def is_due(self) -> bool:
        """Whether it has been woken, and has not looked yet."""
        return self._flag.is_set

    def wake(self) -> None:
        """This process has appended something."""
        self._others_wait = True
        self._flag.set()

    def _keep(self, connect: Callable[[], Any], work: Callable[[Any], None]) -> None:
        """Do *work* again and again, on a connection of its own, which is replaced when lost."""
        connection: Any = None
        wait = 0.0
        while not self._stopped:
            try:
                connection = connection or connect()
                work(connection)
                wait = 0.0
            except Exception as error:
                if not _is_loss(error, connection):
                    log.critical("the relay failed; nobody would hear of changes", exc_info=True)
                    self._last_turn = None
                    self._on_failure(EXIT_CODE)
                    return
                if connection is not None:
                    connection.close()
                    connection = None
                if work == self._follow:
                    self._last_turn = None
                    self.reconnects += 1
                log.warning("the relay lost the database: %s", str(error).strip())
                if work == self._follow:
                    self._revive()
                loop.sleep(wait)
                wait = min(max(wait * 2, _FIRST_WAIT), _LONGEST_WAIT)
        if connection is not None:
            connection.close()

    def _revive(self) -> None:
        try:
            self.revive()
        except Exception:  # the next attempt to connect will fail, and lead here again
            log.exception("the database could not be started again")

    def _connect_following(self) -> Any:
        connection = self._connect()
        try:
            connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
            self._backend = connection.info.backend_pid
            with connection.cursor() as cursor:
                self._find_place(cursor)
        except BaseException:
            connection.close()
            raise
        return connection

    def _find_place(self, cursor: Any) -> None:
        """Go on from the last place, if that is possible."""
        history = eventlog.history(cursor)
        if history is None:
            raise psycopg2.OperationalError(
                "this PostgreSQL is a standby, which cannot be followed"
            )
        outage = loop.monotonic() - self._read_at if self._read_at is not None else 0.0
        if self._history not in (None, history):
            self._gap = f"the database was {self._history}, and is {history} now"
        elif outage > self._longest_outage:
            self._gap = f"the log was out of reach for {outage:.0f} seconds"
        for tail in self._tails:
            tail.open(cursor)
        if self._gap is not None:
            self._begin_anew(cursor)
        self._history = history

    def _begin_anew(self, cursor: Any) -> None:
        """Follow the log from now on, and send everybody to find out what was missed.

        In this order: who subscribes after the new place was taken reads at least that far, and all
        who subscribed before are sent away. If the database is lost in between, `_gap` stays.
        """
        self._unpublished = []
        for tail in self._tails:
            tail.start(cursor)
        log.warning("the log is followed from now on, all sockets resume: %s", self._gap)
        self.fresh_starts += 1
        self._start_over()
        self._gap = None

    def _connect_listening(self) -> Any:
        connection = self._connect()
        try:
            connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
            with connection.cursor() as cursor:
                cursor.execute(f"LISTEN {CHANNEL}")
        except BaseException:
            connection.close()
            raise
        self._flag.set()  # what was said before we listened was not heard
        return connection

    def _follow(self, connection: Any) -> None:
        """One turn: read, publish, tell the others; then wait for a reason for the next."""
        with connection.cursor() as cursor:
            # Taken back before the read: what is committed from here on sets it again.
            others_wait, self._others_wait = self._others_wait, False
            try:
                try:
                    self._turn(cursor)
                except LogLost as lost:
                    self._gap = str(lost)
                    self._begin_anew(cursor)
                    self._turn(cursor)
                if others_wait:
                    cursor.execute(f"NOTIFY {CHANNEL}")
            except BaseException:
                self._others_wait = self._others_wait or others_wait
                raise
        self._flag.wait(self._poll)

    def _turn(self, cursor: Any) -> None:
        self.turns += 1
        self._reading()
        began = loop.monotonic()
        # In this order: a right that ended before an event is seen to have ended before that event
        # is told. If the second read fails, the first one's rows wait for the next turn.
        self._unpublished += self._events.read(cursor)
        ended = self._ended_access.read(cursor)
        events, self._unpublished = self._unpublished, []
        try:
            for right in ended:
                self._end_access(right)
            for event in events:
                self._publish(event)
                if loop.monotonic() - began > _STRETCH:
                    loop.pause()
                    began = loop.monotonic()
        except OSError as error:
            # It must not pass for a lost connection: the rest of what was read would be lost.
            raise RuntimeError("what was read could not be told") from error
        self._caught_up()
        self._last_turn = self._read_at = loop.monotonic()

    def _listen(self, connection: Any) -> None:
        """Wake when another process says that it has committed."""
        if not loop.wait_readable(connection, timeout=30):
            return
        connection.poll()
        heard = [notice for notice in connection.notifies if notice.pid != self._backend]
        connection.notifies.clear()
        if heard:
            self._flag.set()


def _is_loss(error: Exception, connection: Any) -> bool:
    """Whether *error* means that the connection, or the database, not the relay, has failed."""
    if db.is_transient(error) or isinstance(error, OSError):
        return True
    # psycopg2 has only its base class for what libpq cannot explain.
    return isinstance(error, psycopg2.Error) and connection is not None and connection.closed != 0
