"""The tables. Rules that must hold for every program are constraints here, or triggers in
`migrations/`. Rights are decided in `ordertrack.policy` and `ordertrack.lifecycle`.
"""

from datetime import datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    Column,
    DateTime,
    ForeignKey,
    Identity,
    Index,
    Integer,
    Table,
    Text,
    UniqueConstraint,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column, relationship
from sqlalchemy.types import UserDefinedType

from ordertrack.extensions import Base
from ordertrack.lifecycle import Status
from ordertrack.policy import Role

EVENT_TYPES = ("created", "status_changed", "description_changed", "driver_assigned", "deleted")

# Created by migrations where the extension pg_trgm is available.
SEARCH_INDEXES = ("ix_order_events_description_search", "ix_users_search")


class XID8(UserDefinedType[str]):
    """PostgreSQL's 64-bit transaction id, which never wraps around."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "xid8"


def _one_of(column: str, values: Any, name: str) -> CheckConstraint:
    listed = ", ".join(f"'{value}'" for value in values)
    return CheckConstraint(f"{column} IN ({listed})", name=name)


class User(Base):
    __tablename__ = "users"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    name: Mapped[str] = mapped_column(Text)
    email: Mapped[str] = mapped_column(Text)
    password_hash: Mapped[str] = mapped_column(Text)
    role: Mapped[str] = mapped_column(Text, server_default=Role.USER.value)
    active: Mapped[bool] = mapped_column(server_default=text("true"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (
        _one_of("role", Role, "role"),
        # An address belongs to one user, in any case.
        Index("uq_users_email_lower", func.lower(email), unique=True),
        Index(
            "ix_users_drivers",
            func.lower(name),
            id,
            postgresql_where=text("role = 'driver' AND active"),
        ),
    )


class Session(Base):
    """One login. Its tokens contain its id; revoking it makes them all invalid."""

    __tablename__ = "sessions"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    # The client's User-Agent, so that users can tell their sessions apart.
    user_agent: Mapped[str] = mapped_column(Text, server_default="")
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())
    expires_at: Mapped[datetime] = mapped_column(DateTime(timezone=True))
    revoked_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    # For housekeeping.
    __table_args__ = (
        Index("ix_sessions_expires_at", "expires_at"),
        Index(
            "ix_sessions_revoked_at", "revoked_at", postgresql_where=text("revoked_at IS NOT NULL")
        ),
    )


_LIVE = text("deleted_at IS NULL")
_OPEN = text("deleted_at IS NULL AND status IN ('Pending', 'Processing', 'Shipped')")


class Order(Base):
    __tablename__ = "orders"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    customer_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    driver_id: Mapped[int | None] = mapped_column(ForeignKey("users.id"))
    description: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text, server_default=Status.PENDING.value)
    # The status before the present one. Stored, because an UPDATE returns it from here on every
    # PostgreSQL (RETURNING old.* came with 18).
    previous_status: Mapped[str | None] = mapped_column(Text)
    version: Mapped[int] = mapped_column(Integer, server_default=text("1"))
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp()
    )
    updated_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp()
    )
    deleted_at: Mapped[datetime | None] = mapped_column(DateTime(timezone=True))

    customer: Mapped[User] = relationship(foreign_keys=customer_id)
    driver: Mapped[User | None] = relationship(foreign_keys=driver_id)

    __table_args__ = (
        _one_of("status", Status, "status"),
        CheckConstraint("version >= 1", name="version"),
        # The paths of `services.order_walk`.
        Index("ix_orders_live_customer", customer_id, id, postgresql_where=_LIVE),
        Index("ix_orders_live_driver", driver_id, id, postgresql_where=_LIVE),
        Index("ix_orders_live_status", "status", id, postgresql_where=_LIVE),
        Index("ix_orders_live_created", "created_at", id, postgresql_where=_LIVE),
        Index("ix_orders_open_driver", driver_id, "status", id, postgresql_where=_OPEN),
        Index("ix_orders_deleted", id, postgresql_where=text("deleted_at IS NOT NULL")),
    )

    @property
    def is_deleted(self) -> bool:
        return self.deleted_at is not None


class OrderEvent(Base):
    """One change of one order: audit trail, recovery cursor and broadcast source in one row.

    Append-only: triggers refuse UPDATE, DELETE and TRUNCATE. Others set ``xid`` and ``created_at``
    (the order's ``updated_at``) in place of any inserted value. The actor's name and role, the
    customer and the driver are those of that time.
    """

    __tablename__ = "order_events"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    xid: Mapped[str] = mapped_column(XID8, server_default=text("pg_current_xact_id()"))
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    version: Mapped[int] = mapped_column(Integer)
    type: Mapped[str] = mapped_column(Text)
    status: Mapped[str] = mapped_column(Text)
    previous_status: Mapped[str | None] = mapped_column(Text)
    # No foreign key: users are never deleted, and it would lock the rows of the same few staff (FOR
    # KEY SHARE) in every change of every order.
    actor_id: Mapped[int] = mapped_column(BigInteger)
    actor_name: Mapped[str] = mapped_column(Text)
    actor_role: Mapped[str] = mapped_column(Text)
    note: Mapped[str | None] = mapped_column(Text)
    # What else changed: {"description": text} or {"driver": {"id", "name"} | null}.
    changes: Mapped[dict[str, Any] | None] = mapped_column(JSONB(none_as_null=True))
    customer_id: Mapped[int] = mapped_column(BigInteger)
    driver_id: Mapped[int | None] = mapped_column(BigInteger)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp()
    )

    __table_args__ = (
        UniqueConstraint(order_id, version),
        _one_of("type", EVENT_TYPES, "type"),
        _one_of("status", Status, "status"),
        CheckConstraint("version >= 1", name="version"),
        Index("ix_order_events_xid", "xid"),
    )


class Revocation(Base):
    """A session, or all sessions of a user, whose sockets must close: a logout, a new role, a
    deactivation. Append-only, except that logouts may be deleted after 30 days.

    The relay tails this table beside `order_events`, so that every process closes the sockets of a
    revoked session. ``session_id`` NULL means all sessions of the user. ``actor_id`` is the user
    that revoked it, NULL when it was done on the command line, which needs no login.
    """

    # The name that older releases know. Renaming the table would lock it against a running server,
    # and break a rolling upgrade from the release before.
    __tablename__ = "access_changes"

    id: Mapped[int] = mapped_column(BigInteger, Identity(), primary_key=True)
    xid: Mapped[str] = mapped_column(XID8, server_default=text("pg_current_xact_id()"))
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"))
    # No foreign key: a session may be deleted before this row.
    session_id: Mapped[int | None] = mapped_column(BigInteger)
    reason: Mapped[str] = mapped_column(Text)
    actor_id: Mapped[int | None] = mapped_column(BigInteger)
    old_role: Mapped[str | None] = mapped_column(Text)
    new_role: Mapped[str | None] = mapped_column(Text)
    created_at: Mapped[datetime] = mapped_column(
        DateTime(timezone=True), server_default=func.clock_timestamp()
    )

    __table_args__ = (
        _one_of("reason", ("signed_out", "role_changed", "deactivated"), "reason"),
        Index("ix_access_changes_xid", "xid"),
        Index(
            "ix_access_changes_signed_out",
            "created_at",
            postgresql_where=text("reason = 'signed_out'"),
        ),
    )


class IdempotencyKey(Base):
    """A key that a client sent with a POST, and the order that this created."""

    __tablename__ = "idempotency_keys"

    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), primary_key=True)
    key: Mapped[str] = mapped_column(Text, primary_key=True)
    request_hash: Mapped[str] = mapped_column(Text)
    order_id: Mapped[int | None] = mapped_column(ForeignKey("orders.id"))
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (Index("ix_idempotency_keys_created_at", "created_at"),)


# One row: the oldest revision whose code fits these tables (`services.schema`).
schema_compatibility = Table(
    "schema_compatibility", Base.metadata, Column("oldest_code", Text, nullable=False)
)
