"""What places in rounds are given by: who asked, who was invited, who let a task run out, where a device came from."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns."""
    op.add_column("devices", sa.Column("source", sa.String(length=8), nullable=False, server_default=""))
    op.add_column("devices", sa.Column("lapses", sa.Integer(), nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("rests_until", sa.Float(), nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("asked", sa.Float(), nullable=False, server_default="0"))
    op.add_column("devices", sa.Column("invited", sa.Integer(), nullable=False, server_default="-1"))
    op.create_index("ix_devices_asked", "devices", ["asked"], unique=False)
    op.create_index("ix_devices_invited", "devices", ["invited"], unique=False)


def downgrade() -> None:
    """Remove them."""
    op.drop_index("ix_devices_invited", table_name="devices")
    op.drop_index("ix_devices_asked", table_name="devices")
    with op.batch_alter_table("devices") as table:
        for name in ("invited", "asked", "rests_until", "lapses", "source"):
            table.drop_column(name)
