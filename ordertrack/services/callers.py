"""Who is asking: from what a token proves to what the database says now."""

from sqlalchemy import select
from sqlalchemy.orm import Session as Transaction

from ordertrack import db
from ordertrack.errors import Forbidden, InvalidToken
from ordertrack.models import Session, User
from ordertrack.policy import Actor, Caller, Role

# The caller, in statements of one's own. Binds :user and :session; no row when the
# session has ended or the user was deactivated. `CALLER` declares their types.
ACTOR_CTE = """
    actor AS (
        SELECT u.id, u.name, u.role
          FROM users u JOIN sessions s ON s.user_id = u.id
         WHERE u.id = :user AND u.active
           AND s.id = :session AND s.revoked_at IS NULL)
"""
CALLER = {"user": "bigint", "session": "bigint"}


def resolve(transaction: Transaction, caller: Caller) -> Actor:
    """The caller as the database knows it in this transaction.

    Raises `InvalidToken` when the session was signed out or the user deactivated.
    """
    row = transaction.execute(
        select(User.id, User.name, User.role)
        .join(Session, Session.user_id == User.id)
        .where(
            User.id == caller.user_id,
            User.active,
            Session.id == caller.session_id,
            Session.revoked_at.is_(None),
        )
    ).one_or_none()
    if row is None:
        raise signed_out()
    return Actor(row.id, row.name, Role(row.role))


_IDENTIFY = db.Statement(f"WITH {ACTOR_CTE} SELECT id, name, role FROM actor", **CALLER)


def identify(caller: Caller) -> Actor:
    """The caller as the database knows it now, in a statement of its own. Raises `InvalidToken`."""
    row = _IDENTIFY.one(user=caller.user_id, session=caller.session_id)
    if row is None:
        raise signed_out()
    return Actor(row.id, row.name, Role(row.role))


def require_admin(actor: Actor) -> None:
    if actor.role is not Role.ADMIN:
        raise Forbidden("Only admins may do this.")


def require_staff(actor: Actor) -> None:
    if not actor.is_staff:
        raise Forbidden("Only drivers and admins may do this.")


def signed_out() -> InvalidToken:
    return InvalidToken("This session has been signed out. Log in again.")
