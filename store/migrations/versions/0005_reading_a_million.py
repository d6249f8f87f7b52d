"""Indexes for reading a fleet of a million: pages of devices, a device by its name, connections of an earlier epoch."""

from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds them; `ix_devices_cohort_id` becomes one that gives a cohort's devices in order."""
    op.drop_index("ix_devices_cohort_id", table_name="devices")
    op.create_index("ix_devices_cohort_id_id", "devices", ["cohort_id", "id"], unique=False)
    op.create_index("ix_devices_product_id_id", "devices", ["product_id", "id"], unique=False)
    op.create_index("ix_devices_topic_name", "devices", ["topic_name"], unique=False)
    op.create_index("ix_connections_broker_epoch", "connections", ["broker", "state", "epoch"], unique=False)
