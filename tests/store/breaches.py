"""One row broken at a time, round the code that keeps it: for each invariant, and what should be said of it."""

import json
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa

from store.database import Database, Transaction


def one(tx: Transaction, query: str, **values: object) -> Any:
    """The one value that a query gives."""
    return tx.connection.execute(sa.text(query), values).scalar_one()


def change(tx: Transaction, statement: str, **values: object) -> None:
    """Changes exactly one row."""
    assert tx.connection.execute(sa.text(statement), values).rowcount == 1, statement


def unguard(tx: Transaction, table: str) -> None:
    """Makes a table anew without any key, check or index, as a damaged file may have it."""
    cascade = "" if tx.is_sqlite else " CASCADE"
    for statement in (
        f"CREATE TABLE bare AS SELECT * FROM {table}",
        f"DROP TABLE {table}{cascade}",
        f"ALTER TABLE bare RENAME TO {table}",
    ):
        tx.connection.exec_driver_sql(statement)


def number_of(tx: Transaction, identifier: str) -> int:
    return int(one(tx, "SELECT id FROM devices WHERE identifier = :name", name=identifier))


def attempt_of(tx: Transaction, identifier: str, state: str) -> int:
    query = "SELECT id FROM attempts WHERE device_id = :device AND state = :state"
    return int(one(tx, query, device=number_of(tx, identifier), state=state))


def rollout_of(tx: Transaction, version: str) -> int:
    query = "SELECT r.id FROM rollouts r JOIN bundles b ON b.id = r.bundle_id WHERE b.version = :version"
    return int(one(tx, query, version=version))


def product_of(tx: Transaction, name: str) -> int:
    return int(one(tx, "SELECT id FROM products WHERE name = :name", name=name))


Breach = Callable[[Transaction], str]
"""Breaks one row; gives what should be said of it, line by line."""
BREACHES: list[tuple[str, Breach]] = []


def breaks(invariant: str) -> Callable[[Breach], Breach]:
    """Enters a breach of `invariant`."""

    def enter(breach: Breach) -> Breach:
        BREACHES.append((invariant, breach))
        return breach

    return enter


@breaks("I1")
def a_key_has_two_credentials(tx: Transaction) -> str:
    unguard(tx, "credentials")
    device = number_of(tx, "s-1")
    (key,) = tx.connection.execute(
        sa.text("SELECT key_id FROM credentials WHERE device_id = :device"), {"device": device}
    ).scalars()
    change(tx, "INSERT INTO credentials SELECT * FROM credentials WHERE key_id = :key", key=key)
    return f"key {key} has 2 credentials"


@breaks("I1")
def a_credential_has_no_device(tx: Transaction) -> str:
    unguard(tx, "credentials")
    source = "SELECT * FROM credentials WHERE device_id = :device"
    tx.connection.execute(sa.text(f"CREATE TABLE stray AS {source}"), {"device": number_of(tx, "s-1")})
    change(tx, "UPDATE stray SET id = 17, device_id = 18, key_id = 'another'")
    change(tx, "INSERT INTO credentials SELECT * FROM stray")
    return "credential 17 has no device"


@breaks("I1")
def a_welcomed_device_has_lost_its_key(tx: Transaction) -> str:
    unguard(tx, "credentials")
    device = number_of(tx, "s-2")
    change(tx, "DELETE FROM credentials WHERE device_id = :device", device=device)
    return f"device {device} was welcomed and has no credential"


@breaks("I2")
def a_key_is_of_another_products_ca(tx: Transaction) -> str:
    sensor, pump = product_of(tx, "sensor"), product_of(tx, "pump")
    change(
        tx,
        "UPDATE credentials SET authority_id = (SELECT id FROM authorities WHERE product_id = :pump) "
        "WHERE device_id = :device",
        pump=pump,
        device=number_of(tx, "s-2"),
    )
    return f"device s-2 is of product {sensor}, its CA of {pump}"


@breaks("I2")
def a_cohort_is_another_products(tx: Transaction) -> str:
    change(
        tx,
        "UPDATE cohorts SET product_id = :pump, name = 'moved' WHERE name = 'canary' AND product_id = :sensor",
        pump=product_of(tx, "pump"),
        sensor=product_of(tx, "sensor"),
    )
    return "device lab-1 stands in a cohort of another product"


@breaks("I3")
def an_offer_is_of_another_products_bundle(tx: Transaction) -> str:
    attempt, pump = attempt_of(tx, "lab-1", "offered"), product_of(tx, "pump")
    sensor = product_of(tx, "sensor")
    change(tx, "UPDATE attempts SET product_id = :pump WHERE id = :id", pump=pump, id=attempt)
    return f"attempt {attempt} of a device of product {sensor} is at a bundle of product {sensor}"


@breaks("I3")
def an_offer_went_to_another_cohort(tx: Transaction) -> str:
    attempt, rollout = attempt_of(tx, "s-2", "offered"), rollout_of(tx, "1.2.0")
    canary = one(
        tx,
        "SELECT id FROM cohorts WHERE name = 'canary' AND product_id = :sensor",
        sensor=product_of(tx, "sensor"),
    )
    change(tx, "UPDATE attempts SET cohort_id = :canary WHERE id = :id", canary=canary, id=attempt)
    return f"attempt {attempt} of rollout {rollout} went to cohort {canary}"


@breaks("I3")
def an_override_does_not_name_its_device(tx: Transaction) -> str:
    attempt = attempt_of(tx, "lab-1", "offered")
    override = one(tx, "SELECT id FROM overrides")
    change(tx, "DELETE FROM override_devices WHERE device_id = :device", device=number_of(tx, "lab-1"))
    return f"attempt {attempt} of override {override} went to a device it does not name"


@breaks("I4")
def a_rollout_had_more_in_flight_than_planned(tx: Transaction) -> str:
    rollout = rollout_of(tx, "1.1.0")
    plan = one(tx, "SELECT CAST(plan AS TEXT) FROM rollouts WHERE id = :id", id=rollout)
    less = json.dumps(json.loads(plan) | {"most_in_flight": 1})
    new = ":plan" if tx.is_sqlite else "CAST(:plan AS JSON)"
    change(tx, f"UPDATE rollouts SET plan = {new} WHERE id = :id", plan=less, id=rollout)
    return f"rollout {rollout} had 2 in flight, its plan allows 1"


@breaks("I4")
def an_offer_came_before_its_rollout_began(tx: Transaction) -> str:
    rollout = rollout_of(tx, "1.2.0")
    last = one(tx, "SELECT MAX(id) FROM events")
    change(
        tx,
        "UPDATE events SET id = :late WHERE kind = 'rollout' AND word = 'running' AND source_id = :rollout",
        late=last + 1,
        rollout=rollout,
    )
    return "\n".join(
        f"attempt {attempt_of(tx, name, 'offered')} was opened while rollout {rollout} was scheduled"
        for name in ("s-1", "s-2")
    )


@breaks("I4")
def a_device_has_two_open_attempts(tx: Transaction) -> str:
    tx.connection.exec_driver_sql("DROP INDEX uq_attempts_open")
    change(
        tx,
        "UPDATE attempts SET finished_at = NULL, times_out_at = 1 WHERE id = :id",
        id=attempt_of(tx, "s-1", "succeeded"),
    )
    return f"device {number_of(tx, 's-1')} has 2 open attempts"


@breaks("I4")
def an_attempt_stands_elsewhere_than_its_events_say(tx: Transaction) -> str:
    attempt = attempt_of(tx, "s-2", "offered")
    change(tx, "UPDATE attempts SET state = 'accepted' WHERE id = :id", id=attempt)
    rollout = rollout_of(tx, "1.2.0")
    return (
        f"attempt {attempt} is accepted, its last event says offered\n"
        f"rollout or override {rollout}/accepted has 1 attempts, the counter says 0\n"
        f"rollout or override {rollout}/offered has 1 attempts, the counter says 2"
    )


@breaks("I4")
def an_attempt_is_gone(tx: Transaction) -> str:
    attempt = attempt_of(tx, "s-2", "offered")
    change(tx, "DELETE FROM attempts WHERE id = :id", id=attempt)
    return (
        f"attempt {attempt} was opened and is gone\n"
        f"rollout or override {rollout_of(tx, '1.2.0')}/offered has 1 attempts, the counter says 2"
    )


@breaks("I5")
def a_counter_is_one_too_high(tx: Transaction) -> str:
    pump = product_of(tx, "pump")
    change(
        tx,
        "UPDATE counters SET value = value + 1 WHERE name = 'enrollments' AND bucket = 0 AND product_id = :pump",
        pump=pump,
    )
    return f"enrollments/jitp of product {pump}: events say 1, the counter 2"


@breaks("I5")
def a_counter_has_no_events(tx: Transaction) -> str:
    pump = product_of(tx, "pump")
    change(
        tx,
        "INSERT INTO counters (product_id, cohort_id, name, word, bucket, worker, value) "
        "VALUES (:pump, 0, 'refusals', 'jitp_disabled', 0, 'w', 3)",
        pump=pump,
    )
    return f"refusals/jitp_disabled of product {pump}: no events, the counter 3"


@breaks("I5")
def an_event_is_gone(tx: Transaction) -> str:
    pump = product_of(tx, "pump")
    change(tx, "DELETE FROM events WHERE kind = 'enrolled' AND product_id = :pump", pump=pump)
    return f"enrollments/jitp of product {pump}: no events, the counter 1"


@breaks("I5")
def a_devices_state_was_not_counted(tx: Transaction) -> str:
    change(tx, "UPDATE devices SET state = 'blocked' WHERE identifier = 's-2'")
    sensor = product_of(tx, "sensor")
    return (
        f"product {sensor} has 1 devices blocked, the counter says 0\n"
        f"product {sensor} has 1 devices active, the counter says 2"
    )


@breaks("I5")
def a_device_that_was_counted_is_gone(tx: Transaction) -> str:
    change(tx, "DELETE FROM devices WHERE identifier = 'awaited'")
    return f"product {product_of(tx, 'sensor')} has 0 devices pending, the counter says 1"


@breaks("I5")
def a_disconnect_was_not_counted(tx: Transaction) -> str:
    change(
        tx,
        "UPDATE connections SET state = 'offline' WHERE device_id = :device",
        device=number_of(tx, "s-2"),
    )
    return f"product {product_of(tx, 'sensor')}: 1 connected, the counter says 2"


@breaks("I5")
def a_connection_that_was_counted_is_gone(tx: Transaction) -> str:
    change(tx, "DELETE FROM connections WHERE device_id = :device", device=number_of(tx, "lab-1"))
    return f"product {product_of(tx, 'sensor')}: 0 connected, the counter says 1"


@breaks("I6")
def a_device_was_offered_less_than_it_had_proved(tx: Transaction) -> str:
    change(tx, "UPDATE attempts SET bundle_seq = 0 WHERE id = :id", id=attempt_of(tx, "s-1", "offered"))
    return f"device {number_of(tx, 's-1')} was offered bundle 0 after it had proved 1"


@breaks("I6")
def a_device_forgot_what_it_had_proved(tx: Transaction) -> str:
    change(tx, "UPDATE devices SET highest_bundle_seq = 0 WHERE identifier = 's-1'")
    return f"device {number_of(tx, 's-1')} proved bundle 1, its highest is 0"


@breaks("I9")
def an_audit_row_says_something_else(tx: Transaction) -> str:
    row = one(tx, "SELECT id FROM audit WHERE position = 3")
    change(tx, "UPDATE audit SET actor = 'nobody' WHERE id = :id", id=row)
    return f"audit row {row} does not continue the chain"


def break_store(store: Database, breach: Breach) -> str:
    """Commits a breach, as somebody does who goes round the code. Returns what should be said of it, line by line."""
    engine = sa.create_engine(store.url)  # not our door: SQLite keeps no foreign keys here
    with engine.begin() as connection:
        sentence = breach(Transaction(connection))
    engine.dispose()
    return sentence
