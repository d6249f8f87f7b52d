"""Devices that the offerer should look at, each under its candidate; marked by hellos, starts and resumes.

A mark is a hint, never a promise: the offerer decides again with everything. It is taken away when the device
was offered or cannot be, and stays while only pace or time stands in the way.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from provisioning.attempts import AttemptState
from provisioning.devices import ConnectionState, DeviceState
from provisioning.ids import DeviceId, RolloutId, TopicName
from provisioning.rollouts import Rollout
from store.database import Transaction
from store.firmware_schema import attempts, due, rollouts
from store.prepared import run_many
from store.schema import connections, devices


@dataclass(frozen=True, slots=True, kw_only=True)
class Marked:
    """A marked device, and the topic name that locks it."""

    device_id: DeviceId
    topic_name: TopicName


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceKind:
    """What decides whether a bundle fits: hardware, and what runs; and whether such devices are connected."""

    hardware_model: str
    hardware_revision: str
    firmware_version: str
    firmware_bundle_seq: int | None
    connected: bool


def put(tx: Transaction, broker: str, marks: Mapping[DeviceId, int], at_ms: int) -> None:
    """Marks devices; one that is marked keeps its place and takes the newer candidate."""
    _put(
        tx,
        [
            {"device_id": device_id, "source_id": source, "broker": broker, "since": at_ms}
            for device_id, source in sorted(marks.items())
        ],
    )


def _put(tx: Transaction, rows: list[dict[str, Any]]) -> None:
    def make() -> sa.Insert:
        insert = tx.insert(due)
        return insert.on_conflict_do_update(
            index_elements=[due.c.device_id], set_={"source_id": insert.excluded.source_id}
        )

    run_many(tx, "due.put", make, rows)


def list_sources(tx: Transaction, broker: str) -> list[int]:
    """Rollouts and overrides that have marked devices on a broker."""
    query = sa.select(due.c.source_id).where(due.c.broker == broker).distinct().order_by(due.c.source_id)
    return list(tx.connection.execute(query).scalars())


def list_marked(
    tx: Transaction, broker: str, source_id: int, limit: int, only: Iterable[DeviceId] | None = None
) -> list[Marked]:
    """Marked devices of a rollout or override, the longest waiting first.

    Args:
        only: where given, no others.
    """
    query = (
        sa.select(due.c.device_id, devices.c.topic_name)
        .join(devices, devices.c.id == due.c.device_id)
        .where(due.c.broker == broker, due.c.source_id == source_id)
        .order_by(due.c.since, due.c.device_id)
        .limit(limit)
    )
    if only is not None:
        query = query.where(due.c.device_id.in_(sorted(only)))
    return [
        Marked(device_id=DeviceId(row.device_id), topic_name=row.topic_name)
        for row in tx.connection.execute(query)
    ]


def remove(tx: Transaction, device_ids: Iterable[DeviceId]) -> None:
    """Takes marks away."""
    rows = [{"device": device_id} for device_id in sorted(device_ids)]
    if rows:
        tx.connection.execute(sa.delete(due).where(due.c.device_id == sa.bindparam("device")), rows)


def fill(tx: Transaction, rollout: Rollout, limit: int, now_ms: int) -> int:
    """Marks the next of the cohort's connected devices, in the order of their numbers.

    Devices that are not connected mark themselves at their next hello. The rollout's row must be locked.

    Returns:
        How many devices were looked at; fewer than `limit`: the cohort is through, and the rollout `filled`.
    """
    start = tx.connection.execute(
        sa.select(rollouts.c.filled_to).where(rollouts.c.id == rollout.id)
    ).scalar_one()
    rows = tx.connection.execute(
        sa.select(
            devices.c.id,
            devices.c.broker,
            devices.c.state,
            devices.c.highest_bundle_seq,
            connections.c.state.label("online"),
        )
        .outerjoin(connections, connections.c.device_id == devices.c.id)
        .where(devices.c.cohort_id == rollout.cohort_id, devices.c.id > start)
        .order_by(devices.c.id)
        .limit(limit)
    ).all()
    marks = [
        {"device_id": row.id, "source_id": rollout.id, "broker": row.broker, "since": now_ms}
        for row in rows
        if row.state == DeviceState.ACTIVE.value
        and row.online == ConnectionState.ONLINE.value
        and row.highest_bundle_seq <= rollout.bundle.bundle_seq
    ]
    _put(tx, marks)
    tx.connection.execute(
        sa.update(rollouts)
        .where(rollouts.c.id == rollout.id)
        .values(filled_to=rows[-1].id if rows else start, filled=len(rows) < limit)
    )
    return len(rows)


def count_marked(tx: Transaction, rollout_id: RolloutId) -> int:
    """Devices marked for a rollout."""
    query = sa.select(sa.func.count()).select_from(due).where(due.c.source_id == rollout_id)
    return int(tx.connection.execute(query).scalar_one())


def list_untried_kinds(tx: Transaction, rollout: Rollout) -> list[DeviceKind]:
    """What the cohort's devices in service are that were never offered the bundle, each kind once."""
    tried = sa.select(attempts.c.id).where(
        attempts.c.rollout_id == rollout.id, attempts.c.device_id == devices.c.id
    )
    columns = (
        devices.c.hardware_model,
        devices.c.hardware_revision,
        devices.c.firmware_version,
        devices.c.firmware_bundle_seq,
    )
    online = sa.func.coalesce(connections.c.state, "") == ConnectionState.ONLINE.value
    query = (
        sa.select(*columns, online.label("connected"))
        .outerjoin(connections, connections.c.device_id == devices.c.id)
        .where(
            devices.c.cohort_id == rollout.cohort_id,
            devices.c.state == DeviceState.ACTIVE.value,
            devices.c.updates_enabled,
            devices.c.highest_bundle_seq < rollout.bundle.bundle_seq,
            sa.not_(tried.exists()),
        )
        .distinct()
    )
    return [
        DeviceKind(
            hardware_model=row.hardware_model,
            hardware_revision=row.hardware_revision,
            firmware_version=row.firmware_version,
            firmware_bundle_seq=row.firmware_bundle_seq,
            connected=bool(row.connected),
        )
        for row in tx.connection.execute(query)
    ]


def has_work(tx: Transaction, rollout: Rollout) -> bool:
    """Whether devices are still to be considered, are marked, or have an open attempt."""
    open_attempts = sa.select(attempts.c.id).where(
        attempts.c.rollout_id == rollout.id, attempts.c.finished_at.is_(None)
    )
    return (
        not rollout.filled
        or tx.connection.execute(open_attempts.limit(1)).first() is not None
        or count_marked(tx, rollout.id) > 0
    )


def _resumable(now_ms: int) -> sa.ColumnElement[bool]:
    marked = sa.select(due.c.device_id).where(due.c.device_id == attempts.c.device_id)
    return sa.and_(
        attempts.c.finished_at.is_(None),
        attempts.c.state == AttemptState.DEFERRED.value,
        attempts.c.defer_until <= now_ms,
        sa.not_(marked.exists()),
    )


def has_resumable(tx: Transaction, now_ms: int) -> bool:
    """Whether devices deferred an offer until now or earlier, and are not marked yet."""
    return (
        tx.connection.execute(sa.select(attempts.c.id).where(_resumable(now_ms)).limit(1)).first() is not None
    )


def mark_resumable(tx: Transaction, now_ms: int) -> None:
    """Marks devices that deferred an offer until now or earlier."""
    source = sa.func.coalesce(attempts.c.rollout_id, attempts.c.override_id)
    rows = tx.connection.execute(
        sa.select(attempts.c.device_id, source.label("source_id"), devices.c.broker)
        .join(devices, devices.c.id == attempts.c.device_id)
        .where(_resumable(now_ms))
    )
    marks = [
        {"device_id": row.device_id, "source_id": row.source_id, "broker": row.broker, "since": now_ms}
        for row in rows
    ]
    _put(tx, marks)
