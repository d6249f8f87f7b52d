"""Retention: what the settings keep is kept, the rest goes by itself, and no artifact that is needed goes with it."""

import hashlib
import os
import secrets
import signal
import subprocess
import sys
import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import structlog
from broker_fixtures import wait_until
from fleets import KEY, Fleet, make_fleet
from running import TestDevice, running_gateway
from structlog.typing import EventDict

from gateway import retention
from gateway.operations import bundles
from gateway.operations.bundles import RefusedBundleError
from gateway.retention import Retention
from gateway.settings import RetentionSettings
from provisioning.bundles import Artifact, BundleStatement, sign_statement
from provisioning.errors import ConflictError, InvalidError, RejectReason
from provisioning.ids import ProductId
from provisioning.statistics import Event, EventKind
from store import artifacts, counters
from store.blobs import Blobs
from store.database import Database, StoreUnavailableError
from store.firmware_schema import artifacts as table
from store.schema import counters as counted
from store.schema import events, inbox, sessions
from store.times import now_utc, to_ms
from store.verify import verify

HOUR_MS = 3_600_000


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Fleet:
    made = make_fleet(database, tmp_path)
    for product in ("sensor", "pump"):
        made.product(product)
        made.sign_bundles(product)
    return made


def blobs_of(fleet: Fleet) -> Blobs:
    assert fleet.desk.blobs is not None
    return fleet.desk.blobs


def retention_of(fleet: Fleet, **settings: int) -> Retention:
    everything = dict.fromkeys(RetentionSettings.model_fields, 0)
    kept = RetentionSettings.model_validate(everything | settings)
    return Retention(fleet.database, blobs_of(fleet), kept, is_holder=lambda: True, chunk=3)


def work(kept: Retention) -> list[EventDict]:
    """One round to its end. Returns what was logged."""
    with structlog.testing.capture_logs() as logged:
        while kept.work():
            pass
    return logged


def upload(fleet: Fleet, product: str, content: bytes) -> str:
    sha256 = hashlib.sha256(content).hexdigest()
    number, arriving = bundles.begin_upload(fleet.desk, fleet.principal, product)
    with arriving:
        arriving.write(content)
        bundles.finish_upload(fleet.desk, fleet.principal, number, arriving, sha256)
    return sha256


def envelope(product: str, version: str, seq: int, content: bytes) -> bytes:
    one = Artifact(name="image.bin", size=len(content), sha256=hashlib.sha256(content).hexdigest())
    statement = BundleStatement(product=product, version=version, bundle_seq=seq, artifacts=(one,))
    return sign_statement(KEY, statement)


def age(fleet: Fleet, *digests: str, hours: float = 25) -> None:
    """As if they had been uploaded so much earlier."""
    with fleet.database.write() as tx:
        tx.connection.execute(
            sa.update(table)
            .where(table.c.sha256.in_(digests))
            .values(created_at=table.c.created_at - int(hours * HOUR_MS))
        )


def sizes(fleet: Fleet, sha256: str) -> list[int]:
    """The rows of an artifact, by their sizes."""
    query = sa.select(table.c.size).where(table.c.sha256 == sha256).order_by(table.c.size)
    with fleet.database.read() as tx:
        return list(tx.connection.execute(query).scalars())


def test_artifacts_without_a_bundle_go_and_those_of_bundles_and_of_fresh_uploads_stay(fleet: Fleet) -> None:
    used, refused, fresh = (secrets.token_bytes(50) for _ in range(3))
    digests = [upload(fleet, "sensor", content) for content in (used, refused, fresh)]
    bundles.push(fleet.desk, fleet.principal, "sensor", envelope("sensor", "1.1.0", 5, used))
    with pytest.raises(RefusedBundleError):
        bundles.push(fleet.desk, fleet.principal, "sensor", envelope("sensor", "1.2.0", 4, refused))
    age(fleet, digests[0], digests[1])
    kept = retention_of(fleet, refused_uploads_hours=24)
    assert [one for one in work(kept) if one["event"] == "pruned"] == [
        {"event": "pruned", "log_level": "info", "uploads": 1}
    ]
    assert [blobs_of(fleet).size(digest) for digest in digests] == [50, None, 50]
    assert [sizes(fleet, digest) for digest in digests] == [[50], [], [50]]
    assert work(kept) == []
    upload(fleet, "sensor", refused)
    bundles.push(fleet.desk, fleet.principal, "sensor", envelope("sensor", "1.2.0", 6, refused))
    assert blobs_of(fleet).size(digests[1]) == 50


def test_with_0_every_artifact_stays(fleet: Fleet) -> None:
    digest = upload(fleet, "sensor", b"unused")
    age(fleet, digest, hours=24 * 4000)
    assert work(retention_of(fleet)) == []
    assert blobs_of(fleet).size(digest) == 6


def test_a_blob_stays_while_another_product_has_it(fleet: Fleet) -> None:
    digest = upload(fleet, "sensor", b"shared")
    assert upload(fleet, "pump", b"shared") == digest
    bundles.push(fleet.desk, fleet.principal, "pump", envelope("pump", "1.1.0", 1, b"shared"))
    age(fleet, digest)
    work(retention_of(fleet, refused_uploads_hours=24))
    assert blobs_of(fleet).size(digest) == 6
    assert sizes(fleet, digest) == [6], "the sensor's row is gone, the pump's stays"
    with pytest.raises(RefusedBundleError) as caught:
        bundles.push(fleet.desk, fleet.principal, "sensor", envelope("sensor", "1.1.0", 1, b"shared"))
    assert caught.value.reason is RejectReason.ARTIFACT_MISSING


def test_a_blob_that_no_product_uses_any_more_goes_with_both_rows(fleet: Fleet) -> None:
    digest = upload(fleet, "sensor", b"shared")
    upload(fleet, "pump", b"shared")
    age(fleet, digest)
    work(retention_of(fleet, refused_uploads_hours=24))
    assert (blobs_of(fleet).size(digest), sizes(fleet, digest)) == (None, [])


def test_sending_an_artifact_again_keeps_it_for_its_whole_time_anew(fleet: Fleet) -> None:
    digest = upload(fleet, "sensor", b"again")
    age(fleet, digest)
    upload(fleet, "sensor", b"again")
    work(retention_of(fleet, refused_uploads_hours=24))
    assert (blobs_of(fleet).size(digest), sizes(fleet, digest)) == (5, [5])


def begin(fleet: Fleet, product: str, digest: str) -> ProductId:
    """An upload that has been verified, and whose blob is not in place yet."""
    number, _ = bundles.begin_upload(fleet.desk, fleet.principal, product)
    with fleet.database.write([artifacts.lock(digest)]) as tx:
        artifacts.begin(tx, fleet.desk.new_id(), number, digest)
    return number


def test_an_old_artifact_that_is_just_being_sent_again_is_left_alone(fleet: Fleet) -> None:
    digest = upload(fleet, "sensor", b"again")
    age(fleet, digest)
    begin(fleet, "sensor", digest)
    work(retention_of(fleet, refused_uploads_hours=24))
    assert (blobs_of(fleet).size(digest), sizes(fleet, digest)) == (5, [5])


def condemn(fleet: Fleet, digest: str) -> bool:
    """A removal up to the moment at which the blob is deleted."""
    before = now_utc() - timedelta(hours=24)
    with fleet.database.write([artifacts.lock(digest)]) as tx:
        (unused,) = artifacts.list_unused(tx, before, 10)
        return artifacts.condemn(tx, unused, before)


def test_an_upload_under_way_keeps_the_blob_from_being_removed(fleet: Fleet) -> None:
    """Another product's unused artifact of the same content is old; the bytes for this one are just arriving."""
    digest = upload(fleet, "sensor", b"shared")
    age(fleet, digest)
    number = begin(fleet, "pump", digest)
    work(retention_of(fleet, refused_uploads_hours=24))
    assert blobs_of(fleet).size(digest) == 6
    assert sizes(fleet, digest) == [artifacts.ARRIVING]
    with pytest.raises(RefusedBundleError) as caught:
        bundles.push(fleet.desk, fleet.principal, "pump", envelope("pump", "1.1.0", 1, b"shared"))
    assert caught.value.reason is RejectReason.ARTIFACT_MISSING, (
        "no bundle counts on bytes that are not in place"
    )
    with fleet.database.write([artifacts.lock(digest)]) as tx:
        artifacts.complete(tx, number, digest, 6)
    bundles.push(fleet.desk, fleet.principal, "pump", envelope("pump", "1.1.0", 1, b"shared"))


def test_an_upload_waits_while_its_blob_is_being_deleted_but_not_for_a_dead_process(fleet: Fleet) -> None:
    digest = upload(fleet, "sensor", b"unused")
    age(fleet, digest)
    assert condemn(fleet, digest)
    for product in ("sensor", "pump"):
        with pytest.raises(ConflictError, match=f"artifact {digest} is just being removed, .* send it again"):
            upload(fleet, product, b"unused")
    assert sizes(fleet, digest) == [artifacts.REMOVED]
    age(fleet, digest, hours=0.2)
    upload(fleet, "sensor", b"unused")
    assert (blobs_of(fleet).size(digest), sizes(fleet, digest)) == (6, [6])


def test_an_upload_that_took_longer_than_unused_ones_are_kept_is_sent_again(fleet: Fleet) -> None:
    digest = hashlib.sha256(b"slow").hexdigest()
    number = begin(fleet, "sensor", digest)
    age(fleet, digest)
    assert condemn(fleet, digest)
    with (
        pytest.raises(ConflictError, match="was removed while it arrived; send it again"),
        fleet.database.write([artifacts.lock(digest)]) as tx,
    ):
        artifacts.complete(tx, number, digest, 4)


def test_what_a_cut_off_upload_has_put_in_place_is_found_and_deleted(fleet: Fleet) -> None:
    """The process died between the blob and the row that says it is stored."""
    digest = hashlib.sha256(b"cut off").hexdigest()
    begin(fleet, "sensor", digest)
    with blobs_of(fleet).upload() as arriving:
        arriving.write(b"cut off")
        arriving.finish(digest)
    age(fleet, digest)
    work(retention_of(fleet, refused_uploads_hours=24))
    assert (blobs_of(fleet).size(digest), sizes(fleet, digest)) == (None, [])


def test_bytes_that_are_not_what_they_should_be_leave_no_row(fleet: Fleet) -> None:
    number, arriving = bundles.begin_upload(fleet.desk, fleet.principal, "sensor")
    with arriving:
        arriving.write(b"other")
        with pytest.raises(InvalidError, match="artifact_mismatch"):
            bundles.finish_upload(fleet.desk, fleet.principal, number, arriving, "0" * 64)
    assert sizes(fleet, "0" * 64) == []


def plain(at: datetime, product: int) -> Event:
    return Event(
        at=at,
        kind=EventKind.ENROLLED,
        product_id=ProductId(product),
        cohort_id=None,
        device_id=None,
        word="jitp",
    )


def fill_past(fleet: Fleet) -> None:
    """Ten of everything, from 1, 101, 201 … days ago."""
    now = now_utc()
    times = [now - timedelta(days=days) for days in reversed(range(1, 1000, 100))]
    with fleet.database.write() as tx:
        number = tx.connection.execute(sa.text("SELECT id FROM products WHERE name = 'pump'")).scalar_one()
        counters.record(tx, "w", [plain(at, number) for at in times])
    fleet.enroll("sensor", "s-1")
    assert fleet.greet(fleet.voice("pump", "s-1")) == ["topic_name_taken"]
    with fleet.database.write() as tx:
        device = tx.connection.execute(sa.text("SELECT id FROM devices")).scalar_one()
        row = {"device_id": device, "conn": "c", "opened_at": 0, "reason": "will"}
        tx.connection.execute(sa.insert(sessions), [row | {"closed_at": to_ms(at)} for at in times])
        seen = dict(tx.connection.execute(sa.select(inbox)).mappings().one())
        del seen["id"]
        tx.connection.execute(
            sa.insert(inbox),
            [seen | {"key_id": f"k-{n}", "last_at": to_ms(at)} for n, at in enumerate(times)],
        )


def count_rows(fleet: Fleet) -> dict[str, int]:
    minutes = sa.select(sa.func.count()).where(counted.c.bucket > 0, counted.c.name == "enrollments")
    enrolled = sa.select(sa.func.count()).where(events.c.kind == "enrolled")
    with fleet.database.read() as tx:
        return {
            "events": tx.connection.execute(enrolled).scalar_one(),
            "minutes": tx.connection.execute(minutes).scalar_one(),
            "sessions": tx.connection.execute(sa.select(sa.func.count()).select_from(sessions)).scalar_one(),
            "inbox": tx.connection.execute(sa.select(sa.func.count()).select_from(inbox)).scalar_one(),
        }


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, {}),
        ({"events_days": 90}, {"events": 9}),
        ({"events_days": 250, "minutes_days": 450}, {"events": 7, "minutes": 5}),
        ({"events_days": 450, "minutes_days": 250}, {"events": 5, "minutes": 7}),
        ({"sessions_days": 150}, {"sessions": 8}),
        ({"inbox_days": 350}, {"inbox": 6}),
        (
            {"events_days": 90, "minutes_days": 90, "sessions_days": 90, "inbox_days": 180},
            {"events": 9, "minutes": 9, "sessions": 9, "inbox": 8},
        ),
    ],
)
def test_each_setting_keeps_what_it_says_in_pieces_and_logs_what_went(
    fleet: Fleet, settings: dict[str, int], expected: dict[str, int]
) -> None:
    fill_past(fleet)
    before = count_rows(fleet)
    assert verify(fleet.database).ok
    kept = retention_of(fleet, **settings)
    with structlog.testing.capture_logs() as logged:
        while kept.work():
            report = verify(fleet.database)
            assert report.ok, report
    assert verify(fleet.database).ok
    went = {kind: before[kind] - left for kind, left in count_rows(fleet).items()}
    assert {kind: count for kind, count in went.items() if count} == expected
    said = [one for one in logged if one["event"] == "pruned"]
    assert len(said) == bool(expected)
    for one in said:
        assert {kind: one.get(kind) for kind in expected} | {"minutes": 0} == expected | {"minutes": 0}
        assert one.get("minutes", 0) >= expected.get("minutes", 0), "those of the checkpoint are counted too"
    assert work(kept) == [], "a second round finds nothing"


def test_what_fails_does_not_keep_the_rest_from_being_pruned(fleet: Fleet) -> None:
    fill_past(fleet)
    digest = upload(fleet, "sensor", b"unused")
    age(fleet, digest)
    file = Path(str(blobs_of(fleet))) / digest[:2] / digest
    file.unlink()
    file.mkdir()
    kept = retention_of(fleet, events_days=90, sessions_days=90, refused_uploads_hours=24)
    logged = work(kept)
    (failed,) = [one for one in logged if one["event"] == "pruning_failed"]
    assert failed["kind"] == "_remove_uploads"
    assert failed["cause"].startswith(f"blob store {blobs_of(fleet)}: ")
    (said,) = [one for one in logged if one["event"] == "pruned"]
    assert (said["events"], said["sessions"]) == (9, 9)
    assert sizes(fleet, digest) == [artifacts.REMOVED], "no bundle may use it, since its blob may be gone"
    file.rmdir()
    age(fleet, digest)
    work(kept)
    assert sizes(fleet, digest) == [], "a later round comes to its end"


KILLED = """
import sys
from datetime import UTC, datetime
from pathlib import Path
from gateway.retention import Retention
from gateway.settings import RetentionSettings
from store.blobs import Blobs
from store.database import Database

url, blobs, staging = sys.argv[1:]
kept = Retention(Database(url), Blobs(blobs, Path(staging)), RetentionSettings(), is_holder=lambda: True, chunk=3)
while kept.work():
    pass
"""


@pytest.mark.parametrize(
    "point", ["in_prune:1", "in_prune:2", "in_prune:7", "before_blob_removed", "after_blob_removed"]
)
def test_killed_anywhere_the_store_is_whole_and_the_next_round_goes_on(
    fleet: Fleet, tmp_path: Path, point: str
) -> None:
    fill_past(fleet)
    digest = upload(fleet, "sensor", b"unused")
    age(fleet, digest)
    url = fleet.database.url.set(drivername=fleet.database.url.get_backend_name())
    command = [sys.executable, "-c", KILLED, url.render_as_string(hide_password=False)]
    command += [str(blobs_of(fleet)), str(tmp_path / "staging")]
    ended = subprocess.run(
        command, env=os.environ | {"FLEETGATE_KILL_AT": point}, capture_output=True, timeout=60, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    report = verify(fleet.database)
    assert report.ok, report
    if point.endswith("_removed"):
        assert sizes(fleet, digest) == [artifacts.REMOVED]
        with pytest.raises(RefusedBundleError):
            bundles.push(fleet.desk, fleet.principal, "sensor", envelope("sensor", "1.1.0", 1, b"unused"))
        age(fleet, digest)
    again = subprocess.run(command, capture_output=True, timeout=60, check=False)
    assert again.returncode == 0, again.stderr
    assert verify(fleet.database).ok
    assert count_rows(fleet) == {"events": 2, "minutes": 2, "sessions": 1, "inbox": 3}
    assert (blobs_of(fleet).size(digest), sizes(fleet, digest)) == (None, [])


def test_while_the_database_is_away_a_piece_is_kept_for_later(fleet: Fleet) -> None:
    fill_past(fleet)
    kept = retention_of(fleet, events_days=90)
    fleet.database.close()
    real = fleet.database.engine
    fleet.database.engine = sa.create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none")  # type: ignore[misc]
    try:
        with pytest.raises(StoreUnavailableError):
            kept.work()
    finally:
        fleet.database.engine = real  # type: ignore[misc]
    work(kept)
    assert count_rows(fleet)["events"] == 2


@pytest.fixture
def _hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that begins at once, so that the test need not wait for a minute."""
    for name in ("FIRST_SECONDS", "PAUSE_SECONDS", "REST_SECONDS"):
        monkeypatch.setattr(retention, name, 0.01)


def test_a_worker_without_the_lease_deletes_artifacts_and_no_rows_and_one_without_blobs_the_reverse(
    fleet: Fleet,
) -> None:
    fill_past(fleet)
    before = count_rows(fleet)
    digest = upload(fleet, "sensor", b"unused")
    age(fleet, digest)
    work(Retention(fleet.database, blobs_of(fleet), RetentionSettings(), is_holder=lambda: False))
    assert sizes(fleet, digest) == []
    assert count_rows(fleet) == before
    upload(fleet, "sensor", b"unused")
    age(fleet, digest)
    work(Retention(fleet.database, None, RetentionSettings(), is_holder=lambda: True))
    assert sizes(fleet, digest) == [6]
    assert count_rows(fleet) == {"events": 2, "minutes": 2, "sessions": 1, "inbox": 3}


def test_a_lease_that_is_lost_within_a_round_ends_the_round(fleet: Fleet) -> None:
    fill_past(fleet)
    holds = [True]
    kept = Retention(fleet.database, None, RetentionSettings(), is_holder=lambda: holds[0], chunk=3)
    assert kept.work()
    holds[0] = False
    with structlog.testing.capture_logs() as logged:
        while kept.work():
            pass
    assert logged == [{"event": "pruned", "log_level": "info", "events": 3}]
    assert count_rows(fleet) == {"events": 8, "minutes": 11, "sessions": 10, "inbox": 11}


@pytest.mark.usefixtures("_hurry")
def test_only_the_holder_of_the_lease_prunes_and_it_ends_when_told_to(fleet: Fleet) -> None:
    fill_past(fleet)
    asked: list[bool] = []
    answers: list[bool] = [False]

    def is_holder() -> bool:
        asked.append(answers[0])
        return answers[0]

    kept = Retention(fleet.database, blobs_of(fleet), RetentionSettings(), is_holder=is_holder, chunk=3)
    before = count_rows(fleet)
    kept.start()
    wait_until(lambda: len(asked) > 3, "it asks again and again whether it holds the lease")
    assert count_rows(fleet) == before
    answers[0] = True
    left: dict[str, Any] = {"events": 2, "minutes": 2, "sessions": 1, "inbox": 3}
    wait_until(lambda: count_rows(fleet) == left, "it has pruned")
    kept.stop()
    assert "retention" not in {thread.name for thread in threading.enumerate()}
    assert verify(fleet.database).ok


@pytest.mark.usefixtures("_hurry")
def test_a_running_gateway_prunes_while_devices_come_and_go(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "fleetgate") as running:
        authority = running.product("sensor")
        device = TestDevice(running, authority.issue("s-1", now=now_utc()), tmp_path).connect()
        device.hello()
        with running.database.write() as tx:
            number = tx.connection.execute(sa.text("SELECT id FROM devices")).scalar_one()
            row = {"device_id": number, "conn": "c", "opened_at": 0, "closed_at": 1, "reason": "will"}
            tx.connection.execute(sa.insert(sessions).values(row))

        def pruned() -> bool:
            with running.database.read() as tx:
                old = sa.select(sa.func.count()).where(sessions.c.closed_at == 1)
                return bool(tx.connection.execute(old).scalar_one() == 0)

        wait_until(pruned, "the old session is gone")
        assert verify(running.database).ok
