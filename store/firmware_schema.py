"""The tables of firmware: signing keys, bundles, rollouts, overrides, attempts, and who is due for an offer."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Table,
    UniqueConstraint,
    text,
)

from store.schema import at_column as _at
from store.schema import id_column as _id
from store.schema import metadata as metadata  # whoever needs all tables asks here
from store.schema import reference as _ref

signing_keys = Table(
    "signing_keys",
    metadata,
    _id(),
    _ref("product_id", "products.id"),
    Column("name", String(64), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("spki", LargeBinary, nullable=False),
    _at("created_at"),
    _at("revoked_at", nullable=True),
    UniqueConstraint("product_id", "name"),
    UniqueConstraint("product_id", "key_id"),
)

artifacts = Table(
    "artifacts",
    metadata,
    _id(),
    _ref("product_id", "products.id"),
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    _at("created_at"),
    UniqueConstraint("product_id", "sha256"),
)

bundles = Table(
    "bundles",
    metadata,
    _id(),
    _ref("product_id", "products.id"),
    Column("version", String(64), nullable=False),
    Column("bundle_seq", BigInteger, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("signing_key_id", BigInteger, ForeignKey("signing_keys.id"), nullable=False),
    Column("envelope", LargeBinary, nullable=False),
    _at("created_at"),
    UniqueConstraint("product_id", "version"),
    UniqueConstraint("product_id", "bundle_seq"),
    CheckConstraint("bundle_seq > 0", name="bundle_seq"),
)

bundle_artifacts = Table(
    "bundle_artifacts",
    metadata,
    Column("bundle_id", BigInteger, ForeignKey("bundles.id"), primary_key=True, autoincrement=False),
    Column("position", Integer, primary_key=True, autoincrement=False),
    _ref("artifact_id", "artifacts.id", index=True),
    Column("name", String(128), nullable=False),
)

rollouts = Table(
    "rollouts",
    metadata,
    _id(),
    Column("group_id", BigInteger, nullable=False, index=True),
    _ref("product_id", "products.id", index=True),
    _ref("cohort_id", "cohorts.id"),
    _ref("bundle_id", "bundles.id", index=True),
    Column("state", String(16), nullable=False),
    Column("plan", JSON, nullable=False),
    _at("start_at"),
    _at("created_at"),
    _at("started_at", nullable=True),
    _at("ended_at", nullable=True),
    Column("filled", Boolean, nullable=False),
    Column("filled_to", BigInteger, nullable=False),
    Index("ix_rollouts_state_start_at", "state", "start_at"),
    Index(
        "uq_rollouts_open",
        "cohort_id",
        "bundle_id",
        unique=True,
        sqlite_where=text("state <> 'cancelled'"),
        postgresql_where=text("state <> 'cancelled'"),
    ),
)

overrides = Table(
    "overrides",
    metadata,
    _id(),
    _ref("product_id", "products.id", index=True),
    _ref("bundle_id", "bundles.id"),
    Column("plan", JSON, nullable=False),
    _at("starts_at"),
    _at("ends_at", nullable=True),
    _at("created_at"),
    _at("removed_at", nullable=True),
)

override_devices = Table(
    "override_devices",
    metadata,
    Column("override_id", BigInteger, ForeignKey("overrides.id"), primary_key=True, autoincrement=False),
    Column("device_id", BigInteger, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Index("ix_override_devices_device_id", "device_id"),
)

_OPEN = text("finished_at IS NULL")

attempts = Table(
    "attempts",
    metadata,
    _id(),
    _ref("device_id", "devices.id"),
    _ref("product_id", "products.id"),
    _ref("cohort_id", "cohorts.id", nullable=True),
    _ref("rollout_id", "rollouts.id", nullable=True),
    _ref("override_id", "overrides.id", nullable=True),
    _ref("bundle_id", "bundles.id"),
    Column("bundle_version", String(64), nullable=False),
    Column("bundle_seq", BigInteger, nullable=False),
    Column("hardware_model", String(64), nullable=False),
    Column("from_version", String(64), nullable=False),
    Column("from_boot", String(16), nullable=False),
    Column("state", String(24), nullable=False),
    Column("revision", BigInteger, nullable=False),
    Column("accept_seconds", Integer, nullable=False),
    Column("step_seconds", Integer, nullable=False),
    Column("total_seconds", Integer, nullable=False),
    _at("offered_at"),
    _at("stepped_at"),
    Column("percent", Integer, nullable=False),
    Column("reason", String(32), nullable=False),
    Column("detail", String(256), nullable=False),
    _at("defer_until", nullable=True),
    _at("finished_at", nullable=True),
    _at("times_out_at", nullable=True),
    CheckConstraint("(rollout_id IS NULL) <> (override_id IS NULL)", name="source"),
    CheckConstraint("(finished_at IS NULL) = (times_out_at IS NOT NULL)", name="end"),
    Index("ix_attempts_device_id_id", "device_id", "id"),
    Index("ix_attempts_rollout_id_offered_at", "rollout_id", "offered_at"),
    Index("uq_attempts_open", "device_id", unique=True, sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("ix_attempts_in_flight", "rollout_id", sqlite_where=_OPEN, postgresql_where=_OPEN),
    Index("ix_attempts_times_out_at", "times_out_at", sqlite_where=_OPEN, postgresql_where=_OPEN),
)

due = Table(
    "due",
    metadata,
    Column("device_id", BigInteger, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("source_id", BigInteger, nullable=False),
    Column("broker", String(64), nullable=False),
    _at("since"),
    Index("ix_due_source_id_since", "source_id", "since"),
)
