"""Updates under faults: killed at every point of offering, across a start, two workers, a broker killed."""

import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import wait_until
from databases import new_url
from faults.test_kill import is_service_ready, supervised
from firmware import KEY, KEYS, attempts_of, make_product, push
from running import Running, running_gateway
from workers import Workers

from gateway.device.fleet import Broker, Fleet, FleetReport
from gateway.device.messages import Profile
from gateway.device.plans import Plan
from gateway.operations import rollouts
from provisioning import rollouts as core
from provisioning.bundles import Artifact, BundleStatement, sign_statement
from provisioning.rollouts import RolloutState
from store import attempts, reports
from store.times import now_utc
from store.verify import verify

pytestmark = [pytest.mark.faults, pytest.mark.timeout(300)]
DEVICES = 24


def fleet_of(running: Running, product: str, count: int) -> Fleet:
    place = running.installed.installation
    broker = Broker(
        host="localhost",
        port=place.device_port,
        cafile=place.broker_ca,
        audience=place.audience,
        prefix=place.prefix,
    )
    authority, now = running.made[product], now_utc()
    return Fleet(
        [
            Plan(
                name=f"{product}-{number}",
                made=authority.issue(f"{product}-{number}", now=now),
                profile=Profile(version="0.9.0"),
                keys=KEYS,
            )
            for number in range(count)
        ],
        broker,
        connects_per_second=60,
    )


def all_updated(fleet: Fleet) -> bool:
    return all("succeeded" in device.outcome.updates.values() for device in fleet.devices)


def plan_rollout(running: Running, product: str, version: str, seconds: float = 0.0, **plan: Any) -> Any:
    (view,) = rollouts.create(
        running.desk,
        running.principal,
        product=product,
        version=version,
        cohorts=["main"],
        plan=core.Plan(**plan),
        start_at=now_utc() + timedelta(seconds=seconds),
    )
    return view


def check(running: Running, view: Any, count: int, report: FleetReport) -> None:
    """Everybody has the firmware, after one attempt each, and every invariant holds."""
    assert attempts_of(running, view) == {"succeeded": count}, report
    with running.database.read() as tx:
        assert attempts.count_by_state(tx) == {"succeeded": count}
    checked = verify(running.database)
    assert checked.ok, checked


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    "point",
    ["before_start", "after_start", "before_offer", "after_offer", "after_offer_publish", "after_publish"],
)
def test_killed_while_offering_every_device_is_updated_once(tmp_path: Path, kind: str, point: str) -> None:
    url = new_url(kind, tmp_path)
    with running_gateway(tmp_path / "fleetgate", url) as running:
        product = make_product(running, "sensor")
        statement = push(running, product)
        # Offers within welcomes need a rollout that has begun; offers on their topic, devices that are there before.
        seconds = 0 if point == "after_publish" else 2
        view = plan_rollout(running, product, statement.version, seconds=seconds, most_in_flight=8)
        if not seconds:
            wait_until(lambda: starts(running, view) == 1, "the rollout starts")
        running.gateway.stop()
        found: list[tuple[int, int, int]] = []

        def look() -> None:
            states = attempts_of(running, view)
            made = sum(states.values())
            found.append((starts(running, view), made, made - states.get("succeeded", 0)))

        # The start is reached once; the others again and again.
        count = 1 if point.endswith("_start") else 2
        with supervised(running, url, f"{point}:{count}", look) as ended:
            fleet = fleet_of(running, product, DEVICES)
            report = fleet.run(90, until=all_updated)
            with running.database.read() as tx:
                still = attempts.list_of_rollout(tx, view.rollout.id, only_open=True)
            fleet.close()
            wait_until(lambda: attempts_of(running, view) == {"succeeded": DEVICES}, f"all succeed: {still}")
        assert ended[0] == -9, f"the gateway should have been killed at {point}"
        started, made, in_flight = found[0]
        assert started == (point != "before_start"), "the rollout had begun, or not, when it died"
        if point.endswith("_start"):
            assert made == 0
        else:
            assert 0 < made < DEVICES, "some had been offered it when it died, and others not"
            assert in_flight <= 8
            assert in_flight or point == "before_offer", "an offer was under way when it died"
        check(running, view, DEVICES, report)
        running.restart()


def test_a_start_that_fell_into_a_restart_is_neither_lost_nor_doubled(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "fleetgate") as running:
        product = make_product(running, "sensor")
        statement = push(running, product)
        view = plan_rollout(running, product, statement.version, seconds=1)
        running.gateway.stop()
        wait_until(lambda: now_utc() > view.rollout.start_at + timedelta(seconds=1), "its time passes")
        running.restart()
        fleet = fleet_of(running, product, 5)
        report = fleet.run(60, until=all_updated)
        fleet.close()
        wait_until(lambda: attempts_of(running, view) == {"succeeded": 5}, "all succeed")
        assert starts(running, view) == 1
        check(running, view, 5, report)


def starts(running: Running, view: Any) -> int:
    """How often the rollout has begun, by its events."""
    with running.database.read() as tx:
        return reports.count_rollout_events(tx, view.rollout.id, "running")


def test_two_workers_offer_under_one_limit_and_the_leader_dies(tmp_path: Path) -> None:
    url = new_url("postgresql", tmp_path)
    with running_gateway(tmp_path / "fleetgate", url) as running:
        product = make_product(running, "sensor")
        statement = push(running, product)
        running.gateway.stop()
        with Workers(running, url, 2, tmp_path) as workers:
            view = plan_rollout(running, product, statement.version, seconds=3, most_in_flight=5)
            fleet = fleet_of(running, product, 40)
            seen: dict[str, int] = {"in_flight": 0}

            def half_way(fleet: Fleet) -> bool:
                found = attempts_of(running, view)
                done = found.get("succeeded", 0)
                seen["in_flight"] = max(seen["in_flight"], sum(found.values()) - done)
                if done >= 10 and "killed" not in seen:
                    seen["killed"] = workers.leader()
                    workers.kill(seen["killed"])
                    workers.start(seen["killed"])
                return all_updated(fleet)

            report = fleet.run(150, until=half_way)
            wait_until(
                lambda: attempts_of(running, view) == {"succeeded": 40}, f"all succeed: {report.updates}", 30
            )
            fleet.close()
            assert "killed" in seen
            assert seen["in_flight"] == 5, "the limit was reached, and never passed"
            assert all(workers.offered()), workers.offered()
        assert starts(running, view) == 1
        check(running, view, 40, report)
        running.restart()


def test_nothing_is_offered_once_a_pause_has_returned(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "fleetgate") as running:
        product = make_product(running, "sensor")
        statement = push(running, product)
        view = plan_rollout(running, product, statement.version, most_in_flight=3)
        fleet = fleet_of(running, product, 20)
        paused: dict[str, int] = {}

        def pause(fleet: Fleet) -> bool:
            if (
                not paused
                and len(attempts_of(running, view))
                and sum(attempts_of(running, view).values()) >= 4
            ):
                rollouts.move(running.desk, running.principal, view.rollout.id, RolloutState.PAUSED)
                paused["offered"] = sum(attempts_of(running, view).values())
                paused["until"] = int(time.monotonic()) + 5
            if paused and time.monotonic() > paused["until"] and "resumed" not in paused:
                assert sum(attempts_of(running, view).values()) == paused["offered"]
                rollouts.move(running.desk, running.principal, view.rollout.id, RolloutState.RUNNING)
                paused["resumed"] = 1
            return all_updated(fleet)

        report = fleet.run(90, until=pause)
        wait_until(lambda: attempts_of(running, view) == {"succeeded": 20}, f"all succeed: {report.updates}")
        fleet.close()
        assert "resumed" in paused
        check(running, view, 20, report)


def test_offers_survive_a_broker_that_is_killed(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "fleetgate") as running:
        product = make_product(running, "sensor")
        statement = push(running, product)
        view = plan_rollout(running, product, statement.version, seconds=3, most_in_flight=6)
        fleet = fleet_of(running, product, 24)
        killed = {"done": False}

        def kill(fleet: Fleet) -> bool:
            if not killed["done"] and sum(attempts_of(running, view).values()) >= 6:
                killed["done"] = True
                running.installed.broker.kill()
                running.installed.broker.start()
            return all_updated(fleet)

        report = fleet.run(100, until=kill)
        wait_until(
            lambda: attempts_of(running, view) == {"succeeded": 24}, f"all succeed: {report.updates}", 30
        )
        fleet.close()
        assert killed["done"]
        check(running, view, 24, report)


def test_a_large_artifact_goes_in_and_out_in_constant_memory(tmp_path: Path) -> None:
    size = 1 << 30
    url = new_url("sqlite", tmp_path)
    with running_gateway(tmp_path / "fleetgate", url) as running:
        product = make_product(running, "sensor")
        running.gateway.stop()
        environment = os.environ | {"FLEETGATE_DATABASE__URL": url}
        config = str(running.installed.installation.settings)
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", config], env=environment
        )
        try:
            wait_until(lambda: is_service_ready(running), "the service is ready", 30)
            before = peak_kib(process.pid)
            digest = send_large(running, product, size)
            put = peak_kib(process.pid)
            statement = large_statement(running, product, size, digest)
            view = plan_rollout(running, product, statement)
            fleet = fleet_of(running, product, 1)
            report = fleet.run(110, until=all_updated)
            fleet.close()
            after = peak_kib(process.pid)
        finally:
            process.terminate()
            assert process.wait(timeout=60) == 0
        assert attempts_of(running, view) == {"succeeded": 1}, report
        sys.stderr.write(f"\n1 GiB: peak grew by {put - before} KiB going in, {after - put} KiB going out\n")
        assert after - before < 64 * 1024
        running.restart()


def peak_kib(pid: int) -> int:
    """The most memory that a process ever had, in KiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


def pieces(size: int) -> Iterator[bytes]:
    piece = bytes(range(256)) * 4096
    for _ in range(size // len(piece)):
        yield piece


def send_large(running: Running, product: str, size: int) -> str:
    found = hashlib.sha256()
    for piece in pieces(size):
        found.update(piece)
    digest = found.hexdigest()
    with running.api() as api:
        answer = api.put(f"/api/v1/products/{product}/artifacts/{digest}", content=pieces(size), timeout=120)
        assert answer.status_code == 204, answer.text
    return digest


def large_statement(running: Running, product: str, size: int, digest: str) -> str:
    statement = BundleStatement(
        product=product,
        version="9.0.0",
        bundle_seq=9,
        artifacts=(Artifact(name="large.bin", size=size, sha256=digest),),
    )
    with running.api() as api:
        answer = api.post(
            f"/api/v1/products/{product}/bundles", json={"envelope": sign_statement(KEY, statement).decode()}
        )
        assert answer.status_code == 201, answer.text
    return statement.version
