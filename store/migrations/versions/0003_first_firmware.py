"""First firmware: signing keys, bundles, rollouts, overrides, attempts; counters of attempts."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Adds the tables of firmware, and room in events and counters for attempts."""
    op.create_table(
        "artifacts",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("product_id", sa.BigInteger(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name=op.f("fk_artifacts_product_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_artifacts")),
        sa.UniqueConstraint("product_id", "sha256", name=op.f("uq_artifacts_product_id_sha256")),
    )
    op.create_table(
        "signing_keys",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("product_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("key_id", sa.String(length=64), nullable=False),
        sa.Column("spki", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("revoked_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name=op.f("fk_signing_keys_product_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_signing_keys")),
        sa.UniqueConstraint("product_id", "key_id", name=op.f("uq_signing_keys_product_id_key_id")),
        sa.UniqueConstraint("product_id", "name", name=op.f("uq_signing_keys_product_id_name")),
    )
    op.create_table(
        "bundles",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("product_id", sa.BigInteger(), nullable=False),
        sa.Column("version", sa.String(length=64), nullable=False),
        sa.Column("bundle_seq", sa.BigInteger(), nullable=False),
        sa.Column("digest", sa.String(length=64), nullable=False),
        sa.Column("signing_key_id", sa.BigInteger(), nullable=False),
        sa.Column("envelope", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.CheckConstraint("bundle_seq > 0", name=op.f("ck_bundles_bundle_seq")),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name=op.f("fk_bundles_product_id")),
        sa.ForeignKeyConstraint(
            ["signing_key_id"], ["signing_keys.id"], name=op.f("fk_bundles_signing_key_id")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_bundles")),
        sa.UniqueConstraint("product_id", "bundle_seq", name=op.f("uq_bundles_product_id_bundle_seq")),
        sa.UniqueConstraint("product_id", "version", name=op.f("uq_bundles_product_id_version")),
    )
    op.create_table(
        "bundle_artifacts",
        sa.Column("bundle_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("position", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("artifact_id", sa.BigInteger(), nullable=False),
        sa.Column("name", sa.String(length=128), nullable=False),
        sa.ForeignKeyConstraint(
            ["artifact_id"], ["artifacts.id"], name=op.f("fk_bundle_artifacts_artifact_id")
        ),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundles.id"], name=op.f("fk_bundle_artifacts_bundle_id")),
        sa.PrimaryKeyConstraint("bundle_id", "position", name=op.f("pk_bundle_artifacts")),
    )
    with op.batch_alter_table("bundle_artifacts") as batch_op:
        batch_op.create_index(batch_op.f("ix_bundle_artifacts_artifact_id"), ["artifact_id"], unique=False)

    op.create_table(
        "due",
        sa.Column("device_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("source_id", sa.BigInteger(), nullable=False),
        sa.Column("broker", sa.String(length=64), nullable=False),
        sa.Column("since", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_due_device_id")),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_due")),
    )
    with op.batch_alter_table("due") as batch_op:
        batch_op.create_index("ix_due_source_id_since", ["source_id", "since"], unique=False)

    op.create_table(
        "overrides",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("product_id", sa.BigInteger(), nullable=False),
        sa.Column("bundle_id", sa.BigInteger(), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("starts_at", sa.BigInteger(), nullable=False),
        sa.Column("ends_at", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("removed_at", sa.BigInteger(), nullable=True),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundles.id"], name=op.f("fk_overrides_bundle_id")),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name=op.f("fk_overrides_product_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_overrides")),
    )
    with op.batch_alter_table("overrides") as batch_op:
        batch_op.create_index(batch_op.f("ix_overrides_product_id"), ["product_id"], unique=False)

    op.create_table(
        "rollouts",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("group_id", sa.BigInteger(), nullable=False),
        sa.Column("product_id", sa.BigInteger(), nullable=False),
        sa.Column("cohort_id", sa.BigInteger(), nullable=False),
        sa.Column("bundle_id", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("plan", sa.JSON(), nullable=False),
        sa.Column("start_at", sa.BigInteger(), nullable=False),
        sa.Column("created_at", sa.BigInteger(), nullable=False),
        sa.Column("started_at", sa.BigInteger(), nullable=True),
        sa.Column("ended_at", sa.BigInteger(), nullable=True),
        sa.Column("filled", sa.Boolean(), nullable=False),
        sa.Column("filled_to", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundles.id"], name=op.f("fk_rollouts_bundle_id")),
        sa.ForeignKeyConstraint(["cohort_id"], ["cohorts.id"], name=op.f("fk_rollouts_cohort_id")),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name=op.f("fk_rollouts_product_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollouts")),
    )
    with op.batch_alter_table("rollouts") as batch_op:
        batch_op.create_index(batch_op.f("ix_rollouts_bundle_id"), ["bundle_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_rollouts_group_id"), ["group_id"], unique=False)
        batch_op.create_index(batch_op.f("ix_rollouts_product_id"), ["product_id"], unique=False)
        batch_op.create_index("ix_rollouts_state_start_at", ["state", "start_at"], unique=False)
        batch_op.create_index(
            "uq_rollouts_open",
            ["cohort_id", "bundle_id"],
            unique=True,
            sqlite_where=sa.text("state <> 'cancelled'"),
            postgresql_where=sa.text("state <> 'cancelled'"),
        )

    op.create_table(
        "attempts",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("device_id", sa.BigInteger(), nullable=False),
        sa.Column("product_id", sa.BigInteger(), nullable=False),
        sa.Column("cohort_id", sa.BigInteger(), nullable=True),
        sa.Column("rollout_id", sa.BigInteger(), nullable=True),
        sa.Column("override_id", sa.BigInteger(), nullable=True),
        sa.Column("bundle_id", sa.BigInteger(), nullable=False),
        sa.Column("bundle_version", sa.String(length=64), nullable=False),
        sa.Column("bundle_seq", sa.BigInteger(), nullable=False),
        sa.Column("hardware_model", sa.String(length=64), nullable=False),
        sa.Column("from_version", sa.String(length=64), nullable=False),
        sa.Column("from_boot", sa.String(length=16), nullable=False),
        sa.Column("state", sa.String(length=24), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("accept_seconds", sa.Integer(), nullable=False),
        sa.Column("step_seconds", sa.Integer(), nullable=False),
        sa.Column("total_seconds", sa.Integer(), nullable=False),
        sa.Column("offered_at", sa.BigInteger(), nullable=False),
        sa.Column("stepped_at", sa.BigInteger(), nullable=False),
        sa.Column("percent", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=32), nullable=False),
        sa.Column("detail", sa.String(length=256), nullable=False),
        sa.Column("defer_until", sa.BigInteger(), nullable=True),
        sa.Column("finished_at", sa.BigInteger(), nullable=True),
        sa.Column("times_out_at", sa.BigInteger(), nullable=True),
        sa.CheckConstraint(
            "(finished_at IS NULL) = (times_out_at IS NOT NULL)", name=op.f("ck_attempts_end")
        ),
        sa.CheckConstraint("(rollout_id IS NULL) <> (override_id IS NULL)", name=op.f("ck_attempts_source")),
        sa.ForeignKeyConstraint(["bundle_id"], ["bundles.id"], name=op.f("fk_attempts_bundle_id")),
        sa.ForeignKeyConstraint(["cohort_id"], ["cohorts.id"], name=op.f("fk_attempts_cohort_id")),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_attempts_device_id")),
        sa.ForeignKeyConstraint(["override_id"], ["overrides.id"], name=op.f("fk_attempts_override_id")),
        sa.ForeignKeyConstraint(["product_id"], ["products.id"], name=op.f("fk_attempts_product_id")),
        sa.ForeignKeyConstraint(["rollout_id"], ["rollouts.id"], name=op.f("fk_attempts_rollout_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_attempts")),
    )
    with op.batch_alter_table("attempts") as batch_op:
        batch_op.create_index("ix_attempts_device_id_id", ["device_id", "id"], unique=False)
        batch_op.create_index(
            "ix_attempts_in_flight",
            ["rollout_id"],
            unique=False,
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )
        batch_op.create_index("ix_attempts_rollout_id_offered_at", ["rollout_id", "offered_at"], unique=False)
        batch_op.create_index(
            "ix_attempts_times_out_at",
            ["times_out_at"],
            unique=False,
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )
        batch_op.create_index(
            "uq_attempts_open",
            ["device_id"],
            unique=True,
            sqlite_where=sa.text("finished_at IS NULL"),
            postgresql_where=sa.text("finished_at IS NULL"),
        )

    op.create_table(
        "override_devices",
        sa.Column("override_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("device_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(["device_id"], ["devices.id"], name=op.f("fk_override_devices_device_id")),
        sa.ForeignKeyConstraint(
            ["override_id"], ["overrides.id"], name=op.f("fk_override_devices_override_id")
        ),
        sa.PrimaryKeyConstraint("override_id", "device_id", name=op.f("pk_override_devices")),
    )
    with op.batch_alter_table("override_devices") as batch_op:
        batch_op.create_index("ix_override_devices_device_id", ["device_id"], unique=False)

    with op.batch_alter_table("checkpoints") as batch_op:
        batch_op.alter_column(
            "word", existing_type=sa.VARCHAR(length=64), type_=sa.String(length=160), existing_nullable=False
        )

    with op.batch_alter_table("counters") as batch_op:
        batch_op.alter_column(
            "word", existing_type=sa.VARCHAR(length=64), type_=sa.String(length=160), existing_nullable=False
        )

    with op.batch_alter_table("devices") as batch_op:
        batch_op.add_column(
            sa.Column("highest_bundle_seq", sa.BigInteger(), server_default="0", nullable=False)
        )

    with op.batch_alter_table("events") as batch_op:
        batch_op.add_column(sa.Column("attempt_id", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("source_id", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("bundle_id", sa.BigInteger(), nullable=True))
        batch_op.add_column(sa.Column("hardware", sa.String(length=64), nullable=True))
        batch_op.add_column(sa.Column("reason", sa.String(length=32), nullable=True))
        batch_op.alter_column(
            "word", existing_type=sa.VARCHAR(length=64), type_=sa.String(length=160), existing_nullable=False
        )
        batch_op.alter_column(
            "before",
            existing_type=sa.VARCHAR(length=64),
            type_=sa.String(length=160),
            existing_nullable=False,
        )
