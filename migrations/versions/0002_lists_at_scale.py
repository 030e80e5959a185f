"""Indexes for lists of any length, built without blocking writers

Each is built CONCURRENTLY, which is possible only outside a transaction. If it is interrupted, the
migration is not marked as done, and the next attempt continues where this one stopped.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"

oldest_code = "0001"

log = logging.getLogger("ordertrack.migrations")

# CREATE INDEX CONCURRENTLY waits for every transaction that is older than itself, and blocks none
# meanwhile. A transaction that stays open for longer than this was left open by mistake.
WAIT = "10min"

LIVE = "deleted_at IS NULL"

INDEXES = {
    "ix_orders_live_customer": f"orders (customer_id, id) WHERE {LIVE}",
    "ix_orders_live_driver": f"orders (driver_id, id) WHERE {LIVE}",
    "ix_orders_live_status": f"orders (status, id) WHERE {LIVE}",
    "ix_orders_live_created": f"orders (created_at, id) WHERE {LIVE}",
    "ix_orders_open_driver": "orders (driver_id, status, id)"
    f" WHERE {LIVE} AND status IN ('Pending', 'Processing', 'Shipped')",
    "ix_orders_deleted": "orders (id) WHERE deleted_at IS NOT NULL",
    "ix_users_drivers": "users (lower(name), id) WHERE role = 'driver' AND active",
}

# The indexes that are replaced.
OLD = {
    "ix_orders_customer": "orders (customer_id, id DESC)",
    "ix_orders_driver": "orders (driver_id, id DESC)",
    "ix_orders_status": "orders (status, id DESC)",
}

# For text search, if pg_trgm is available. Descriptions are indexed in the log, which has each
# once, and not in `orders`, where each change of a status would write the some fifty entries of its
# text again. A short pending list limits how many entries one insert may have to merge.
SEARCH = {
    "ix_order_events_description_search": "order_events USING gin"
    " ((changes ->> 'description') {trgm}) WITH (gin_pending_list_limit = 256)"
    " WHERE type IN ('created', 'description_changed')",
    "ix_users_search": "users USING gin (name {trgm}, email {trgm})"
    " WITH (gin_pending_list_limit = 256)",
}


def upgrade() -> None:
    with _outside_a_transaction():
        for name, definition in INDEXES.items():
            _build(name, definition)
        for name in OLD:
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")
        operators = _trigram_operators()
        if operators is None:
            return
        for name, definition in SEARCH.items():
            _build(name, definition.format(trgm=operators))


def downgrade() -> None:
    with _outside_a_transaction():
        for name, definition in OLD.items():
            _build(name, definition)
        for name in (*SEARCH, *INDEXES):
            op.execute(f"DROP INDEX CONCURRENTLY IF EXISTS {name}")


@contextmanager
def _outside_a_transaction() -> Iterator[None]:
    connection = op.get_bind()
    before = connection.scalar(sa.text("SHOW lock_timeout"))
    with op.get_context().autocommit_block():
        op.execute(f"SET lock_timeout = '{WAIT}'")
        try:
            yield
        finally:
            op.execute(f"SET lock_timeout = '{before}'")


def _build(name: str, definition: str) -> None:
    """Build the index if it does not exist, or again if an earlier attempt left it INVALID."""
    valid = op.get_bind().scalar(
        sa.text("SELECT indisvalid FROM pg_index WHERE indexrelid = to_regclass(:name)"),
        {"name": name},
    )
    if valid:
        return
    if valid is False:
        op.execute(f"DROP INDEX CONCURRENTLY {name}")
    op.execute(f"CREATE INDEX CONCURRENTLY {name} ON {definition}")


def _trigram_operators() -> str | None:
    """The name of pg_trgm's operator class; None if the extension is not available.

    Then a line in the log says so, and a search reads a bounded number of orders instead.
    """
    connection = op.get_bind()
    try:
        connection.execute(sa.text("CREATE EXTENSION IF NOT EXISTS pg_trgm"))
    except sa.exc.DBAPIError as error:
        reason = str(error.orig).strip().splitlines()[0]
        log.info("Without pg_trgm (%s) search looks at the newest orders only, page by page. "
                 "docs/operations.md says how to add it later.", reason)  # fmt: skip
        return None
    return connection.scalar(
        sa.text(
            """SELECT quote_ident(nspname) || '.gin_trgm_ops' FROM pg_opclass
                 JOIN pg_namespace n ON n.oid = opcnamespace WHERE opcname = 'gin_trgm_ops'"""
        )
    )
