"""Registry of authenticated connections: enforces limits, and closes a connection when its token
expires or its session is revoked.

It holds connections of both protocols. A session is revoked by a logout, a new role or a
deactivation, in any process; the relay reports it here.

    connections.admit(watcher)              # or TooManyRequests
    connections.renew(watcher, credential)  # the client sent a new token
    connections.close_revoked(revoked)             # from the log
    connections.remove(watcher)             # the connection has ended
"""

import heapq
import logging
import time
from collections.abc import Callable

from ordertrack.auth import Credential
from ordertrack.errors import DomainError, InvalidToken, TokenExpired, TooManyRequests
from ordertrack.log_tail import Revoked
from ordertrack.realtime.hub import Watcher

log = logging.getLogger(__name__)

_REASONS = {
    "signed_out": "You have been signed out.",
    "role_changed": "Your role has changed. Connect again.",
    "deactivated": "This account has been deactivated.",
}


class Connections:
    """The authenticated connections of one process: *limit* of them, *per_user* of each user."""

    def __init__(self, *, limit: int, per_user: int) -> None:
        self._limit = limit
        self._per_user = per_user
        self._by_user: dict[int, set[Watcher]] = {}
        self._number = 0
        # By the second in which the token expires, and those seconds as a heap.
        self._expiring: dict[int, set[Watcher]] = {}
        self._seconds: list[int] = []

    def __len__(self) -> int:
        return self._number

    def admit(self, watcher: Watcher) -> None:
        """Raises `TooManyRequests` when the process, or the user, has too many connections.

        Look up the session in the database only afterwards: if it is revoked meanwhile, `revoke`
        must find the connection here.
        """
        user_id = watcher.credential.caller.user_id
        own = self._by_user.get(user_id, set())
        if self._number >= self._limit or len(own) >= self._per_user:
            raise TooManyRequests("Too many open connections. Close some.", retry_after=10)
        self._by_user.setdefault(user_id, own).add(watcher)
        self._number += 1
        self._schedule_expiry(watcher)

    def renew(self, watcher: Watcher, credential: Credential) -> None:
        """Replace the token by another one of the same user. Raises `InvalidToken` otherwise."""
        if credential.caller.user_id != watcher.credential.caller.user_id:
            raise InvalidToken("The token belongs to another user.")
        self._cancel_expiry(watcher)
        watcher.credential = credential
        self._schedule_expiry(watcher)

    def remove(self, watcher: Watcher) -> None:
        """Forget a connection. Does nothing the second time."""
        user_id = watcher.credential.caller.user_id
        own = self._by_user.get(user_id, set())
        if watcher in own:
            own.remove(watcher)
            self._number -= 1
            self._cancel_expiry(watcher)
            if not own:
                del self._by_user[user_id]

    def close_revoked(self, revoked: Revoked) -> None:
        """Close the connections of a revoked session, or of all sessions of a user."""
        for watcher in list(self._by_user.get(revoked.user_id, ())):
            if revoked.session_id in (None, watcher.credential.caller.session_id):
                self._close_with_error(watcher, InvalidToken(_REASONS[revoked.reason]))

    def close_expired(self, _now: float) -> None:
        """Close the connections whose token has expired, by the wall clock."""
        now = time.time()
        while self._seconds and self._seconds[0] <= now:
            for watcher in list(self._expiring.pop(heapq.heappop(self._seconds))):
                self._close_with_error(
                    watcher, TokenExpired("The token has expired. Connect with a new one.")
                )

    def stop_all(self, reason: Callable[[], DomainError]) -> list[Watcher]:
        """Stop delivering to all connections at once; the caller closes them one by one.

        So no connection gets an event after one that it has missed, and one that is opened
        meanwhile is not affected. *reason* makes a new error for each of them: a connection that is
        being opened raises it, and an exception keeps every stack frame that it has passed.
        """
        stopped = [watcher for own in self._by_user.values() for watcher in own]
        for watcher in stopped:
            watcher.stop(reason())
        return stopped

    def _close_with_error(self, watcher: Watcher, error: DomainError) -> None:
        try:
            watcher.close_with_error(error)
        except Exception:  # the others must be closed as well
            log.exception("A connection could not be logged out")
            watcher.closing = error
            self.remove(watcher)

    def _schedule_expiry(self, watcher: Watcher) -> None:
        second = int(watcher.credential.expires_at)
        if second not in self._expiring:
            self._expiring[second] = set()
            heapq.heappush(self._seconds, second)
        self._expiring[second].add(watcher)

    def _cancel_expiry(self, watcher: Watcher) -> None:
        self._expiring.get(int(watcher.credential.expires_at), set()).discard(watcher)
