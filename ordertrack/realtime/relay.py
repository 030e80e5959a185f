"""Follows the logs: hands each event to `publish`, in log order, and each revocation to `revoke`.

The relay owns a database connection outside the pool and a cursor into the logs (`log_tail.Tail`).

Rules
-----
1. The log is the truth, wake-ups are hints. The relay reads at once after a commit of its own
   process, soon after one of another process (NOTIFY), and every *poll* seconds in any case.
2. Nothing is published out of order, and no event before a revocation that precedes it.
3. NOTIFY takes a lock of the whole PostgreSQL server at commit, so no order's transaction sends it.
   The relay does, on its own connection, with a read: once for all commits since its last read,
   and only if another relay follows this database.
4. A lost connection loses no event: the next connection goes on from the cursor.
5. Where that is impossible, the cursor restarts at the logs' end, and `on_gap` closes every
   connection, so that its client resumes by version. This happens in another timeline of the
   database (a failover), after `LogLost`, and after `_LONGEST_OUTAGE`.
6. Any other error ends the process: a server without its relay must not look as if it worked.

States
------
                    connected               rows       connection lost    LogLost       other error
    CONNECTING      FOLLOWING, from now     -          CONNECTING         -             FAILED
    FOLLOWING       -                       revoke,    RECONNECTING       RESTARTING    FAILED
                                            publish
    RECONNECTING    same timeline, in time: -          RECONNECTING       -             FAILED
                      FOLLOWING, from the
                      cursor
                    else: RESTARTING
    RESTARTING      restart the cursor,     -          RECONNECTING,      -             FAILED
                      `on_gap`: FOLLOWING                then RESTARTING
    FAILED          the process exits with `EXIT_CODE`

The fields that say which: `_last_turn` is None unless FOLLOWING, `_timeline` is None while
CONNECTING, and `_gap` says why it is RESTARTING until that is done.

Other relays
------------
Each relay listens on a second connection, which holds a shared advisory lock as long as it lives.
So whoever counts the holders of that lock knows how many relays there are. `_alone` says that there
is no other:

    a connection is to listen   False, as nothing is known
    it listens                  it takes the lock, notifies, and then looks for other holders
    a relay notifies            False; if it was True, notify back: what this process committed
                                until now, the other one may not have heard of
    silence for `_SILENCE`      look again

Two relays that begin at once find each other: the one that looks before the other holds the lock
has been listening when the other notifies. Where the answer is wrong (a relay of an older release
takes no lock), the poll finds what was not announced.

An example
----------
    relay = Relay(dsn, publish=hub.publish, revoke=connections.close_revoked,
                  before_read=hub.before_read, after_read=hub.after_read,
                  on_gap=disconnect_all, poll=0.5)
    relay.start()          # returns when it is FOLLOWING: accept clients only afterwards
    ...
    relay.wake()           # this process has committed something (`db.after_append` does that)
    assert relay.is_following
    relay.stop()
"""

import logging
import os
from collections.abc import Callable
from typing import Any

import psycopg2
from psycopg2.extensions import ISOLATION_LEVEL_AUTOCOMMIT

from ordertrack import db, log_tail
from ordertrack.connector import Connector
from ordertrack.eventlog import Event
from ordertrack.log_tail import LogLost, Revoked, Tail
from ordertrack.server import loop

log = logging.getLogger(__name__)

CHANNEL = "order_events"

# The advisory lock that every relay shares, as the two numbers of its key; any fixed ones.
_PRESENT = (0x0DE27AC, 1)

# Whether another session than ours holds it in this database. Everybody may read `pg_locks`.
_OTHERS = """
    SELECT EXISTS (
        SELECT FROM pg_locks
         WHERE locktype = 'advisory' AND classid::bigint = %s AND objid::bigint = %s
           AND objsubid = 2 AND pid <> pg_backend_pid()
           AND database = (SELECT oid FROM pg_database WHERE datname = current_database()))
"""

# When nobody has notified us for so many seconds, the others may have gone.
_SILENCE = 30.0

# Between attempts to connect: at once, then this, doubled up to the last.
_FIRST_WAIT, _LONGEST_WAIT = 0.1, 1.0

_START_SECONDS = 30.0

# If a turn takes longer than this plus the poll interval, `is_following` is False: the connection
# or the database hangs.
_LONGEST_TURN = 2.0

# After a longer outage every client is disconnected and resumes: one that has not reconnected by
# itself shows a state that is minutes old.
_LONGEST_OUTAGE = 300.0

# After so many seconds of publishing the event loop runs something else: there may be thousands of
# events for thousands of connections.
_LONGEST_STRETCH = 0.01

EXIT_CODE = 70  # EX_SOFTWARE


class RelayStuck(Exception):
    """The relay could not reach the database in time."""


class Relay:
    """Follows the logs of the database *dsn*; `start` it once, in the serving process.

    *before_read* and *after_read* are called around each read and what is published of it.
    """

    def __init__(
        self,
        dsn: str,
        *,
        publish: Callable[[Event], None],
        revoke: Callable[[Revoked], None],
        before_read: Callable[[], None],
        after_read: Callable[[], None],
        on_gap: Callable[[], None],
        poll: float,
        on_failure: Callable[[int], None] = os._exit,
    ) -> None:
        self._connect = Connector(
            dsn,
            suffix=" relay",
            session={"statement_timeout": "10000", "enable_seqscan": "off"},
            defaults={"keepalives_idle": 5, "keepalives_interval": 2, "keepalives_count": 3},
        )
        self._publish = publish
        self._revoke = revoke
        self._before_read = before_read
        self._after_read = after_read
        self._on_gap = on_gap
        self._poll = poll
        self._on_failure = on_failure
        # Called when the database is gone, before the next attempt to connect. `main` sets it when
        # the database is embedded.
        self.restart_database: Callable[[], object] = lambda: None
        self._tail = Tail()
        self._woken = loop.Signal()
        self._notify = False  # other processes are still to be notified of our commits
        self._alone = False  # no other relay follows this database, as far as is known
        self._backend = 0  # the process id of our connection in PostgreSQL
        self._last_turn: float | None = None  # when it ended; None unless FOLLOWING
        self._read_at: float | None = None  # when the logs were last read to their end
        self._timeline: str | None = None  # the cluster and timeline that `_tail` follows
        self._gap: str | None = None  # why the cursor must restart; None when it has
        self._stopped = False
        self.turns = 0
        self.reconnects = 0
        self.restarts = 0  # of the cursor

    @property
    def is_following(self) -> bool:
        """Whether what has been committed is about to be published."""
        if self._last_turn is None:
            return False
        return loop.monotonic() - self._last_turn < self._poll + _LONGEST_TURN

    @property
    def is_woken(self) -> bool:
        """Whether it has been woken, and has not read yet."""
        return self._woken.is_set

    def start(self) -> None:
        """Follow the logs from now on. Returns when the cursor is set: subscribe only afterwards.

        Raises `RelayStuck` when the database cannot be reached.
        """
        db.after_append.append(self.wake)
        loop.spawn(self._keep_connected, self._connect_follower, self._follow)
        loop.spawn(self._keep_connected, self._connect_listener, self._listen)
        deadline = loop.monotonic() + _START_SECONDS
        while not self.is_following:
            if loop.monotonic() > deadline:
                raise RelayStuck("the relay cannot reach the database")
            loop.sleep(0.01)

    def stop(self) -> None:
        self._stopped = True
        if self.wake in db.after_append:
            db.after_append.remove(self.wake)
        self._woken.set()

    def wake(self) -> None:
        """This process has committed something."""
        self._notify = True
        self._woken.set()

    # --- connections --------------------------------------------------------------------------

    def _keep_connected(self, connect: Callable[[], Any], work: Callable[[Any], None]) -> None:
        """Call *work* again and again with a connection, which is replaced when it is lost."""
        connection: Any = None
        wait = 0.0
        while not self._stopped:
            try:
                connection = connection or connect()
                work(connection)
                wait = 0.0
            except Exception as error:
                if not _is_lost_connection(error, connection):
                    log.critical("the relay failed, so the process exits", exc_info=True)
                    self._last_turn = None
                    self._on_failure(EXIT_CODE)
                    return
                if connection is not None:
                    connection.close()
                    connection = None
                log.warning("the relay lost the database: %s", str(error).strip())
                if work == self._follow:
                    self._last_turn = None
                    self.reconnects += 1
                    self._restart_database()
                loop.sleep(wait)
                wait = min(max(wait * 2, _FIRST_WAIT), _LONGEST_WAIT)
        if connection is not None:
            connection.close()

    def _restart_database(self) -> None:
        try:
            self.restart_database()
        except Exception:  # the next attempt to connect will fail, and lead here again
            log.exception("the database could not be restarted")

    def _connect_follower(self) -> Any:
        return self._connect_and(self._open_tail)

    def _connect_listener(self) -> Any:
        self._alone = False  # until it listens again
        connection = self._connect_and(self._open_listener)
        self._woken.set()  # earlier notifications did not reach us
        return connection

    def _open_listener(self, cursor: Any) -> None:
        """Listen, and let other relays know of us. In this order: see "Other relays"."""
        cursor.execute(f"LISTEN {CHANNEL}")
        cursor.execute("SELECT pg_try_advisory_lock_shared(%s, %s)", _PRESENT)
        cursor.execute(f"NOTIFY {CHANNEL}")
        self._look_for_others(cursor)

    def _connect_and(self, prepare: Callable[[Any], None]) -> Any:
        connection = self._connect()
        try:
            connection.set_isolation_level(ISOLATION_LEVEL_AUTOCOMMIT)
            with connection.cursor() as cursor:
                prepare(cursor)
        except BaseException:
            connection.close()
            raise
        return connection

    # --- the cursor ---------------------------------------------------------------------------

    def _open_tail(self, cursor: Any) -> None:
        """Go on from the cursor, if that is possible; else restart it."""
        self._backend = cursor.connection.info.backend_pid
        timeline = log_tail.timeline(cursor)
        if timeline is None:
            raise psycopg2.OperationalError(
                "this PostgreSQL is a standby, which cannot be followed"
            )
        outage = loop.monotonic() - self._read_at if self._read_at is not None else 0.0
        if self._timeline not in (None, timeline):
            self._gap = f"the database was {self._timeline}, and is {timeline} now"
        elif outage > _LONGEST_OUTAGE:
            self._gap = f"the log was out of reach for {outage:.0f} seconds"
        self._tail.open(cursor)
        if self._gap is not None:
            self._restart_cursor(cursor)
        self._timeline = timeline

    def _restart_cursor(self, cursor: Any) -> None:
        """Follow the logs from now on, and have every client find out what it missed.

        In this order: a client that subscribes once the new cursor is taken reads at least that
        far, and the connections of all that subscribed before are closed. `_gap` stays if the
        database is lost in between.
        """
        self._tail.restart(cursor)
        log.warning("the log is followed from now on, all clients resume: %s", self._gap)
        self.restarts += 1
        self._on_gap()
        self._gap = None

    # --- following ----------------------------------------------------------------------------

    def _follow(self, connection: Any) -> None:
        """One turn: read, notify other processes, publish, and wait to be woken or for the poll."""
        with connection.cursor() as cursor:
            try:
                self._read_and_publish(cursor)
            except LogLost as lost:
                self._gap = str(lost)
                self._restart_cursor(cursor)
                self._read_and_publish(cursor)
        self._woken.wait(self._poll)

    def _read_and_publish(self, cursor: Any) -> None:
        self.turns += 1
        self._before_read()
        began = loop.monotonic()
        # Taken back before the read: what is committed from here on sets it again.
        notify, self._notify = self._notify and not self._alone, False
        try:
            revocations, events = self._tail.read(cursor, f"NOTIFY {CHANNEL}" if notify else "")
        except BaseException:
            self._notify = self._notify or notify
            raise
        try:
            for revoked in revocations:
                self._revoke(revoked)
            for event in events:
                self._publish(event)
                if loop.monotonic() - began > _LONGEST_STRETCH:
                    loop.pause()
                    began = loop.monotonic()
        except OSError as error:
            # It must not pass for a lost connection: the rest of what was read would be lost.
            raise RuntimeError("what was read could not be published") from error
        self._after_read()
        self._last_turn = self._read_at = loop.monotonic()

    def _listen(self, connection: Any) -> None:
        """Wake when another process notifies us of a commit."""
        if not loop.wait_readable(connection, timeout=_SILENCE):
            with connection.cursor() as cursor:
                self._look_for_others(cursor)
        else:
            connection.poll()
        self._hear(connection)

    def _look_for_others(self, cursor: Any) -> None:
        """Set `_alone`. Whoever notifies from now on is heard later than the answer."""
        cursor.execute(_OTHERS, _PRESENT)
        self._alone = not cursor.fetchone()[0]
        self._hear(cursor.connection)

    def _hear(self, connection: Any) -> None:
        """Take what has been notified on the listening connection, whoever did it."""
        own = (self._backend, connection.info.backend_pid)
        from_others = [notice for notice in connection.notifies if notice.pid not in own]
        connection.notifies.clear()
        if not from_others:
            return
        if self._alone:
            self._alone = False
            self._notify = True
        self._woken.set()


def _is_lost_connection(error: Exception, connection: Any) -> bool:
    """Whether *error* means that the connection or the database failed, and not the relay."""
    if db.is_transient(error) or isinstance(error, OSError):
        return True
    # psycopg2 has only its base class for what libpq cannot explain.
    return isinstance(error, psycopg2.Error) and connection is not None and connection.closed != 0
