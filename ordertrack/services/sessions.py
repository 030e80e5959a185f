"""A user's open sessions: which there are, and ending them."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.orm import Session as Transaction

from ordertrack.db import transaction
from ordertrack.errors import NotFound
from ordertrack.models import Revocation, Session
from ordertrack.policy import Caller
from ordertrack.services import callers

# More are neither useful to look at nor likely; the newest are shown.
MOST_SHOWN = 100


@dataclass(frozen=True, slots=True)
class OpenSession:
    """A sign-in that is still good. ``user_agent`` is what the client called itself, or empty."""

    id: int
    user_agent: str
    created_at: datetime
    expires_at: datetime
    is_current: bool


def list_open(caller: Caller) -> list[OpenSession]:
    """The caller's sessions that are neither ended nor expired, newest first."""
    with transaction() as t:
        actor = callers.resolve(t, caller)
        found = t.scalars(
            select(Session)
            .where(
                Session.user_id == actor.id,
                Session.revoked_at.is_(None),
                Session.expires_at > func.now(),
            )
            .order_by(Session.id.desc())
            .limit(MOST_SHOWN)
        )
        return [
            OpenSession(
                session.id,
                session.user_agent,
                session.created_at,
                session.expires_at,
                session.id == caller.session_id,
            )
            for session in found
        ]


def end(caller: Caller, session_id: int) -> None:
    """End one of the caller's sessions. Raises `NotFound` when it has no such open session."""
    with transaction() as t:
        actor = callers.resolve(t, caller)
        if not end_where(t, Session.user_id == actor.id, Session.id == session_id):
            raise NotFound("There is no such open session.")


def end_all(t: Transaction, user_id: int, *, but: int | None = None) -> None:
    """End a user's sessions, all or all but one, in the caller's transaction."""
    end_where(t, Session.user_id == user_id, *([] if but is None else [Session.id != but]))


def end_where(t: Transaction, *which: ColumnElement[bool]) -> int:
    """End the open sessions of which all of *which* is true, in the caller's transaction.

    Answers how many there were. Each leaves a row in the log of ended rights.
    """
    ended = t.execute(
        update(Session)
        .where(Session.revoked_at.is_(None), *which)
        .values(revoked_at=func.now())
        .returning(Session.user_id, Session.id)
    ).all()
    # The relay reads these rows, in every process, and closes the sessions' sockets.
    t.add_all(
        Revocation(user_id=u, session_id=s, reason="signed_out", actor_id=u) for u, s in ended
    )
    return len(ended)
