"""Accounts: registering, logging in and out, roles, deactivation."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, or_, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session as Transaction

from ordertrack import db
from ordertrack.db import transaction
from ordertrack.errors import EmailTaken, Forbidden, InvalidCredentials, InvalidToken, NotFound
from ordertrack.models import Revocation, Session, User
from ordertrack.policy import Caller, Role
from ordertrack.services import callers, passwords, sessions

# Longer than any browser's; clients may send anything.
_MAX_USER_AGENT = 300


@dataclass(frozen=True, slots=True)
class Account:
    """A user without their password."""

    id: int
    name: str
    email: str
    role: Role
    active: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Login:
    """An account and its session, new or continued: what tokens are made from."""

    account: Account
    session_id: int


def register(name: str, email: str, password: str, role: Role = Role.USER) -> Account:
    """Create an account. Only the command line gives a *role*.

    Raises `EmailTaken` when the address, in any case, belongs to another account.
    """
    password_hash = passwords.hash_password(password)
    try:
        with transaction() as t:
            user = User(name=name, email=email, password_hash=password_hash, role=role.value)
            t.add(user)
            t.flush()
            return _account(user)
    except IntegrityError as error:
        if "uq_users_email_lower" in str(error.orig):
            raise EmailTaken("An account with this e-mail address exists already.") from error
        raise


def log_in(email: str, password: str, lifetime: timedelta, *, user_agent: str = "") -> Login:
    """Check the credentials and start a session that expires after *lifetime*.

    *user_agent* is stored, so that users can tell their sessions apart.

    Raises `InvalidCredentials` for an unknown address, a wrong password and a deactivated account
    alike, after the same amount of work.
    """
    with transaction() as t:
        user = t.scalar(select(User).where(func.lower(User.email) == func.lower(email)))
        stored = user.password_hash if user else passwords.DUMMY_HASH
        user_id = user.id if user else None
    # No transaction is open while the hash is computed.
    matches = passwords.matches(stored, password)
    if user_id is None or not matches:
        raise _refused()
    with transaction() as t:
        # FOR SHARE: a deactivation either waits for this session and revokes it, or is seen here.
        user = t.get(User, user_id, with_for_update={"read": True}, populate_existing=True)
        if user is None or not user.active or user.password_hash != stored:
            raise _refused()
        session = Session(
            user_id=user.id,
            expires_at=datetime.now(UTC) + lifetime,
            user_agent=user_agent[:_MAX_USER_AGENT],
        )
        t.add(session)
        t.flush()
        return Login(_account(user), session.id)


def _refused() -> InvalidCredentials:
    return InvalidCredentials("E-mail address or password is wrong.")


def me(caller: Caller) -> Account:
    """The caller's own account. Raises `InvalidToken` when the session was revoked."""
    with transaction() as t:
        actor = callers.resolve(t, caller)
        return _account(t.get_one(User, actor.id))


def log_out(caller: Caller) -> None:
    """Revoke the caller's session, and with it both its tokens. Idempotent."""
    with transaction() as t:
        sessions.revoke_where(t, Session.user_id == caller.user_id, Session.id == caller.session_id)


def list_users(
    caller: Caller, *, words: str | None = None, after: int = 0, limit: int = 100
) -> list[Account]:
    """Accounts with id > *after*, ascending; with *words*, those whose name or address has them.

    Raises `Forbidden` unless the caller is an admin.
    """
    with transaction() as t:
        callers.require_admin(callers.resolve(t, caller))
        wanted = select(User).where(User.id > after).order_by(User.id).limit(limit)
        if words:
            wanted = wanted.where(
                or_(
                    User.name.icontains(words, autoescape=True),
                    User.email.icontains(words, autoescape=True),
                )
            )
        return [_account(user) for user in t.scalars(wanted)]


@dataclass(frozen=True, slots=True)
class Driver:
    """A driver that orders can be given to."""

    id: int
    name: str


# Along ix_users_drivers.
_DRIVERS = db.Statement(
    """SELECT u.id, u.name FROM users u WHERE u.role = 'driver' AND u.active
        ORDER BY lower(u.name), u.id"""
)


def drivers() -> list[Driver]:
    """The active drivers, by name."""
    return [Driver(*row) for row in _DRIVERS.all()]


def change_user(
    caller: Caller, user_id: int, *, role: Role | None = None, active: bool | None = None
) -> Account:
    """Change a user's role, or activate or deactivate it. Idempotent.

    Raises `Forbidden` unless the caller is an admin, and when admins would end their own rights;
    `NotFound` when there is no such user.
    """
    with transaction() as t:
        users = _locked(t, {caller.user_id, user_id})
        actor = callers.resolve(t, caller)
        callers.require_admin(actor)
        user = users.get(user_id)
        if user is None:
            raise NotFound("There is no such user.")
        if user.id == actor.id and (role not in (None, Role.ADMIN) or active is False):
            raise Forbidden("You cannot take your own admin rights away; ask another admin.")
        _apply(t, user, role, active, by=actor.id)
        t.flush()
        return _account(user)


def _locked(t: Transaction, ids: set[int]) -> dict[int, User]:
    """Users under their row locks. The caller is among them: when two admins demote each other at
    the same time, the second is refused.
    """
    found = t.scalars(
        select(User)
        .where(User.id.in_(ids))
        .order_by(User.id)  # always in the same order, which prevents deadlocks
        .with_for_update(key_share=True)
    )
    return {user.id: user for user in found}


def set_role(email: str, role: Role) -> Account:
    """Change a role from the command line, which needs no caller. Raises `NotFound`."""
    with transaction() as t:
        user = t.scalar(
            select(User)
            .where(func.lower(User.email) == func.lower(email))
            .with_for_update(key_share=True)
        )
        if user is None:
            raise NotFound(f"There is no user with the address {email}.")
        _apply(t, user, role, None, by=None)
        t.flush()
        return _account(user)


def all_users() -> list[Account]:
    """Every account, by id; for the command line."""
    with transaction() as t:
        return [_account(user) for user in t.scalars(select(User).order_by(User.id))]


def _apply(
    t: Transaction, user: User, role: Role | None, active: bool | None, *, by: int | None
) -> None:
    before = user.role
    if role is not None and role.value != before:
        user.role = role.value
        t.add(
            Revocation(
                user_id=user.id,
                reason="role_changed",
                actor_id=by,
                old_role=before,
                new_role=role.value,
            )
        )
    if active is not None and active != user.active:
        user.active = active
        if not active:
            t.execute(
                update(Session)
                .where(Session.user_id == user.id, Session.revoked_at.is_(None))
                .values(revoked_at=func.now())
            )
            t.add(
                Revocation(user_id=user.id, reason="deactivated", actor_id=by, old_role=user.role)
            )


def _account(user: User) -> Account:
    return Account(
        user.id, user.name, user.email, Role(user.role), bool(user.active), user.created_at
    )


def continue_session(caller: Caller) -> Login:
    """The session of a refresh token, for new access tokens.

    Raises `InvalidToken` when the session was revoked or has expired, or the user was deactivated.
    """
    with transaction() as t:
        actor = callers.resolve(t, caller)
        session = t.get_one(Session, caller.session_id)
        if session.expires_at <= datetime.now(UTC):
            raise InvalidToken("This session has expired. Log in again.")
        return Login(_account(t.get_one(User, actor.id)), session.id)
