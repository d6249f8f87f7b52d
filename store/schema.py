"""Every table, in SQLAlchemy Core. The rules that must never break are constraints here, not checks in code.

Numbers of objects are made by the caller (`store.ids`). Times are UTC integers in milliseconds since 1970:
they compare and index the same way on SQLite and PostgreSQL, and no driver can lose the zone.
"""

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
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "ck": "ck_%(table_name)s_%(constraint_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s",
        "pk": "pk_%(table_name)s",
    }
)

# SQLite grows its own row numbers only for INTEGER; PostgreSQL needs BIGINT.
Serial = BigInteger().with_variant(Integer, "sqlite")


def id_column() -> Column[int]:
    """The primary key of an object: a number that the caller makes."""
    return Column("id", BigInteger, primary_key=True, autoincrement=False)


def at_column(name: str, *, nullable: bool = False, index: bool = False) -> Column[int]:
    """A time: UTC, milliseconds since 1970."""
    return Column(name, BigInteger, nullable=nullable, index=index)


def reference(name: str, target: str, *, nullable: bool = False, index: bool = False) -> Column[int]:
    """A column that names a row of another table, as `table.column`."""
    return Column(name, BigInteger, ForeignKey(target), nullable=nullable, index=index)


organizations = Table(
    "organizations",
    metadata,
    id_column(),
    Column("name", String(64), nullable=False, unique=True),
    Column("broker", String(64), nullable=False, server_default="main"),
    at_column("created_at"),
)

api_keys = Table(
    "api_keys",
    metadata,
    id_column(),
    reference("organization_id", "organizations.id"),
    Column("name", String(64), nullable=False),
    Column("role", String(16), nullable=False),
    Column("secret_sha256", String(64), nullable=False, unique=True),
    at_column("created_at"),
    at_column("expires_at", nullable=True),
    at_column("revoked_at", nullable=True),
    UniqueConstraint("organization_id", "name"),
)

products = Table(
    "products",
    metadata,
    id_column(),
    reference("organization_id", "organizations.id"),
    Column("name", String(64), nullable=False),
    Column("description", Text, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("notes", Text, nullable=False, server_default=""),
    Column("jitp", JSON, nullable=False),
    Column("enrolled", BigInteger, nullable=False, server_default="0"),
    Column("enrollment_quota", BigInteger, nullable=True),
    at_column("support_until", nullable=True),
    at_column("archived_at", nullable=True),
    at_column("created_at"),
    UniqueConstraint("organization_id", "name"),
    CheckConstraint("enrollment_quota IS NULL OR enrolled <= enrollment_quota", name="quota"),
)

cohorts = Table(
    "cohorts",
    metadata,
    id_column(),
    reference("product_id", "products.id"),
    Column("name", String(64), nullable=False),
    Column("description", Text, nullable=False, server_default=""),
    at_column("created_at"),
    UniqueConstraint("product_id", "name"),
)

authorities = Table(
    "authorities",
    metadata,
    id_column(),
    reference("product_id", "products.id", index=True),
    Column("name", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("fingerprint", String(64), nullable=False),
    Column("subject", Text, nullable=False),
    Column("subject_sha256", String(64), nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("legacy", Boolean, nullable=False),
    Column("code", String(64), nullable=False),
    at_column("code_expires_at"),
    at_column("proven_at", nullable=True),
    at_column("not_before"),
    at_column("not_after"),
    at_column("created_at"),
    UniqueConstraint("product_id", "name"),
    UniqueConstraint("product_id", "fingerprint"),
    CheckConstraint("state = 'pending' OR proven_at IS NOT NULL", name="proven"),
)
# A key, and a subject name, belong to one product once somebody has proven to hold the key: until then
# anybody may claim it, so that a claim without proof locks nobody out.
Index(
    "uq_authorities_proven_key",
    authorities.c.key_id,
    unique=True,
    sqlite_where=text("proven_at IS NOT NULL"),
    postgresql_where=text("proven_at IS NOT NULL"),
)
Index(
    "uq_authorities_proven_subject",
    authorities.c.subject_sha256,
    unique=True,
    sqlite_where=text("proven_at IS NOT NULL"),
    postgresql_where=text("proven_at IS NOT NULL"),
)

devices = Table(
    "devices",
    metadata,
    id_column(),
    reference("product_id", "products.id"),
    reference("cohort_id", "cohorts.id", nullable=True),
    Column("identifier", String(128), nullable=False),
    Column("broker", String(64), nullable=False),
    Column("topic_name", String(64), nullable=True),
    Column("state", String(16), nullable=False),
    Column("cohort_pinned", Boolean, nullable=False),
    Column("tags", JSON, nullable=False),
    Column("attributes", JSON, nullable=False),
    Column("hardware_model", String(64), nullable=False),
    Column("hardware_revision", String(64), nullable=False),
    Column("firmware_version", String(64), nullable=False),
    Column("firmware_bundle_seq", BigInteger, nullable=True),
    Column("time_zone", String(64), nullable=True),
    Column("updates_enabled", Boolean, nullable=False),
    at_column("new_key_until", nullable=True),
    at_column("created_at"),
    Column("highest_bundle_seq", BigInteger, nullable=False, server_default="0"),
    UniqueConstraint("product_id", "identifier"),
    UniqueConstraint("broker", "topic_name"),
    Index("ix_devices_cohort_id_id", "cohort_id", "id"),
    Index("ix_devices_product_id_id", "product_id", "id"),
    Index("ix_devices_topic_name", "topic_name"),
)

credentials = Table(
    "credentials",
    metadata,
    id_column(),
    reference("device_id", "devices.id", index=True),
    reference("product_id", "products.id"),
    reference("authority_id", "authorities.id", index=True),
    Column("key_id", String(64), nullable=False, unique=True),
    Column("spki", LargeBinary, nullable=False),
    Column("state", String(16), nullable=False),
    Column("topic_name", String(64), nullable=False),
    Column("certificate", LargeBinary, nullable=False),
    Column("fingerprint", String(64), nullable=False),
    at_column("not_before"),
    at_column("not_after"),
    at_column("last_ts"),
    Column("last_nonce", String(64), nullable=True),
    Column("last_boot", String(16), nullable=True),
    Column("previous_boot", String(16), nullable=True),
    Column("boot_returns", Integer, nullable=False),
    Column("hellos", BigInteger, nullable=False),
    reference("replaces_id", "credentials.id", nullable=True),
    at_column("created_at"),
)

certificates = Table(
    "certificates",
    metadata,
    Column("fingerprint", String(64), primary_key=True),
    reference("credential_id", "credentials.id", index=True),
    reference("authority_id", "authorities.id"),
    Column("serial_number", String(48), nullable=False),
    at_column("not_before"),
    at_column("not_after"),
    at_column("first_seen_at"),
)

connections = Table(
    "connections",
    metadata,
    Column("device_id", BigInteger, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("conn", String(16), nullable=False),
    Column("boot", String(16), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("stays", Boolean, nullable=False),
    Column("broker", String(64), nullable=False),
    Column("epoch", BigInteger, nullable=False),
    Column("worker", String(64), nullable=False),
    Column("seq", BigInteger, nullable=False),
    Column("seq_window", BigInteger, nullable=False),
    Column("will_seen", Boolean, nullable=False),
    at_column("opened_at"),
    at_column("heard_by"),
    Index("ix_connections_heard_by", "state", "heard_by"),
    Index("ix_connections_broker_epoch", "broker", "state", "epoch"),
)

last_seen = Table(
    "last_seen",
    metadata,
    Column("device_id", BigInteger, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    at_column("at"),
)

sessions = Table(
    "sessions",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    reference("device_id", "devices.id"),
    Column("conn", String(16), nullable=False),
    at_column("opened_at"),
    at_column("closed_at"),
    Column("reason", String(32), nullable=False),
    Index("ix_sessions_device_id_closed_at", "device_id", "closed_at"),
)

events = Table(
    "events",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    at_column("at"),
    Column("kind", String(32), nullable=False),
    Column("product_id", BigInteger, nullable=False),
    Column("cohort_id", BigInteger, nullable=False),
    Column("device_id", BigInteger, nullable=True),
    Column("word", String(160), nullable=False),
    Column("before", String(160), nullable=False),
    Column("detail", JSON, nullable=True),
    Column("attempt_id", BigInteger, nullable=True),
    Column("source_id", BigInteger, nullable=True),
    Column("bundle_id", BigInteger, nullable=True),
    Column("hardware", String(64), nullable=True),
    Column("reason", String(32), nullable=True),
    Index("ix_events_device_id_id", "device_id", "id"),
)

counters = Table(
    "counters",
    metadata,
    Column("product_id", BigInteger, primary_key=True, autoincrement=False),
    Column("cohort_id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(32), primary_key=True),
    Column("word", String(160), primary_key=True),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    Column("worker", String(64), primary_key=True),
    Column("value", BigInteger, nullable=False),
    Index("ix_counters_product_id_bucket", "product_id", "bucket"),
)

checkpoints = Table(
    "checkpoints",
    metadata,
    Column("product_id", BigInteger, primary_key=True, autoincrement=False),
    Column("cohort_id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", String(32), primary_key=True),
    Column("word", String(160), primary_key=True),
    Column("bucket", BigInteger, primary_key=True, autoincrement=False),
    Column("value", BigInteger, nullable=False),
)

inbox = Table(
    "inbox",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    reference("product_id", "products.id"),
    reference("authority_id", "authorities.id"),
    Column("reason", String(32), nullable=False),
    Column("key_id", String(64), nullable=False),
    Column("identifier", String(128), nullable=False),
    Column("topic_name", String(64), nullable=False),
    Column("detail", Text, nullable=False),
    Column("seen", BigInteger, nullable=False),
    at_column("first_at"),
    at_column("last_at"),
    UniqueConstraint("reason", "authority_id", "key_id"),
)

audit = Table(
    "audit",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    at_column("at"),
    Column("organization_id", BigInteger, nullable=False),
    Column("actor", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("object_type", String(32), nullable=False),
    Column("object_id", String(64), nullable=False),
    Column("before", JSON, nullable=True),
    Column("after", JSON, nullable=True),
    Column("position", BigInteger, nullable=True, unique=True),
    Column("chain_sha256", String(64), nullable=True),
)

answers = Table(
    "answers",
    metadata,
    Column(
        "organization_id", BigInteger, ForeignKey("organizations.id"), primary_key=True, autoincrement=False
    ),
    Column("actor", String(64), primary_key=True),
    Column("key", String(255), primary_key=True),
    Column("request_sha256", String(64), nullable=False),
    Column("status", Integer, nullable=False),
    Column("body", Text, nullable=False),
    at_column("created_at", index=True),
)

outbox = Table(
    "outbox",
    metadata,
    Column("device_id", BigInteger, ForeignKey("devices.id"), primary_key=True, autoincrement=False),
    Column("kind", String(16), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("broker", String(64), nullable=False),
    Column("nonce", String(64), nullable=True),
    at_column("created_at"),
    Index("ix_outbox_broker_created_at", "broker", "created_at"),
)

set_aside = Table(
    "set_aside",
    metadata,
    Column("id", Serial, primary_key=True, autoincrement=True),
    at_column("at"),
    Column("topic_name", String(64), nullable=False),
    Column("verb", String(16), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("cause", Text, nullable=False),
)

brokers = Table(
    "brokers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("epoch", BigInteger, nullable=False),
    Column("uptime_seconds", BigInteger, nullable=False),
    at_column("uptime_at"),
)

leases = Table(
    "leases",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("holder", String(64), nullable=False),
    at_column("expires_at"),
)

# Of a worker's client id at the broker: its digest, to tell who has the same, and itself, sealed under the root
# secret, for the worker that will empty its session when it is gone.
workers = Table(
    "workers",
    metadata,
    Column("name", String(64), primary_key=True),
    Column("broker", String(64), nullable=False),
    Column("roles", String(128), nullable=False),
    Column("version", String(32), nullable=False),
    Column("state", String(16), nullable=False),
    Column("client_sha256", String(64), nullable=True),
    Column("client_sealed", LargeBinary, nullable=True),
    Column("queued", BigInteger, nullable=False),
    at_column("started_at"),
    at_column("heard_at"),
)

revisions = Table(
    "revisions",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("value", BigInteger, nullable=False),
)
