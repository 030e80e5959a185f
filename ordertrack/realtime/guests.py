"""Who is connected, by what right, and until when: every socket of this process, of either kind.

A right ends by time, by a sign-out, a new role or a deactivation (the relay tells), and with it the
sockets that lived on it.
"""

import heapq
import time
from itertools import count
from typing import Protocol

from ordertrack.errors import DomainError, InvalidToken, TokenExpired, TooManyRequests
from ordertrack.eventlog import AccessEnded
from ordertrack.identity import Credential

_REASONS = {
    "signed_out": "You have been signed out.",
    "role_changed": "Your role has changed. Connect again.",
    "deactivated": "This account has been deactivated.",
}


class Guest(Protocol):
    """A connection with a right to be here."""

    credential: Credential

    def sign_out(self, error: DomainError) -> None: ...


class Guests:
    """The authenticated connections of one process, at most *per_user* for each user."""

    def __init__(self, *, most: int, per_user: int) -> None:
        self._most = most
        self._per_user = per_user
        self._by_user: dict[int, set[Guest]] = {}
        self._number = 0
        self._tiebreak = count()
        # (when, …, guest): entries of guests that left or renewed are stale, and skipped when due.
        self._expiries: list[tuple[float, int, Guest]] = []

    def __len__(self) -> int:
        return self._number

    def admit(self, guest: Guest) -> None:
        """Raises `TooManyRequests` when the house, or the user's share of it, is full."""
        own = self._by_user.setdefault(guest.credential.principal.user_id, set())
        if self._number >= self._most or len(own) >= self._per_user:
            if not own:
                del self._by_user[guest.credential.principal.user_id]
            raise TooManyRequests("Too many open connections. Close some.", retry_after=10)
        own.add(guest)
        self._number += 1
        self._expect(guest)

    def renew(self, guest: Guest, credential: Credential) -> None:
        """Go on with a newer token of the same user. Raises `InvalidToken` for another's."""
        if credential.principal.user_id != guest.credential.principal.user_id:
            raise InvalidToken("The token belongs to another user.")
        guest.credential = credential
        self._expect(guest)

    def leave(self, guest: Guest) -> None:
        user_id = guest.credential.principal.user_id
        own = self._by_user.get(user_id, set())
        if guest in own:
            own.remove(guest)
            self._number -= 1
            if not own:
                del self._by_user[user_id]

    def end_access(self, right: AccessEnded) -> None:
        """Close what lived on a right that ended."""
        for guest in list(self._by_user.get(right.user_id, ())):
            if right.session_id in (None, guest.credential.principal.session_id):
                guest.sign_out(InvalidToken(_REASONS[right.reason]))

    def sweep(self, _now: float) -> None:
        """Close what has expired. Tokens expire by the wall clock."""
        now = time.time()
        while self._expiries and self._expiries[0][0] <= now:
            when, _, guest = heapq.heappop(self._expiries)
            present = guest in self._by_user.get(guest.credential.principal.user_id, ())
            if present and guest.credential.expires_at <= when:
                guest.sign_out(TokenExpired("The token has expired. Connect with a new one."))

    def _expect(self, guest: Guest) -> None:
        heapq.heappush(self._expiries, (guest.credential.expires_at, next(self._tiebreak), guest))
