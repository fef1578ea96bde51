"""Who is vouched for, when uploads began, and the largest weight in evaluation sums."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns.

    Of devices that enrolled before it is not known whether they had a token, so only attested ones are vouched for.
    """
    op.add_column("devices", sa.Column("vouched", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.execute("UPDATE devices SET vouched = (attestation <> '')")
    op.add_column("assignments", sa.Column("began", sa.Float(), nullable=True))
    op.add_column("evaluation_sums", sa.Column("largest", sa.Float(), nullable=False, server_default="0"))


def downgrade() -> None:
    """Remove them."""
    op.drop_column("evaluation_sums", "largest")
    op.drop_column("assignments", "began")
    op.drop_column("devices", "vouched")
