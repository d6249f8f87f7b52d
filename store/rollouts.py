"""Rollouts and overrides. Every change of state is one conditional `UPDATE` of a locked row."""

from collections.abc import Collection, Iterable
from datetime import datetime
from typing import Any

import sqlalchemy as sa

from provisioning.bundles import Bundle
from provisioning.errors import NotFoundError
from provisioning.ids import BundleId, CohortId, DeviceId, OrganizationId, OverrideId, ProductId, RolloutId
from provisioning.rollouts import Override, Plan, Rollout, RolloutState
from store import bundles, due
from store.database import Transaction
from store.firmware_schema import override_devices, overrides, rollouts
from store.revision import bump_revision
from store.schema import devices, products
from store.times import from_ms, to_ms


def create(tx: Transaction, made: Iterable[Rollout]) -> None:
    """Adds rollouts.

    Raises:
        BrokenConstraintError: a cohort has that bundle's rollout already.
    """
    tx.connection.execute(
        sa.insert(rollouts),
        [
            {
                "id": rollout.id,
                "group_id": rollout.group,
                "product_id": rollout.product_id,
                "cohort_id": rollout.cohort_id,
                "bundle_id": rollout.bundle.id,
                "state": rollout.state.value,
                "plan": rollout.plan.model_dump(mode="json"),
                "start_at": to_ms(rollout.start_at),
                "created_at": to_ms(rollout.created_at),
                "filled": False,
                "filled_to": 0,
            }
            for rollout in made
        ],
    )
    bump_revision(tx)


def list_all(
    tx: Transaction, organization_id: OrganizationId, *, product: str | None = None, limit: int = 200
) -> list[Rollout]:
    """The organization's rollouts, the newest first."""
    query = _query().where(products.c.organization_id == organization_id)
    if product is not None:
        query = query.where(products.c.name == product)
    return _read_all(tx, tx.connection.execute(query.order_by(rollouts.c.id.desc()).limit(limit)).all())


def load(tx: Transaction, organization_id: OrganizationId, number: RolloutId) -> Rollout:
    """One rollout of the organization.

    Raises:
        NotFoundError: it has none of that number.
    """
    query = _query().where(products.c.organization_id == organization_id, rollouts.c.id == number)
    found = _read_all(tx, tx.connection.execute(query).all())
    if not found:
        raise NotFoundError(
            f"there is no rollout {number}; `fleetgate rollout list` shows those that there are"
        )
    return found[0]


def lock(tx: Transaction, numbers: Collection[int], *, skip_locked: bool = False) -> dict[RolloutId, Rollout]:
    """Rollouts, locked until the end of the transaction: whoever offers, pauses or cancels holds them.

    Args:
        skip_locked: leave out those that another worker holds, instead of waiting.
    """
    query = _query().where(rollouts.c.id.in_(sorted(numbers))).order_by(rollouts.c.id)
    if not tx.is_sqlite:
        query = query.with_for_update(of=rollouts, skip_locked=skip_locked, key_share=True)
    return {rollout.id: rollout for rollout in _read_all(tx, tx.connection.execute(query).all())}


def move(tx: Transaction, rollout: Rollout, to: RolloutState, at: datetime) -> bool:
    """Changes the state, if it still is what `rollout` says. Returns whether it was.

    A start and a resume let the cohort's devices be considered from the first one on.
    """
    values: dict[str, Any] = {"state": to.value}
    match to:
        case RolloutState.RUNNING:
            values |= {"filled": False, "filled_to": 0}
            if rollout.started_at is None:
                values["started_at"] = to_ms(at)
        case RolloutState.COMPLETED | RolloutState.HALTED | RolloutState.CANCELLED:
            values["ended_at"] = to_ms(at)
        case _:
            pass
    moved = tx.connection.execute(
        sa.update(rollouts)
        .where(rollouts.c.id == rollout.id, rollouts.c.state == rollout.state.value)
        .values(**values)
    )
    if moved.rowcount == 1:
        bump_revision(tx)
    return moved.rowcount == 1


def refill(tx: Transaction, number: RolloutId) -> None:
    """Lets the cohort's devices be considered again from the first one on; the row must be locked."""
    tx.connection.execute(
        sa.update(rollouts).where(rollouts.c.id == number).values(filled=False, filled_to=0)
    )


def list_startable(tx: Transaction, now: datetime) -> list[RolloutId]:
    """Scheduled rollouts whose time has come."""
    query = (
        sa.select(rollouts.c.id)
        .where(rollouts.c.state == RolloutState.SCHEDULED.value, rollouts.c.start_at <= to_ms(now))
        .order_by(rollouts.c.start_at, rollouts.c.id)
    )
    return [RolloutId(number) for number in tx.connection.execute(query).scalars()]


def list_running(tx: Transaction) -> list[RolloutId]:
    """Rollouts that run."""
    query = (
        sa.select(rollouts.c.id).where(rollouts.c.state == RolloutState.RUNNING.value).order_by(rollouts.c.id)
    )
    return [RolloutId(number) for number in tx.connection.execute(query).scalars()]


def next_start(tx: Transaction) -> datetime | None:
    """When the next scheduled rollout begins."""
    query = sa.select(sa.func.min(rollouts.c.start_at)).where(
        rollouts.c.state == RolloutState.SCHEDULED.value
    )
    return from_ms(tx.connection.execute(query).scalar())


def load_for_registry(tx: Transaction) -> dict[CohortId, tuple[Rollout, ...]]:
    """All but drafts and cancelled ones, by cohort."""
    hidden = [RolloutState.DRAFT.value, RolloutState.CANCELLED.value]
    rows = tx.connection.execute(_query().where(rollouts.c.state.not_in(hidden))).all()
    found: dict[CohortId, tuple[Rollout, ...]] = {}
    for rollout in _read_all(tx, rows):
        found[rollout.cohort_id] = (*found.get(rollout.cohort_id, ()), rollout)
    return found


def create_override(
    tx: Transaction, override: Override, device_ids: Iterable[DeviceId], at: datetime
) -> None:
    """Adds an override for devices."""
    tx.connection.execute(
        sa.insert(overrides).values(
            id=override.id,
            product_id=override.product_id,
            bundle_id=override.bundle.id,
            plan=override.plan.model_dump(mode="json"),
            starts_at=to_ms(override.starts_at),
            ends_at=None if override.ends_at is None else to_ms(override.ends_at),
            created_at=to_ms(at),
        )
    )
    tx.connection.execute(
        sa.insert(override_devices),
        [{"override_id": override.id, "device_id": device_id} for device_id in sorted(device_ids)],
    )
    bump_revision(tx)


def list_overrides(
    tx: Transaction, organization_id: OrganizationId
) -> list[tuple[Override, tuple[DeviceId, ...]]]:
    """The organization's overrides that were not removed, with their devices; the newest first."""
    query = (
        sa.select(overrides)
        .join(products, products.c.id == overrides.c.product_id)
        .where(products.c.organization_id == organization_id, overrides.c.removed_at.is_(None))
        .order_by(overrides.c.id.desc())
    )
    return _read_overrides(tx, tx.connection.execute(query).all())


def lock_overrides(tx: Transaction, numbers: Collection[int]) -> dict[OverrideId, Override]:
    """Overrides that were not removed, locked until the end of the transaction."""
    query = (
        sa.select(overrides)
        .where(overrides.c.id.in_(sorted(numbers)), overrides.c.removed_at.is_(None))
        .order_by(overrides.c.id)
    )
    if not tx.is_sqlite:
        query = query.with_for_update(key_share=True)
    return {override.id: override for override, _ in _read_overrides(tx, tx.connection.execute(query).all())}


def remove_override(tx: Transaction, number: OverrideId, at: datetime) -> None:
    """Takes an override back; attempts that it opened go on."""
    tx.connection.execute(
        sa.update(overrides)
        .where(overrides.c.id == number, overrides.c.removed_at.is_(None))
        .values(removed_at=to_ms(at))
    )
    bump_revision(tx)


def load_overrides_for_registry(tx: Transaction) -> dict[DeviceId, Override]:
    """The override of each device that has one; of several, the newest."""
    query = sa.select(overrides).where(overrides.c.removed_at.is_(None)).order_by(overrides.c.id)
    found: dict[DeviceId, Override] = {}
    for override, device_ids in _read_overrides(tx, tx.connection.execute(query).all()):
        found |= dict.fromkeys(device_ids, override)
    return found


def _query() -> sa.Select[Any]:
    return sa.select(rollouts).join(products, products.c.id == rollouts.c.product_id)


def _read_all(tx: Transaction, rows: Iterable[sa.Row[Any]]) -> list[Rollout]:
    found = list(rows)
    known = bundles.load_by_ids(tx, (BundleId(row.bundle_id) for row in found)) if found else {}
    return [
        Rollout(
            id=RolloutId(row.id),
            group=row.group_id,
            product_id=ProductId(row.product_id),
            cohort_id=CohortId(row.cohort_id),
            bundle=known[BundleId(row.bundle_id)],
            state=RolloutState(row.state),
            plan=Plan.model_validate(row.plan),
            start_at=from_ms(row.start_at),
            created_at=from_ms(row.created_at),
            started_at=from_ms(row.started_at),
            ended_at=from_ms(row.ended_at),
            filled=row.filled,
        )
        for row in found
    ]


def _read_overrides(
    tx: Transaction, rows: Iterable[sa.Row[Any]]
) -> list[tuple[Override, tuple[DeviceId, ...]]]:
    found = list(rows)
    if not found:
        return []
    known: dict[BundleId, Bundle] = bundles.load_by_ids(tx, (BundleId(row.bundle_id) for row in found))
    named: dict[int, list[DeviceId]] = {}
    query = sa.select(override_devices).where(
        override_devices.c.override_id.in_(sorted(row.id for row in found))
    )
    for row in tx.connection.execute(query):
        named.setdefault(row.override_id, []).append(DeviceId(row.device_id))
    return [
        (
            Override(
                id=OverrideId(row.id),
                product_id=ProductId(row.product_id),
                bundle=known[BundleId(row.bundle_id)],
                starts_at=from_ms(row.starts_at),
                ends_at=from_ms(row.ends_at),
                plan=Plan.model_validate(row.plan),
            ),
            tuple(sorted(named.get(row.id, []))),
        )
        for row in found
    ]


def is_rollout(tx: Transaction, number: int) -> bool:
    """Whether `number` is a rollout's, and not an override's."""
    return tx.connection.execute(sa.select(rollouts.c.id).where(rollouts.c.id == number)).first() is not None


def load_any(tx: Transaction, number: RolloutId) -> Rollout | None:
    """One rollout of whatever organization, or None."""
    found = _read_all(tx, tx.connection.execute(_query().where(rollouts.c.id == number)).all())
    return found[0] if found else None


def organization_of(tx: Transaction, rollout: Rollout) -> int:
    """The organization whose product it is."""
    query = sa.select(products.c.organization_id).where(products.c.id == rollout.product_id)
    return int(tx.connection.execute(query).scalar_one())


def mark_override(tx: Transaction, override: Override, device_ids: Iterable[DeviceId], at: datetime) -> None:
    """Marks an override's devices for the offerer."""
    query = sa.select(devices.c.id, devices.c.broker).where(devices.c.id.in_(sorted(device_ids)))
    for row in tx.connection.execute(query):
        due.put(tx, row.broker, {DeviceId(row.id): int(override.id)}, to_ms(at))


def list_numbers(tx: Transaction) -> list[RolloutId]:
    """Every rollout, of whatever organization, in the order they were planned."""
    query = sa.select(rollouts.c.id).order_by(rollouts.c.id)
    return [RolloutId(number) for number in tx.connection.execute(query).scalars()]
