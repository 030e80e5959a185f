"""Sessions record the client that logged in"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

oldest_code = "0001"


def upgrade() -> None:
    # A constant default: no rewrite of the table, and old code, which ignores the column, works.
    op.add_column("sessions", sa.Column("user_agent", sa.Text, nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("sessions", "user_agent")
