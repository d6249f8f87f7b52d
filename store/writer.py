"""Writes what a batch decided: one writer, `executemany` in key order, counters last.

Whole rows are written by primary key, so applying the same result twice is the same as once. Any other
constraint that breaks means somebody else was faster: the batch is rolled back and done again.
"""

from collections.abc import Iterable
from dataclasses import fields
from datetime import datetime
from operator import attrgetter
from typing import Any, Final

import sqlalchemy as sa

from provisioning.devices import Connection, Credential, Device
from provisioning.errors import ConflictError
from provisioning.working import WorkingSet
from store import attempts, counters, due, outbox
from store.database import Transaction
from store.prepared import run_many, run_one, together
from store.schema import (
    certificates,
    connections,
    credentials,
    devices,
    inbox,
    last_seen,
    products,
    sessions,
)
from store.times import to_ms

Row = dict[str, Any]


def apply(tx: Transaction, facts: WorkingSet, now: datetime) -> None:
    """Writes every change of a working copy.

    Raises:
        ConflictError: a quota was used up meanwhile, or a unique name or key taken (by the constraint).
    """
    at = to_ms(now)
    _take_quotas(tx, facts)
    with together(tx):
        _upsert(tx, devices, (_device_row(facts.devices[key]) for key in sorted(facts.changed_devices)))
        _write_credentials(tx, facts)
        _insert_new(
            tx,
            certificates,
            [
                {
                    "fingerprint": seen.fingerprint,
                    "credential_id": facts.credentials[seen.key_id].id,
                    "authority_id": seen.authority_id,
                    "serial_number": seen.serial_number,
                    "not_before": seen.not_before_ms,
                    "not_after": seen.not_after_ms,
                    "first_seen_at": at,
                }
                for _, seen in sorted(facts.certificates.items())
            ],
        )
        _upsert(
            tx,
            connections,
            (_connection_row(facts.connections[key]) for key in sorted(facts.changed_connections)),
        )
        _upsert(tx, last_seen, ({"device_id": key, "at": at} for key in sorted(facts.seen)))
        run_many(
            tx,
            "sessions.insert",
            lambda: sa.insert(sessions),
            [
                {
                    "device_id": closed.device_id,
                    "conn": closed.conn,
                    "opened_at": closed.opened_at_ms,
                    "closed_at": at,
                    "reason": closed.reason,
                }
                for closed in facts.closed
            ],
        )
        attempts.write(
            tx, [*facts.superseded, *(facts.attempts[device_id] for device_id in facts.changed_attempts)]
        )
        due.put(tx, facts.broker, facts.due, at)
        outbox.put(
            tx,
            facts.broker,
            (
                outbox.Outgoing(device_id=device_id, revision=facts.attempts[device_id].revision)
                for device_id in facts.outgoing
            ),
            at,
        )
        _note_refusals(tx, facts, at)
        counters.record(tx, facts.worker, facts.events)


def _write_credentials(tx: Transaction, facts: WorkingSet) -> None:
    """Whole rows where something rare changed; of a known key's hello, the few columns that it moves."""
    heard: list[Row] = []
    whole: list[Row] = []
    for credential in sorted((facts.credentials[key] for key in facts.before), key=lambda one: one.id):
        before = facts.before[credential.key_id]
        if before is not None and _RARE(before) == _RARE(credential):
            heard.append({"b_id": credential.id} | _heard_row(credential))
        else:
            whole.append(_credential_row(credential))
    _upsert(tx, credentials, whole)
    run_many(tx, "credentials.heard", _update_heard, heard)


def _update_heard() -> sa.Update:
    update = sa.update(credentials).where(credentials.c.id == sa.bindparam("b_id"))
    return update.values({name: sa.bindparam(name) for name in _MOVED})


def _take_quotas(tx: Transaction, facts: WorkingSet) -> None:
    for product_id, count in sorted(facts.new_enrollments.items()):
        if run_one(tx, "products.take_quota", _take_quota, product=product_id, count=count) != 1:
            raise ConflictError(f"the quota of product {product_id} was used up meanwhile")


def _take_quota() -> sa.Update:
    enrolled = products.c.enrolled + sa.bindparam("count", type_=sa.BigInteger)
    quota = products.c.enrollment_quota
    return (
        sa.update(products)
        .where(products.c.id == sa.bindparam("product"), sa.or_(quota.is_(None), enrolled <= quota))
        .values(enrolled=enrolled)
    )


def _upsert(tx: Transaction, table: sa.Table, rows: Iterable[Row]) -> None:
    def make() -> sa.Insert:
        insert = tx.insert(table)
        keys = list(table.primary_key.columns)
        updates = {
            column.name: insert.excluded[column.name] for column in table.columns if column not in keys
        }
        return insert.on_conflict_do_update(index_elements=keys, set_=updates)

    run_many(tx, f"{table.name}.upsert", make, list(rows))


def _insert_new(tx: Transaction, table: sa.Table, rows: list[Row]) -> None:
    keys = list(table.primary_key.columns)
    run_many(
        tx,
        f"{table.name}.insert_new",
        lambda: tx.insert(table).on_conflict_do_nothing(index_elements=keys),
        rows,
    )


def _note_refusals(tx: Transaction, facts: WorkingSet, at: int) -> None:
    grouped: dict[tuple[str, int, str], Row] = {}
    for refusal in facts.refusals:
        key = (refusal.reason, refusal.authority_id, refusal.key_id)
        row = grouped.setdefault(
            key,
            {
                "product_id": refusal.product_id,
                "authority_id": refusal.authority_id,
                "reason": refusal.reason,
                "key_id": refusal.key_id,
                "identifier": refusal.identifier[:128],
                "topic_name": refusal.topic_name,
                "detail": refusal.detail,
                "seen": 0,
                "first_at": at,
                "last_at": at,
            },
        )
        row["seen"] += 1
        row["detail"] = refusal.detail
    run_many(tx, "inbox.note", lambda: _note(tx), [row for _, row in sorted(grouped.items())])


def _note(tx: Transaction) -> sa.Insert:
    insert = tx.insert(inbox)
    return insert.on_conflict_do_update(
        index_elements=[inbox.c.reason, inbox.c.authority_id, inbox.c.key_id],
        set_={
            "seen": inbox.c.seen + insert.excluded.seen,
            "last_at": insert.excluded.last_at,
            "detail": insert.excluded.detail,
        },
    )


def _device_row(device: Device) -> Row:
    return {
        "id": device.id,
        "product_id": device.product_id,
        "cohort_id": device.cohort_id,
        "identifier": device.identifier,
        "broker": device.broker,
        "topic_name": device.topic_name,
        "state": device.state.value,
        "cohort_pinned": device.cohort_pinned,
        "tags": list(device.tags),
        "attributes": dict(device.attributes),
        "hardware_model": device.hardware_model,
        "hardware_revision": device.hardware_revision,
        "firmware_version": device.firmware_version,
        "firmware_bundle_seq": device.firmware_bundle_seq,
        "highest_bundle_seq": device.highest_bundle_seq,
        "time_zone": device.time_zone,
        "updates_enabled": device.updates_enabled,
        "new_key_until": None if device.new_key_until is None else to_ms(device.new_key_until),
        "created_at": to_ms(device.created_at),
    }


_MOVED: Final = ("last_ts", "last_nonce", "last_boot", "previous_boot", "boot_returns", "hellos")
"""What an accepted hello of a known key moves."""
_RARE: Final = attrgetter(*(field.name for field in fields(Credential) if field.name not in _MOVED))


def _heard_row(credential: Credential) -> Row:
    return {name: getattr(credential, name) for name in _MOVED}


def _credential_row(credential: Credential) -> Row:
    return {
        "id": credential.id,
        "device_id": credential.device_id,
        "product_id": credential.product_id,
        "authority_id": credential.authority_id,
        "key_id": credential.key_id,
        "spki": credential.spki,
        "state": credential.state.value,
        "topic_name": credential.topic_name,
        "certificate": credential.certificate,
        "fingerprint": credential.fingerprint,
        "not_before": to_ms(credential.not_before),
        "not_after": to_ms(credential.not_after),
        "replaces_id": credential.replaces_id,
        "created_at": to_ms(credential.created_at),
        **_heard_row(credential),
    }


def _connection_row(connection: Connection) -> Row:
    return {
        "device_id": connection.device_id,
        "conn": connection.conn,
        "boot": connection.boot,
        "key_id": connection.key_id,
        "state": connection.state.value,
        "stays": connection.stays,
        "broker": connection.broker,
        "epoch": connection.epoch,
        "worker": connection.worker,
        "seq": connection.seq,
        "seq_window": connection.seq_window,
        "will_seen": connection.will_seen,
        "opened_at": to_ms(connection.opened_at),
        "heard_by": to_ms(connection.heard_by),
    }
