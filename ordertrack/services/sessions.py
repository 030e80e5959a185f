"""Lists a user's open sessions, and revokes them."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session as Transaction

from ordertrack.db import transaction
from ordertrack.errors import NotFound
from ordertrack.models import Revocation, Session
from ordertrack.policy import Caller
from ordertrack.services import callers

# A list of more sessions is neither useful nor likely; the newest are shown.
MAX_SHOWN = 100


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A session that is neither revoked nor expired. ``user_agent`` may be empty."""

    id: int
    user_agent: str
    created_at: datetime
    expires_at: datetime
    is_current: bool


def list_open(caller: Caller) -> list[OpenSession]:
    """The caller's open sessions, newest first."""
    with transaction() as t:
        actor = callers.resolve(t, caller)
        is_current = Session.id == caller.session_id
        found = t.execute(
            select(
                Session.id, Session.user_agent, Session.created_at, Session.expires_at, is_current
            )
            .where(
                Session.user_id == actor.id,
                Session.revoked_at.is_(None),
                Session.expires_at > func.now(),
            )
            .order_by(Session.id.desc())
            .limit(MAX_SHOWN)
        )
        return [OpenSession(*row) for row in found]


def revoke(caller: Caller, session_id: int) -> None:
    """Revoke one of the caller's sessions. Raises `NotFound` when it is not among the open ones."""
    with transaction() as t:
        actor = callers.resolve(t, caller)
        if not revoke_where(t, Session.user_id == actor.id, Session.id == session_id):
            raise NotFound("There is no such open session.")


def revoke_where(t: Transaction, *which: ColumnElement[bool]) -> int:
    """Revoke the open sessions that match all of *which*, in transaction *t*; how many there were.

    Appends a `Revocation` for each. The relay of every process reads these rows and closes the
    sessions' sockets.
    """
    revoked = t.execute(
        update(Session)
        .where(Session.revoked_at.is_(None), *which)
        .values(revoked_at=func.now())
        .returning(Session.user_id, Session.id)
    ).all()
    t.add_all(
        Revocation(user_id=u, session_id=s, reason="signed_out", actor_id=u) for u, s in revoked
    )
    return len(revoked)
