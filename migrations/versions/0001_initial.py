"""Users, sessions, orders and the append-only log"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

from ordertrack.models import XID8

revision = "0001"
down_revision = None

STATUSES = "('Pending', 'Processing', 'Shipped', 'Completed', 'Cancelled')"
APPEND_ONLY = ("order_events", "access_changes")


def _moment(name: str, default: str | None = None) -> sa.Column:
    return sa.Column(
        name,
        sa.DateTime(timezone=True),
        nullable=default is None,
        server_default=sa.text(default) if default else None,
    )


def _id() -> sa.Column:
    return sa.Column("id", sa.BigInteger, sa.Identity(), nullable=False)


def _ref(name: str, target: str, table: str, *, nullable: bool = False) -> tuple:
    return (
        sa.Column(name, sa.BigInteger, nullable=nullable),
        sa.ForeignKeyConstraint([name], [target], name=f"fk_{table}_{name}"),
    )


def upgrade() -> None:
    op.create_table(
        "users",
        _id(),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("email", sa.Text, nullable=False),
        sa.Column("password_hash", sa.Text, nullable=False),
        sa.Column("role", sa.Text, nullable=False, server_default="user"),
        sa.Column("active", sa.Boolean, nullable=False, server_default=sa.text("true")),
        _moment("created_at", "now()"),
        sa.PrimaryKeyConstraint("id", name="pk_users"),
        sa.CheckConstraint("role IN ('user', 'driver', 'admin')", name="role"),
    )
    op.create_index("uq_users_email_lower", "users", [sa.text("lower(email)")], unique=True)

    op.create_table(
        "sessions",
        _id(),
        *_ref("user_id", "users.id", "sessions"),
        _moment("created_at", "now()"),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        _moment("revoked_at"),
        sa.PrimaryKeyConstraint("id", name="pk_sessions"),
    )
    op.create_index("ix_sessions_user_id", "sessions", ["user_id"])

    op.create_table(
        "orders",
        _id(),
        *_ref("customer_id", "users.id", "orders"),
        *_ref("driver_id", "users.id", "orders", nullable=True),
        sa.Column("description", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False, server_default="Pending"),
        sa.Column("previous_status", sa.Text),
        sa.Column("version", sa.Integer, nullable=False, server_default=sa.text("1")),
        _moment("created_at", "clock_timestamp()"),
        _moment("updated_at", "clock_timestamp()"),
        _moment("deleted_at"),
        sa.PrimaryKeyConstraint("id", name="pk_orders"),
        sa.CheckConstraint(f"status IN {STATUSES}", name="status"),
        sa.CheckConstraint("version >= 1", name="version"),
    )
    op.create_index("ix_orders_customer", "orders", ["customer_id", sa.text("id DESC")])
    op.create_index("ix_orders_driver", "orders", ["driver_id", sa.text("id DESC")])
    op.create_index("ix_orders_status", "orders", ["status", sa.text("id DESC")])

    op.create_table(
        "order_events",
        _id(),
        sa.Column("xid", XID8, nullable=False, server_default=sa.text("pg_current_xact_id()")),
        *_ref("order_id", "orders.id", "order_events"),
        sa.Column("version", sa.Integer, nullable=False),
        sa.Column("type", sa.Text, nullable=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("previous_status", sa.Text),
        sa.Column("actor_id", sa.BigInteger, nullable=False),
        sa.Column("actor_name", sa.Text, nullable=False),
        sa.Column("actor_role", sa.Text, nullable=False),
        sa.Column("note", sa.Text),
        sa.Column("changes", postgresql.JSONB),
        sa.Column("customer_id", sa.BigInteger, nullable=False),
        sa.Column("driver_id", sa.BigInteger),
        _moment("created_at", "clock_timestamp()"),
        sa.PrimaryKeyConstraint("id", name="pk_order_events"),
        sa.UniqueConstraint("order_id", "version", name="uq_order_events_order_id_version"),
        sa.CheckConstraint(
            "type IN ('created', 'status_changed', 'description_changed', 'driver_assigned',"
            " 'deleted')",
            name="type",
        ),
        sa.CheckConstraint(f"status IN {STATUSES}", name="status"),
        sa.CheckConstraint("version >= 1", name="version"),
    )
    op.create_index("ix_order_events_xid", "order_events", ["xid"])

    op.create_table(
        "access_changes",
        _id(),
        sa.Column("xid", XID8, nullable=False, server_default=sa.text("pg_current_xact_id()")),
        *_ref("user_id", "users.id", "access_changes"),
        *_ref("session_id", "sessions.id", "access_changes", nullable=True),
        sa.Column("reason", sa.Text, nullable=False),
        _moment("created_at", "clock_timestamp()"),
        sa.PrimaryKeyConstraint("id", name="pk_access_changes"),
        sa.CheckConstraint(
            "reason IN ('signed_out', 'role_changed', 'deactivated')", name="reason"
        ),
    )
    op.create_index("ix_access_changes_xid", "access_changes", ["xid"])

    op.create_table(
        "idempotency_keys",
        *_ref("user_id", "users.id", "idempotency_keys"),
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("request_hash", sa.Text, nullable=False),
        *_ref("order_id", "orders.id", "idempotency_keys", nullable=True),
        _moment("created_at", "now()"),
        sa.PrimaryKeyConstraint("user_id", "key", name="pk_idempotency_keys"),
    )

    # Append-only for every role. ENABLE ALWAYS: also under session_replication_role=replica.
    op.execute(
        """
        CREATE FUNCTION refuse_to_rewrite_the_log() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            RAISE EXCEPTION '% is append-only: % refused', TG_TABLE_NAME, TG_OP
                USING ERRCODE = 'insufficient_privilege';
        END $$
        """
    )
    for table in APPEND_ONLY:
        op.execute(
            f"CREATE TRIGGER {table}_append_only_rows BEFORE UPDATE OR DELETE ON {table}"
            " FOR EACH ROW EXECUTE FUNCTION refuse_to_rewrite_the_log()"
        )
        op.execute(
            f"CREATE TRIGGER {table}_append_only_table BEFORE TRUNCATE ON {table}"
            " FOR EACH STATEMENT EXECUTE FUNCTION refuse_to_rewrite_the_log()"
        )
        for trigger in ("rows", "table"):
            op.execute(f"ALTER TABLE {table} ENABLE ALWAYS TRIGGER {table}_append_only_{trigger}")


def downgrade() -> None:
    # It would delete all tables, and the log must be kept. To start again, drop the database.
    raise RuntimeError("0001 cannot be undone: it would drop the log. Drop the database instead.")
