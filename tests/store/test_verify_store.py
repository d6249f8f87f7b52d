"""`verify-store`: clean over what the code has made, and each seeded breach found, under its own invariant."""

import atexit
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import sqlalchemy as sa
from breaches import BREACHES, Breach, a_device_forgot_what_it_had_proved, break_store, one
from databases import new_migrated_url, new_postgresql
from fleets import Fleet, hello, make_fleet, says

from gateway.device.messages import Presence
from gateway.housekeeping import Housekeeping
from gateway.installation import create_installation
from gateway.operations import devices, rollouts
from provisioning.topics import Up
from store.database import Database
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
