"""`verify-store`: clean over what the code has made, and each seeded breach found, under its own invariant."""

import atexit
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from databases import new_migrated_url, new_postgresql
from fleets import Fleet, hello, make_fleet, says

from gateway.device.messages import Presence
from gateway.housekeeping import Housekeeping
from gateway.installation import create_installation
from gateway.operations import devices, rollouts
from provisioning.topics import Up
from store.database import Database, Transaction
from store.times import now_utc
from store.verify import Report, verify

STEPS = ("accepted", "downloading", "downloaded", "verified", "installing", "rebooting")


def populate(fleet: Fleet) -> None:
    """Something of every kind: devices that came, left and were refused; bundles, offers, and one that succeeded."""
    for product in ("sensor", "pump"):
        fleet.product(product)
    devices.create(fleet.desk, fleet.principal, product="sensor", identifier="awaited", cohort="main")
    devices.create(fleet.desk, fleet.principal, product="sensor", identifier="lab-2")
    first, _second = fleet.enroll("sensor", "s-1", "s-2")
    fleet.enroll("sensor", "lab-1", "lab-2", model="lab")
    (pump,) = fleet.enroll("pump", "p-1")
    fleet.hear(*says(pump, Up.PRESENCE, [pump.presence(Presence.ONLINE), pump.presence(Presence.OFFLINE)]))
    assert fleet.greet(fleet.voice("pump", "s-1")) == ["topic_name_taken"]
    fleet.sign_bundles("sensor")
    fleet.push("sensor", "1.1.0", 1)
    fleet.push("sensor", "1.2.0", 2)
    fleet.roll_out("sensor", "1.1.0", "main", most_in_flight=2)
    with fleet.database.read() as tx:
        offer = one(
            tx, "SELECT a.id FROM attempts a JOIN devices d ON d.id = a.device_id WHERE d.identifier = 's-1'"
        )
    fleet.hear(
        *says(first, Up.PROGRESS, [first.progress(offer_id=str(offer), state=state) for state in STEPS])
    )
    first.reboot(version="1.1.0", bundle_seq=1)
    first.begin_connection()
    fleet.hear(hello(first))
    fleet.roll_out("sensor", "1.2.0", "main")
    rollouts.create_override(
        fleet.desk,
        fleet.principal,
        product="sensor",
        version="1.2.0",
        names=["lab-1"],
        starts_at=None,
        ends_at=None,
    )
    fleet.offer()
    Housekeeping(fleet.database, broker="main", worker="w", clock=now_utc).work()


@cache
def populated(kind: str) -> sa.URL:
    """A store of each kind that nobody uses, to be copied."""
    directory = Path(tempfile.mkdtemp(prefix="fleetgate-populated-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    database = Database(new_migrated_url(kind, directory))
    populate(make_fleet(database, directory))
    database.close()
    return database.url


@pytest.fixture(params=["sqlite", "postgresql"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Database]:
    """A valid store of the test's own."""
    template = populated(request.param).database
    assert template is not None
    if request.param == "sqlite":
        shutil.copyfile(template, tmp_path / "test.db")
        url = f"sqlite:///{tmp_path / 'test.db'}"
    else:
        url = new_postgresql(template)
    database = Database(url)
    yield database
    database.close()


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
    return f"attempt {attempt} is accepted, its last event says offered"


@breaks("I4")
def an_attempt_is_gone(tx: Transaction) -> str:
    attempt = attempt_of(tx, "s-2", "offered")
    change(tx, "DELETE FROM attempts WHERE id = :id", id=attempt)
    return f"attempt {attempt} was opened and is gone"


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


def broken_in(report: Report) -> dict[str, set[str]]:
    """The breaches of each invariant that has any."""
    found: dict[str, set[str]] = {}
    for finding in report.findings:
        if finding.breaches:
            found.setdefault(finding.invariant, set()).update(finding.breaches)
    return found


def test_a_valid_store_is_clean_and_no_check_looks_at_nothing(store: Database) -> None:
    report = verify(store)
    assert report.ok, report
    assert {finding.invariant for finding in report.findings} == {"I1", "I2", "I3", "I4", "I5", "I6", "I9"}
    assert [finding.what for finding in report.findings if finding.checked == 0] == []


@pytest.mark.parametrize(
    ("invariant", "breach"), BREACHES, ids=[f"{name}-{breach.__name__}" for name, breach in BREACHES]
)
def test_one_broken_row_is_found_and_named(store: Database, invariant: str, breach: Breach) -> None:
    said = break_store(store, breach)
    assert broken_in(verify(store)) == {invariant: set(said.splitlines())}


def run_verify_store(database: sa.URL, directory: Path) -> subprocess.CompletedProcess[str]:
    """The command as an operator runs it, on this store."""
    url = database.set(drivername=database.get_backend_name()).render_as_string(hide_password=False)
    settings = directory / "fleetgate" / "fleetgate.toml"
    return subprocess.run(
        [sys.executable, "-m", "gateway", "verify-store", "--config", str(settings)],
        env=os.environ | {"FLEETGATE_DATABASE__URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("store", ["sqlite"], indirect=True)
def test_the_command_ends_with_0_over_a_valid_store_and_else_with_1_and_says_what_is_broken(
    store: Database, tmp_path: Path
) -> None:
    create_installation(tmp_path / "fleetgate", device_host="localhost", now=now_utc())
    ran = run_verify_store(store.url, tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert {line.split()[0] for line in ran.stdout.splitlines()} == {"ok"}
    said = break_store(store, a_device_forgot_what_it_had_proved)
    ran = run_verify_store(store.url, tmp_path)
    assert (ran.returncode, ran.stderr) == (1, "")
    lines = ran.stdout.splitlines()
    at = next(number for number, line in enumerate(lines) if not line.startswith("ok "))
    assert lines[at].startswith("BREACH I6 no device was offered or proved less")
    assert lines[at + 1].strip() == said
    assert all(line.startswith("ok ") for line in lines[:at] + lines[at + 2 :])
