"""Looks up the user behind a verified token: name, role, and whether the session is still good.

A token proves a user and a session for some minutes; what its user may do can change in between. So
every use case reads the user's row again, in the statement or transaction that does the work.
"""

from typing import Any

from sqlalchemy import text
from sqlalchemy.orm import Session as Transaction

from ordertrack import db
from ordertrack.errors import Forbidden, InvalidToken
from ordertrack.policy import Actor, Caller, DriverScope, Role

# The caller `a` of a larger statement, whose parameters are those of `parameters`; no row when the
# session was revoked or the user deactivated. `sees_all` is `policy.Actor.sees_all` in SQL.
ACTOR_CTE = """
    actor AS (
        SELECT u.id, u.name, u.role,
               (u.role = 'admin' OR u.role = 'driver' AND :drivers_see_all) AS sees_all
          FROM users u JOIN sessions s ON s.user_id = u.id
         WHERE u.id = :user AND u.active
           AND s.id = :session AND s.revoked_at IS NULL)
"""
# One of several callers, the row `w` of a larger statement with its user and session. LIMIT makes
# PostgreSQL look each up by its id, however many it expects, and not read all users.
GOOD_SESSION = """
    LATERAL (SELECT u.id, u.name, u.role
               FROM users u JOIN sessions s ON s.user_id = u.id
              WHERE u.id = w.user_id AND u.active
                AND s.id = w.session_id AND s.revoked_at IS NULL
              LIMIT 1)
"""
CALLER = {"user": "bigint", "session": "bigint", "drivers_see_all": "boolean"}

# What `actor_of` reads.
ACTOR_COLUMNS = "a.id AS actor_id, a.name AS actor_name, a.role AS actor_role"

# Whether the driver or admin `a` may see the order `o` as such (owners may see theirs in any case).
STAFF_SEES = "(a.sees_all OR o.driver_id = a.id)"


def parameters(caller: Caller) -> dict[str, Any]:
    """The values of `ACTOR_CTE`'s parameters."""
    return {
        "user": caller.user_id,
        "session": caller.session_id,
        "drivers_see_all": caller.scope is DriverScope.ALL,
    }


# The caller alone.
_IDENTIFY_SQL = f"WITH {ACTOR_CTE} SELECT {ACTOR_COLUMNS} FROM actor a"
_IDENTIFY = db.Statement(_IDENTIFY_SQL, **CALLER)


def identify(caller: Caller) -> Actor:
    """The caller as the database knows it now, in a statement of its own.

    Raises `InvalidToken` when the session was revoked or the user deactivated.
    """
    return actor_of(caller, _IDENTIFY.one(**parameters(caller)))


def resolve(transaction: Transaction, caller: Caller) -> Actor:
    """The same within *transaction*."""
    rows = transaction.execute(text(_IDENTIFY_SQL), parameters(caller))
    return actor_of(caller, rows.one_or_none())


def actor_of(caller: Caller, row: Any) -> Actor:
    """The caller in a row with `ACTOR_COLUMNS`. Raises `InvalidToken` when there is no row."""
    if row is None:
        raise session_revoked()
    return Actor(row.actor_id, row.actor_name, Role(row.actor_role), caller.scope)


def require_admin(actor: Actor) -> None:
    """Raises `Forbidden` unless *actor* is an admin."""
    if actor.role is not Role.ADMIN:
        raise Forbidden("Only admins may do this.")


def require_staff(actor: Actor) -> None:
    """Raises `Forbidden` unless *actor* is a driver or an admin."""
    if not actor.is_staff:
        raise Forbidden("Only drivers and admins may do this.")


def session_revoked() -> InvalidToken:
    """The error for a token whose session was revoked or whose user was deactivated."""
    return InvalidToken("This session has been signed out. Log in again.")
