"""How costs grow with the fleet: databases of 10³ to 10⁶ known devices, and a sample of real ones on top.

The mass is inserted as rows (devices, keys, certificates, connections, counters), in SQL, because a million devices
would have to be signed for. The sample says real hellos through broker and service.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa

from benchmarks.fleet import Fleet
from benchmarks.hellos import measure_rate
from benchmarks.world import PRODUCT, World
from gateway.operations import devices
from store.database import Database
from store.times import now_utc, to_ms

_DAY_MS: Final = 86_400_000
_NEWEST_EPOCH: Final = 1 << 40  # of the broker: these connections are of its present life
_FIRMWARES: Final = 10
_OFFLINE: Final = 10  # one in so many

# `n` is 1 to :count. Keys and certificates have the size of real ones (P-256), and are read by nobody.
_NUMBERS: Final = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) "
_ROWS: Final = (
    """INSERT INTO devices (id, product_id, cohort_id, identifier, broker, topic_name, state, cohort_pinned, tags,
        attributes, hardware_model, hardware_revision, firmware_version, updates_enabled, created_at,
        highest_bundle_seq)
    {numbers} SELECT i, :product, :cohort, printf('m-%08d', i), 'main', printf('m-%08d', i), 'active', 0, '[]', '{{}}',
        'bench', 'b', printf('1.%d.0', i % :firmwares), 1, :now, 0 FROM n""",
    """INSERT INTO credentials (id, device_id, product_id, authority_id, key_id, spki, state, topic_name, certificate,
        fingerprint, not_before, not_after, last_ts, last_nonce, last_boot, boot_returns, hellos, created_at)
    {numbers} SELECT i, i, :product, :authority, lower(hex(randomblob(32))), randomblob(91), 'active',
        printf('m-%08d', i), randomblob(450), printf('%064x', i), :now, :now + 365 * :day, :now, 'q3J8vN0xTtWm2K5a',
        '02b9d6c4e18f7a60', 0, 1, :now FROM n""",
    """INSERT INTO certificates (fingerprint, credential_id, authority_id, serial_number, not_before, not_after,
        first_seen_at)
    {numbers} SELECT printf('%064x', i), i, :authority, printf('%040x', i), :now, :now + 365 * :day, :now FROM n""",
    """INSERT INTO connections (device_id, conn, boot, key_id, state, stays, broker, epoch, worker, seq, seq_window,
        will_seen, opened_at, heard_by)
    {numbers} SELECT i, printf('%016x', i), '02b9d6c4e18f7a60', printf('%064x', i),
        CASE WHEN i % :offline = 0 THEN 'offline' ELSE 'online' END, 1, 'main', :epoch, 'worker-1', 1, 1, 0, :now,
        :now + :day FROM n""",
    "INSERT INTO last_seen (device_id, at) {numbers} SELECT i, :now FROM n",
    """INSERT INTO counters (product_id, cohort_id, name, word, bucket, worker, value)
    {numbers} SELECT :product, :cohort, 'firmware', printf('1.%d.0', i % :firmwares), 0, 'worker-1', count(*)
        FROM n GROUP BY 4""",
    """INSERT INTO counters (product_id, cohort_id, name, word, bucket, worker, value) VALUES
        (:product, :cohort, 'devices', 'active', 0, 'worker-1', :count),
        (:product, :cohort, 'connected', '', 0, 'worker-1', :count - :count / :offline),
        (:product, :cohort, 'enrollments', 'jitp', 0, 'worker-1', :count),
        (:product, :cohort, 'connects', 'first', 0, 'worker-1', :count)""",
    # A day of comings and goings, minute by minute.
    """INSERT INTO counters (product_id, cohort_id, name, word, bucket, worker, value)
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1440),
        w(name, word) AS (VALUES ('connects', 'first'), ('connects', 'return'), ('disconnects', 'timeout'),
        ('disconnects', 'goodbye'))
    SELECT :product, :cohort, name, word, (:now / 60000 - i) * 60000, 'worker-1', 1 + :count / 1440 FROM n, w""",
    "UPDATE products SET enrolled = :count WHERE id = :product",
)
_SCANS: Final = (
    "SELECT d.cohort_id, d.state, d.firmware_version, count(*) FROM devices d WHERE d.product_id = :product "
    "GROUP BY 1, 2, 3",
    "SELECT d.cohort_id, count(*) FROM devices d JOIN connections c ON c.device_id = d.id "
    "WHERE d.product_id = :product AND c.state = 'online' GROUP BY 1",
)
"""The same figures without counters: devices by state and version, and the connected."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """What a fleet of one size costs; microseconds are CPU time of the gateway."""

    first_us: float
    known_us: float
    first_per_second: float
    known_per_second: float
    resident_mb: float
    database_mb: float
    stats_ms: float
    scan_ms: float
    device_ms: float
    page_ms: float


def insert_mass(database: Database, count: int) -> None:
    """Inserts that many known devices into an empty SQLite database."""
    with database.write() as tx:
        connection = tx.connection
        product, cohort, authority = (
            connection.execute(sa.text(f"SELECT id FROM {table}")).scalar_one()
            for table in ("products", "cohorts", "authorities")
        )
        values = {
            "count": count,
            "product": product,
            "cohort": cohort,
            "authority": authority,
            "now": to_ms(now_utc()),
            "day": _DAY_MS,
            "epoch": _NEWEST_EPOCH,
            "firmwares": _FIRMWARES,
            "offline": _OFFLINE,
        }
        for row in _ROWS:
            statement = sa.text(row.format(numbers=_NUMBERS))
            connection.execute(statement, {name: values[name] for name in statement._bindparams})


def measure_point(world: World, fleet: Fleet, known: int, sample: range) -> Point:
    """A fleet of `known` devices, of which only `sample` speaks."""
    url = world.new_database("sqlite")
    database = Database(url)
    try:
        insert_mass(database, known)
        with world.gateways(url) as gateways:
            first = measure_rate(world, gateways, fleet.hellos(sample, with_chain=True))
            fleet_known = measure_rate(world, gateways, fleet.hellos(sample, with_chain=False))
            resident = gateways.usage().resident_bytes
            with gateways.api() as api:
                page_ms = _median_ms(
                    lambda: api.get("/devices", params={"limit": 100}).raise_for_status(), 10
                )
        desk = world.desk(database)
        who = world.principal
        stats_ms = _median_ms(lambda: devices.load_figures(desk, who, PRODUCT), 50)
        device_ms = _median_ms(lambda: devices.find(desk, who, f"m-{known // 2:08}"), 50)
        scan_ms = _median_ms(lambda: _scan(database), 3)
    finally:
        database.close()
    return Point(
        first_us=first.gateway_us,
        known_us=fleet_known.gateway_us,
        first_per_second=first.per_second,
        known_per_second=fleet_known.per_second,
        resident_mb=resident / 1e6,
        database_mb=Path(url.removeprefix("sqlite:///")).stat().st_size / 1e6,
        stats_ms=stats_ms,
        scan_ms=scan_ms,
        device_ms=device_ms,
        page_ms=page_ms,
    )


def _scan(database: Database) -> None:
    with database.read() as tx:
        product = tx.connection.execute(sa.text("SELECT id FROM products")).scalar_one()
        for query in _SCANS:
            tx.connection.execute(sa.text(query), {"product": product}).all()


def _median_ms(action: Callable[[], Any], times: int) -> float:
    action()  # the first one reads from the disk and compiles
    took = []
    for _ in range(times):
        started = time.perf_counter()
        action()
        took.append(time.perf_counter() - started)
    return statistics.median(took) * 1000
