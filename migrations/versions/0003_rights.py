"""The database sets the times of the log, records who revokes, and allows old rows to be deleted"""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"

# Code of that revision and later works on this schema: docs/operations.md, "Stopping and updating".
oldest_code = "0001"

# Younger rows may still be needed, by clients or to look something up.
KEPT = "interval '30 days'"

# Rows of these tables were never deleted before, so they may be large. The indexes are built
# CONCURRENTLY, as in 0002, before anything is locked, because every request reads `sessions`.
INDEXES = {
    "ix_sessions_expires_at": "sessions (expires_at)",
    "ix_sessions_revoked_at": "sessions (revoked_at) WHERE revoked_at IS NOT NULL",
    "ix_idempotency_keys_created_at": "idempotency_keys (created_at)",
    "ix_access_changes_signed_out": "access_changes (created_at) WHERE reason = 'signed_out'",
}
WAIT = "10min"

# Tables are named with their schema: a temporary table of the same name, which every role can
# create, would be found first.
FUNCTIONS = {
    # Ascending, also when the clock is set back: a history is read in the order of its versions.
    # Code of 0001, which writes the time itself, may append the event before it changes the order.
    "stamp_order": """
        DECLARE
            appended timestamptz;
        BEGIN
            IF TG_OP = 'INSERT' THEN
                NEW.created_at := clock_timestamp();
                NEW.updated_at := NEW.created_at;
            ELSIF NEW.version <> OLD.version THEN
                appended := NULL;
                IF NEW.updated_at <> OLD.updated_at THEN
                    SELECT created_at INTO appended FROM {schema}.order_events
                     WHERE order_id = NEW.id AND version = NEW.version;
                END IF;
                NEW.created_at := OLD.created_at;
                NEW.updated_at := coalesce(appended, greatest(clock_timestamp(),
                                           OLD.updated_at + interval '1 microsecond'));
                IF NEW.deleted_at IS NOT NULL AND OLD.deleted_at IS NULL THEN
                    NEW.deleted_at := NEW.updated_at;
                END IF;
            ELSE
                NEW.created_at := OLD.created_at;
                NEW.updated_at := OLD.updated_at;
            END IF;
            RETURN NEW;
        END""",
    # The event has the same time as the order's change.
    "stamp_order_event": """
        BEGIN
            NEW.xid := pg_current_xact_id();
            SELECT CASE WHEN version = NEW.version THEN updated_at
                        ELSE greatest(clock_timestamp(), updated_at + interval '1 microsecond') END
              INTO NEW.created_at FROM {schema}.orders WHERE id = NEW.order_id;
            NEW.created_at := coalesce(NEW.created_at, clock_timestamp());
            RETURN NEW;
        END""",
    "stamp_access_change": """
        BEGIN
            NEW.xid := pg_current_xact_id();
            NEW.created_at := clock_timestamp();
            RETURN NEW;
        END""",
    # Changes of roles and deactivations are kept; logouts are many, and needed only while sockets
    # of the session may be open.
    "keep_access_changes": f"""
        BEGIN
            IF OLD.reason = 'signed_out' AND OLD.created_at < now() - {KEPT} THEN
                RETURN OLD;
            END IF;
            RAISE EXCEPTION '% is append-only: only sign-outs older than 30 days may go',
                TG_TABLE_NAME USING ERRCODE = 'insufficient_privilege';
        END""",
}


def upgrade() -> None:
    _build_indexes()
    op.create_table("schema_compatibility", sa.Column("oldest_code", sa.Text, nullable=False))

    # Without this no session could ever be deleted, because this table is append-only.
    op.drop_constraint("fk_access_changes_session_id", "access_changes", type_="foreignkey")
    op.add_column("access_changes", sa.Column("actor_id", sa.BigInteger))
    op.add_column("access_changes", sa.Column("old_role", sa.Text))
    op.add_column("access_changes", sa.Column("new_role", sa.Text))

    schema = op.get_bind().scalar(sa.text("SELECT quote_ident(current_schema())"))
    for name, body in FUNCTIONS.items():
        code = body.replace("{schema}", schema)
        op.execute(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $${code}$$")
    op.execute(
        "CREATE TRIGGER orders_stamp BEFORE INSERT OR UPDATE ON orders"
        " FOR EACH ROW EXECUTE FUNCTION stamp_order()"
    )
    op.execute(
        "CREATE TRIGGER order_events_stamp BEFORE INSERT ON order_events"
        " FOR EACH ROW EXECUTE FUNCTION stamp_order_event()"
    )
    op.execute(
        "CREATE TRIGGER access_changes_stamp BEFORE INSERT ON access_changes"
        " FOR EACH ROW EXECUTE FUNCTION stamp_access_change()"
    )
    op.execute("DROP TRIGGER access_changes_append_only_rows ON access_changes")
    for trigger, when, function in (
        ("rows", "UPDATE", "refuse_to_rewrite_the_log"),
        ("deletes", "DELETE", "keep_access_changes"),
    ):
        op.execute(
            f"CREATE TRIGGER access_changes_append_only_{trigger} BEFORE {when} ON access_changes"
            f" FOR EACH ROW EXECUTE FUNCTION {function}()"
        )
        op.execute(
            f"ALTER TABLE access_changes ENABLE ALWAYS TRIGGER access_changes_append_only_{trigger}"
        )


def _build_indexes() -> None:
    """Build each index that does not exist, and again one that an earlier attempt left INVALID."""
    connection = op.get_bind()
    before = connection.scalar(sa.text("SHOW lock_timeout"))
    with op.get_context().autocommit_block():
        op.execute(f"SET lock_timeout = '{WAIT}'")
        try:
            for name, definition in INDEXES.items():
                valid = connection.scalar(
                    sa.text(
                        "SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"
                    ),
                    {"name": name},
                )
                if valid is False:
                    op.execute(f"DROP INDEX CONCURRENTLY {name}")
                if not valid:
                    op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")
        finally:
            op.execute(f"SET lock_timeout = '{before}'")


def downgrade() -> None:
    for trigger in ("rows", "deletes"):
        op.execute(f"DROP TRIGGER access_changes_append_only_{trigger} ON access_changes")
    op.execute(
        "CREATE TRIGGER access_changes_append_only_rows BEFORE UPDATE OR DELETE ON access_changes"
        " FOR EACH ROW EXECUTE FUNCTION refuse_to_rewrite_the_log()"
    )
    op.execute("ALTER TABLE access_changes ENABLE ALWAYS TRIGGER access_changes_append_only_rows")
    for table in ("orders", "order_events", "access_changes"):
        op.execute(f"DROP TRIGGER {table}_stamp ON {table}")
    for name in FUNCTIONS:
        op.execute(f"DROP FUNCTION {name}()")
    for name in INDEXES:
        op.execute(f"DROP INDEX {name}")
    for column in ("actor_id", "old_role", "new_role"):
        op.drop_column("access_changes", column)
    # NOT VALID: old rows refer to sessions that have been deleted.
    op.execute(
        "ALTER TABLE access_changes ADD CONSTRAINT fk_access_changes_session_id"
        " FOREIGN KEY (session_id) REFERENCES sessions (id) NOT VALID"
    )
    op.drop_table("schema_compatibility")
