"""Passwords: hashing, changing one's own, and one-time reset links."""

import hashlib
import hmac
import logging
from dataclasses import dataclass

from argon2 import PasswordHasher
from argon2.exceptions import VerificationError
from sqlalchemy import func, select
from sqlalchemy.orm import Session as Transaction

from ordertrack import logs
from ordertrack.db import transaction
from ordertrack.errors import NotFound, ValidationFailed
from ordertrack.eventlet_support import run_in_thread
from ordertrack.models import Session, User
from ordertrack.policy import Caller
from ordertrack.services import callers, sessions

log = logging.getLogger(__name__)

# argon2id with the parameters that OWASP's password storage cheat sheet recommends first: 19 MiB,
# t=2, p=1.
_hasher = PasswordHasher(time_cost=2, memory_cost=19 * 1024, parallelism=1)

# Verified when the address is unknown, so that both refusals take the same time.
DUMMY_HASH = _hasher.hash("no account has this password")


def hash_password(password: str) -> str:
    """Hash *password* for storing, off the event loop."""
    logs.hide(password)
    return run_in_thread(_hasher.hash, password)


def matches(stored: str, password: str) -> bool:
    """Whether *password* is the one whose hash is *stored*; computed off the event loop."""
    logs.hide(password)
    return run_in_thread(_verify, stored, password)


def _verify(stored: str, password: str) -> bool:
    try:
        return _hasher.verify(stored, password)
    except VerificationError:
        return False


# --- one's own -----------------------------------------------------------------------------------


def change(caller: Caller, current: str, new: str) -> None:
    """Set the caller's password and revoke their other sessions.

    Raises `ValidationFailed` at ``/current_password`` when *current* is wrong, `InvalidToken`.
    """
    with transaction() as t:
        stored = t.get_one(User, callers.resolve(t, caller).id).password_hash
    # No transaction is open while hashes are computed.
    if not matches(stored, current):
        raise ValidationFailed.at("/current_password", "is not your current password")
    new_hash = hash_password(new)
    with transaction() as t:
        user = _locked(t, caller.user_id)
        callers.resolve(t, caller)  # again: the session may have been revoked during the wait
        if user is None or user.password_hash != stored:
            raise ValidationFailed.at("/current_password", "was changed meanwhile")
        user.password_hash = new_hash
        others = Session.id != caller.session_id
        sessions.revoke_where(t, Session.user_id == user.id, others)


# --- one-time links ------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reset:
    """Permission to set one user's password, until that password changes.

    ``fingerprint`` is derived from the stored hash, so a link works once, without a table of links.
    `ordertrack.auth` signs it into a link that expires.
    """

    user_id: int
    fingerprint: str


def reset_for(email: str) -> Reset:
    """A permission for the command line, which needs no caller. Raises `NotFound`."""
    with transaction() as t:
        user = t.scalar(select(User).where(func.lower(User.email) == func.lower(email)))
        if user is None or not user.active:
            raise NotFound(f"There is no active user with the address {email}.")
        return Reset(user.id, _fingerprint(user))


def reset_by_admin(caller: Caller, user_id: int) -> Reset:
    """A permission that an admin hands to the user. Raises `Forbidden`, `NotFound`."""
    with transaction() as t:
        admin = callers.resolve(t, caller)
        callers.require_admin(admin)
        user = t.get(User, user_id)
        if user is None or not user.active:
            raise NotFound("There is no such active user.")
        log.info("password reset link made", extra=logs.fields(admin=admin.id, user=user.id))
        return Reset(user.id, _fingerprint(user))


def redeem(reset: Reset, password: str) -> None:
    """Set the password by a reset link and revoke all of the user's sessions.

    Raises `ValidationFailed` at ``/token`` when the link was used, the password was changed since
    it was made, or the user was deactivated.
    """
    new_hash = hash_password(password)
    with transaction() as t:
        user = _locked(t, reset.user_id)
        if (
            user is None
            or not user.active
            or not hmac.compare_digest(_fingerprint(user), reset.fingerprint)
        ):
            raise invalid_link()
        user.password_hash = new_hash
        sessions.revoke_where(t, Session.user_id == user.id)


def invalid_link() -> ValidationFailed:
    """The error for a link that is wrong, expired or used: they look alike."""
    return ValidationFailed.at("/token", "is not valid any more; ask for a new link")


def _locked(t: Transaction, user_id: int) -> User | None:
    return t.get(User, user_id, with_for_update={"key_share": True}, populate_existing=True)


def _fingerprint(user: User) -> str:
    return hashlib.sha256(user.password_hash.encode()).hexdigest()[:32]
