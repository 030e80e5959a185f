"""Who is connected, by what right, and until when: every socket of this process, of either kind.

A right ends by time, by a sign-out, a new role or a deactivation (the relay tells), and with it the
sockets that lived on it.
"""

import heapq
import logging
import threading
import time
from collections.abc import Callable
from typing import Protocol

from ordertrack.auth import Credential
from ordertrack.errors import DomainError, InvalidToken, TokenExpired, TooManyRequests
from ordertrack.eventlog import AccessEnded

log = logging.getLogger(__name__)

_REASONS = {
    "signed_out": "You have been signed out.",
    "role_changed": "Your role has changed. Connect again.",
    "deactivated": "This account has been deactivated.",
}


class Connection(Protocol):
    """A connection with a right to be here."""

    credential: Credential

    def sign_out(self, error: DomainError) -> None: ...

    def silence(self, error: DomainError) -> None:
        """Hear nothing any more, and join nothing: it is to be closed, because of *error*."""

    def hang_up(self, code: int, reason: str) -> None:
        """Close the connection so that the client comes back and resumes."""


class Connections:
    """The authenticated connections of one process, at most *per_user* for each user.

    ``door`` is held while the database is asked on a connection's behalf, by *at_once* of them at a
    time: a thousand that come back together wait there for as long as it takes, instead of for a
    connection of the pool, of which some are left to everybody else.
    """

    def __init__(self, *, most: int, per_user: int, at_once: int = 8) -> None:
        self.door = threading.Semaphore(at_once)
        self._most = most
        self._per_user = per_user
        self._by_user: dict[int, set[Connection]] = {}
        self._number = 0
        # Whose token expires in which second, and those seconds as a heap.
        self._expiring: dict[int, set[Connection]] = {}
        self._seconds: list[int] = []

    def __len__(self) -> int:
        return self._number

    def admit(self, connection: Connection) -> None:
        """Raises `TooManyRequests` when the house, or the user's share of it, is full.

        Ask the database for the connection's right only afterwards: if it ends meanwhile,
        `end_access` must find the connection here.
        """
        own = self._by_user.setdefault(connection.credential.caller.user_id, set())
        if self._number >= self._most or len(own) >= self._per_user:
            if not own:
                del self._by_user[connection.credential.caller.user_id]
            raise TooManyRequests("Too many open connections. Close some.", retry_after=10)
        own.add(connection)
        self._number += 1
        self._expect(connection)

    def renew(self, connection: Connection, credential: Credential) -> None:
        """Go on with another token of the same user. Raises `InvalidToken` for another's."""
        if credential.caller.user_id != connection.credential.caller.user_id:
            raise InvalidToken("The token belongs to another user.")
        self._expect_no_more(connection)
        connection.credential = credential
        self._expect(connection)

    def leave(self, connection: Connection) -> None:
        """Let it go; one that is not here already has."""
        user_id = connection.credential.caller.user_id
        own = self._by_user.get(user_id, set())
        if connection in own:
            own.remove(connection)
            self._number -= 1
            self._expect_no_more(connection)
            if not own:
                del self._by_user[user_id]

    def end_access(self, right: AccessEnded) -> None:
        """Close what lived on a right that ended."""
        for connection in list(self._by_user.get(right.user_id, ())):
            if right.session_id in (None, connection.credential.caller.session_id):
                self._sign_out(connection, InvalidToken(_REASONS[right.reason]))

    def silence_all(self, reason: Callable[[], DomainError]) -> list[Connection]:
        """Let everybody go at once, without a word; the caller hangs up on each when it likes.

        *reason* makes an error for each: who is on the way in raises it, and one that is raised
        again and again keeps every request that it has passed through.

        So nobody is told of a change who was not told of the one before it, and who comes back
        meanwhile is not among them.
        """
        everybody = [connection for own in self._by_user.values() for connection in own]
        for connection in everybody:
            connection.silence(reason())
        return everybody

    def sweep(self, _now: float) -> None:
        """Close what has expired. Tokens expire by the wall clock."""
        now = time.time()
        while self._seconds and self._seconds[0] <= now:
            for connection in list(self._expiring.pop(heapq.heappop(self._seconds))):
                self._sign_out(
                    connection, TokenExpired("The token has expired. Connect with a new one.")
                )

    def _sign_out(self, connection: Connection, error: DomainError) -> None:
        try:
            connection.sign_out(error)
        except Exception:  # the rights of the others have ended, too
            log.exception("A connection could not be signed out")
            self.leave(connection)

    def _expect(self, connection: Connection) -> None:
        second = int(connection.credential.expires_at)
        if second not in self._expiring:
            self._expiring[second] = set()
            heapq.heappush(self._seconds, second)
        self._expiring[second].add(connection)

    def _expect_no_more(self, connection: Connection) -> None:
        self._expiring.get(int(connection.credential.expires_at), set()).discard(connection)
