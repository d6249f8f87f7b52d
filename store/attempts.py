"""Attempts: those that are open, what was tried before, what is in flight, and what ran out of time."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from provisioning.attempts import Attempt, AttemptState, Timeouts
from provisioning.devices import DeviceState
from provisioning.ids import (
    DeviceId,
    RolloutId,
    TopicName,
)
from provisioning.offers import Tries
from provisioning.pacing import MINUTE, Flight
from store.database import Transaction, parts
from store.firmware_schema import artifacts, attempts, bundle_artifacts
from store.prepared import Query, run_many
from store.rows import RowReader, by_value
from store.schema import devices
from store.times import from_ms, to_ms

Row = dict[str, Any]
_OPEN: Final = Query(
    sa.select(attempts).where(
        attempts.c.device_id.in_(sa.bindparam("values", expanding=True)), attempts.c.finished_at.is_(None)
    ),
)
_LATEST: Final = Query(
    sa.select(attempts, devices.c.topic_name)
    .join(devices, devices.c.id == attempts.c.device_id)
    .where(attempts.c.device_id.in_(sa.bindparam("values", expanding=True)))
    .order_by(attempts.c.device_id, attempts.c.revision),
)
_TIMEOUTS: Final = ("accept_seconds", "step_seconds", "total_seconds")


def _make_attempt(**values: Any) -> Attempt:
    timeouts = Timeouts(**{name: values.pop(name) for name in _TIMEOUTS})
    return Attempt(timeouts=timeouts, **values)


read_attempt: Final = RowReader(
    _make_attempt,
    attempts,
    {
        "state": by_value(AttemptState),
        "offered_at": from_ms,
        "stepped_at": from_ms,
        "defer_until": from_ms,
        "finished_at": from_ms,
    },
    takes=[column.name for column in attempts.columns if column.name != "times_out_at"],
)
"""A row that begins with `attempts` as its type."""


def load_open(tx: Transaction, device_ids: Iterable[DeviceId]) -> dict[DeviceId, Attempt]:
    """The open attempts of devices."""
    found: dict[DeviceId, Attempt] = {}
    for part in parts(sorted(device_ids)):
        for row in _OPEN.rows(tx, values=part):
            attempt = read_attempt(row)
            found[attempt.device_id] = attempt
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class LatestAttempt:
    """The attempt under a device's highest revision, and where the device is told of it."""

    attempt: Attempt
    topic_name: TopicName


def load_latest(tx: Transaction, device_ids: Iterable[DeviceId]) -> dict[DeviceId, LatestAttempt]:
    """What each device is to be told now: the attempt under its highest revision."""
    found: dict[DeviceId, LatestAttempt] = {}
    for part in parts(sorted(device_ids)):
        for row in _LATEST.rows(
            tx, values=part
        ):  # of each device in the order of revisions: the last one stays
            attempt = read_attempt(row)
            found[attempt.device_id] = LatestAttempt(attempt=attempt, topic_name=TopicName(row[-1]))
    return found


def is_offered(tx: Transaction, device_id: DeviceId, sha256: str) -> bool:
    """Whether an artifact belongs to what a device in service is offered now."""
    query = (
        sa.select(attempts.c.id)
        .join(devices, devices.c.id == attempts.c.device_id)
        .join(bundle_artifacts, bundle_artifacts.c.bundle_id == attempts.c.bundle_id)
        .join(artifacts, artifacts.c.id == bundle_artifacts.c.artifact_id)
        .where(
            attempts.c.device_id == device_id,
            attempts.c.finished_at.is_(None),
            artifacts.c.sha256 == sha256,
            devices.c.state == DeviceState.ACTIVE.value,
        )
    )
    return tx.connection.execute(query.limit(1)).first() is not None


def list_of_device(tx: Transaction, device_id: DeviceId, limit: int = 100) -> list[Attempt]:
    """A device's attempts, the newest first."""
    query = (
        sa.select(attempts)
        .where(attempts.c.device_id == device_id)
        .order_by(attempts.c.id.desc())
        .limit(limit)
    )
    return [read_attempt(row) for row in tx.connection.execute(query)]


def list_of_rollout(
    tx: Transaction, rollout_id: RolloutId, *, only_open: bool, limit: int = 200
) -> list[Attempt]:
    """A rollout's attempts in the order of their numbers."""
    query = sa.select(attempts).where(attempts.c.rollout_id == rollout_id)
    if only_open:
        query = query.where(attempts.c.finished_at.is_(None))
    rows = tx.connection.execute(query.order_by(attempts.c.id).limit(limit))
    return [read_attempt(row) for row in rows]


def load_tries(tx: Transaction, device_ids: Iterable[DeviceId]) -> dict[DeviceId, dict[int, Tries]]:
    """What devices tried, by device and by rollout or override; cancelled and superseded ones do not count."""
    found: dict[DeviceId, dict[int, Tries]] = {}
    uncounted = [AttemptState.CANCELLED.value, AttemptState.SUPERSEDED.value]
    for part in parts(sorted(device_ids)):
        query = (
            sa.select(
                attempts.c.device_id,
                attempts.c.rollout_id,
                attempts.c.override_id,
                attempts.c.state,
                attempts.c.reason,
            )
            .where(
                attempts.c.device_id.in_(part),
                attempts.c.finished_at.is_not(None),
                attempts.c.state.not_in(uncounted),
            )
            .order_by(attempts.c.id)
        )
        for row in tx.connection.execute(query):
            of_device = found.setdefault(DeviceId(row.device_id), {})
            source = row.rollout_id if row.rollout_id is not None else row.override_id
            before = of_device.get(source)
            of_device[source] = Tries(
                count=1 if before is None else before.count + 1,
                last=AttemptState(row.state),
                reason=row.reason,
            )
    return found


def load_revisions(tx: Transaction, device_ids: Iterable[DeviceId]) -> dict[DeviceId, int]:
    """The highest revision that each device was ever offered."""
    found: dict[DeviceId, int] = {}
    for part in parts(sorted(device_ids)):
        query = (
            sa.select(attempts.c.device_id, sa.func.max(attempts.c.revision).label("revision"))
            .where(attempts.c.device_id.in_(part))
            .group_by(attempts.c.device_id)
        )
        found |= {DeviceId(row.device_id): int(row.revision) for row in tx.connection.execute(query)}
    return found


def load_flight(tx: Transaction, source_id: int, now: datetime) -> Flight:
    """What a rollout or override has on its way; hold its lock for the answer to stay true."""
    source = sa.or_(attempts.c.rollout_id == source_id, attempts.c.override_id == source_id)
    in_flight = tx.connection.execute(
        sa.select(sa.func.count())
        .select_from(attempts)
        .where(source, attempts.c.finished_at.is_(None), attempts.c.state != AttemptState.DEFERRED.value)
    ).scalar_one()
    last = tx.connection.execute(
        sa.select(sa.func.count().label("value"), sa.func.min(attempts.c.offered_at).label("oldest")).where(
            source, attempts.c.offered_at > to_ms(now - MINUTE)
        )
    ).one()
    return Flight(
        in_flight=int(in_flight),
        last_minute=int(last.value),
        oldest_at=from_ms(last.oldest),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenAttempt:
    """An open attempt, by its device, and the broker and topic name that lock it."""

    device_id: DeviceId
    broker: str
    topic_name: TopicName


def list_overdue(tx: Transaction, now: datetime, limit: int) -> list[OpenAttempt]:
    """Open attempts whose time is over, the longest first."""
    return _list_open(tx, attempts.c.times_out_at <= to_ms(now), limit)


def list_cancellable(tx: Transaction, rollout_id: RolloutId, limit: int) -> list[OpenAttempt]:
    """A rollout's open attempts that can still be called off."""
    late = [
        AttemptState.INSTALLING.value,
        AttemptState.REBOOTING.value,
        AttemptState.CONFIRMING.value,
    ]
    return _list_open(tx, sa.and_(attempts.c.rollout_id == rollout_id, attempts.c.state.not_in(late)), limit)


def _list_open(tx: Transaction, condition: sa.ColumnElement[bool], limit: int) -> list[OpenAttempt]:
    query = (
        sa.select(attempts.c.device_id, devices.c.broker, devices.c.topic_name)
        .join(devices, devices.c.id == attempts.c.device_id)
        .where(attempts.c.finished_at.is_(None), condition)
        .order_by(attempts.c.times_out_at)
        .limit(limit)
    )
    return [
        OpenAttempt(
            device_id=DeviceId(row.device_id), broker=row.broker, topic_name=TopicName(row.topic_name)
        )
        for row in tx.connection.execute(query)
    ]


def count_by_state(tx: Transaction) -> dict[str, int]:
    """All attempts by state, counted from the rows themselves."""
    query = sa.select(attempts.c.state, sa.func.count().label("value")).group_by(attempts.c.state)
    return {row.state: int(row.value) for row in tx.connection.execute(query)}


def write(tx: Transaction, changed: Iterable[Attempt]) -> None:
    """Writes new and changed attempts. An ended row is never changed: ends are final.

    Raises:
        BrokenConstraintError: a device would have two open attempts.
    """
    rows = [_row(attempt) for attempt in sorted(changed, key=lambda one: (one.is_open, one.id))]
    run_many(tx, "attempts.write", lambda: _write(tx), rows)


def _write(tx: Transaction) -> sa.Insert:
    insert = tx.insert(attempts)
    mutable = (
        "state", "revision", "offered_at", "stepped_at", "percent", "reason", "detail", "defer_until",
        "finished_at", "times_out_at",
    )  # fmt: skip
    return insert.on_conflict_do_update(
        index_elements=[attempts.c.id],
        set_={name: insert.excluded[name] for name in mutable},
        where=attempts.c.finished_at.is_(None),
    )


def _row(attempt: Attempt) -> Row:
    return {
        "id": attempt.id,
        "device_id": attempt.device_id,
        "product_id": attempt.product_id,
        "cohort_id": attempt.cohort_id,
        "rollout_id": attempt.rollout_id,
        "override_id": attempt.override_id,
        "bundle_id": attempt.bundle_id,
        "bundle_version": attempt.bundle_version,
        "bundle_seq": attempt.bundle_seq,
        "hardware_model": attempt.hardware_model,
        "from_version": attempt.from_version,
        "from_boot": attempt.from_boot,
        "state": attempt.state.value,
        "revision": attempt.revision,
        "accept_seconds": attempt.timeouts.accept_seconds,
        "step_seconds": attempt.timeouts.step_seconds,
        "total_seconds": attempt.timeouts.total_seconds,
        "offered_at": to_ms(attempt.offered_at),
        "stepped_at": to_ms(attempt.stepped_at),
        "percent": attempt.percent,
        "reason": attempt.reason,
        "detail": attempt.detail,
        "defer_until": None if attempt.defer_until is None else to_ms(attempt.defer_until),
        "finished_at": None if attempt.finished_at is None else to_ms(attempt.finished_at),
        "times_out_at": None if attempt.times_out_at is None else to_ms(attempt.times_out_at),
    }
