"""`kill -9` of the gateway at each named point, and a backlog: nothing is lost, nothing is counted twice."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from broker_fixtures import wait_until
from databases import new_url
from running import Running, TestDevice, running_gateway

from gateway.device.fleet import Broker, Fleet, Plan
from gateway.device.messages import Profile
from store import reports
from store.times import now_utc
from store.verify import verify

pytestmark = pytest.mark.faults
DEVICES = 40


def is_service_ready(running: Running) -> bool:
    """What `/readyz` says: broker and database are there."""
    try:
        return httpx.get(f"{running.settings.http.url}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False


@contextmanager
def supervised(
    running: Running, database_url: str, kill_at: str, at_death: Callable[[], None] = lambda: None
) -> Iterator[list[int]]:
    """The real service as a process, killed once at a point and then started again, as systemd would.

    Args:
        at_death: called after each death and before the next start.

    Yields the exit codes of the processes that have ended.
    """
    ended: list[int] = []
    stopping = threading.Event()
    environment = os.environ | {"FLEETGATE_DATABASE__URL": database_url}
    command = [
        sys.executable,
        "-m",
        "gateway",
        "serve",
        "--config",
        str(running.installed.installation.settings),
    ]
    process = [subprocess.Popen(command, env=environment | {"FLEETGATE_KILL_AT": kill_at})]

    def supervise() -> None:
        while not stopping.is_set():
            ended.append(process[0].wait())
            if not stopping.is_set():
                at_death()
                process[0] = subprocess.Popen(command, env=environment)

    def is_ready() -> bool:
        return is_service_ready(running)

    thread = threading.Thread(target=supervise)
    thread.start()
    try:
        # Before the first hello: else all of them may wait for one batch, and the kill falls on the goodbyes.
        wait_until(is_ready, "the service is ready", 30)
        yield ended
        wait_until(is_ready, "the service is ready again", 30)
    finally:
        stopping.set()
        process[0].terminate()
        thread.join(timeout=60)
    assert ended[-1] == 0, "SIGTERM ends it with 0"


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
@pytest.mark.parametrize(
    "point", ["before_lock", "after_apply", "after_commit", "after_publish", "after_acknowledge"]
)
def test_killed_at_a_point_every_device_is_welcomed_and_counted_once(
    tmp_path: Path, kind: str, point: str
) -> None:
    url = new_url(kind, tmp_path)
    with running_gateway(tmp_path / "fleetgate", url) as running:
        authority = running.product("sensor")
        running.gateway.stop()
        place = running.installed.installation
        broker = Broker(
            host="localhost",
            port=place.device_port,
            cafile=place.broker_ca,
            audience=place.audience,
            prefix=place.prefix,
        )
        now = now_utc()
        plans = [
            Plan(name=name, made=authority.issue(name, now=now), profile=Profile())
            for name in (f"dev-{number}" for number in range(DEVICES))
        ]
        with supervised(running, url, f"{point}:2") as ended:
            fleet = Fleet(plans, broker, connects_per_second=40)
            report = fleet.run(90)
            fleet.close()
        assert ended[0] == -9, f"the gateway should have been killed at {point}"
        assert len(report.welcomed) == DEVICES, report
        with running.database.read() as tx:
            assert reports.count_devices(tx) == {"sensor": DEVICES}
        checked = verify(running.database)
        assert checked.ok, checked
        running.restart()


def test_after_kill_9_of_the_broker_its_devices_are_unknown_until_heard(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "fleetgate") as running:
        authority = running.product("sensor")
        device = TestDevice(running, authority.issue("dev-1", now=now_utc()), tmp_path / "k").connect()
        device.hello()
        running.installed.broker.kill()
        running.installed.broker.start()
        wait_until(lambda: running.gateway.transport.stats().connected, "the gateway is back", 30)
        again = TestDevice(running, device.made, tmp_path / "k").connect()
        assert again.hello().product == "sensor"
        with running.database.read() as tx:
            assert reports.load_figures(tx, running.principal.organization_id)["totals"]["connected"] == 1
        checked = verify(running.database)
        assert checked.ok, checked
