"""Hellos that are said once: a long backlog, and a database that goes away under load; every device is welcomed."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from broker_fixtures import wait_until
from databases import PostgresServer, new_postgresql
from faults.loader import say_all_once
from faults.test_kill import is_service_ready
from running import Running, running_gateway

from gateway.device.factory import Authority
from provisioning.freshness import PAST_MS
from store import reports
from store.database import StoreUnavailableError
from store.times import now_utc
from store.verify import verify

pytestmark = pytest.mark.faults
BACKLOG = int(os.environ.get("FLEETGATE_BACKLOG", "20000"))
DOWN_SECONDS = 61.0
UNDER_LOAD = 3000


def load(
    running: Running, authority: Authority, count: int, directory: Path
) -> list[subprocess.Popen[bytes]]:
    """Starts to say one hello for each of `count` devices that never repeat it."""
    place = running.installed.installation
    made = [authority.issue(f"dev-{number}", now=now_utc()) for number in range(count)]
    return say_all_once(
        made,
        port=place.device_port,
        cafile=place.broker_ca,
        audience=place.audience,
        prefix=place.prefix,
        directory=directory,
    )


def count_devices(running: Running) -> int:
    try:
        with running.database.read() as tx:
            return reports.count_devices(tx).get("sensor", 0)
    except StoreUnavailableError:
        return -1


@pytest.mark.timeout(900)
def test_a_backlog_from_devices_that_never_repeat_is_welcomed_whole(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "fleetgate") as running:
        authority = running.product("sensor")
        running.gateway.stop()
        down_at = time.monotonic()
        for process in load(running, authority, BACKLOG, tmp_path):
            assert process.wait(timeout=240) == 0
        said_seconds = time.monotonic() - down_at
        wait_until(
            lambda: time.monotonic() - down_at > DOWN_SECONDS,
            "it is down for over a minute",
            DOWN_SECONDS + 5,
        )
        # Older hellos would be challenged, rightly, and these devices would not be there to answer.
        assert time.monotonic() - down_at < PAST_MS / 1000 - 60, f"{BACKLOG} hellos took {said_seconds:.0f} s"
        up_at = time.monotonic()
        running.restart()
        wait_until(lambda: count_devices(running) == BACKLOG, "every device stands in the database", 200)
        worked_seconds = time.monotonic() - up_at
        tally = running.gateway.pipeline.tally
        wait_until(lambda: tally.replies["welcome", ""] >= BACKLOG, "every one is welcomed")
        assert tally.set_aside == 0
        checked = verify(running.database)
        assert checked.ok, checked
        sys.stderr.write(
            f"\nbacklog: {BACKLOG} hellos said in {said_seconds:.0f} s, worked off in {worked_seconds:.0f} s, "
            f"{BACKLOG / worked_seconds:.0f} a second\n"
        )


@contextmanager
def served(running: Running, url: str) -> Iterator["subprocess.Popen[bytes]"]:
    """The real service as a process on another database; it must live to the end, and end with 0."""
    settings = str(running.installed.installation.settings)
    process = subprocess.Popen(
        [sys.executable, "-m", "gateway", "serve", "--config", settings],
        env=os.environ | {"FLEETGATE_DATABASE__URL": url},
    )
    try:
        wait_until(lambda: is_service_ready(running), "the service is ready", 30)
        yield process
    finally:
        process.terminate()
        assert process.wait(timeout=60) == 0


@pytest.mark.timeout(300)
def test_a_database_restarted_under_load_loses_nobody(tmp_path: Path) -> None:
    server = PostgresServer()
    url = new_postgresql(server_url=server.url)
    with running_gateway(tmp_path / "fleetgate", url) as running:
        authority = running.product("sensor")
        running.gateway.stop()
        with served(running, url) as process:
            loading = load(running, authority, UNDER_LOAD, tmp_path)
            for mode, part in (("immediate", UNDER_LOAD // 6), ("fast", UNDER_LOAD // 2)):
                wait_until(lambda part=part: count_devices(running) > part, "work is going on", 60)  # type: ignore[misc]
                server.stop(mode)
                wait_until(lambda: not is_service_ready(running), "the service notices", 30)
                assert process.poll() is None
                server.start()
            for one in loading:
                assert one.wait(timeout=120) == 0
            wait_until(
                lambda: count_devices(running) == UNDER_LOAD, "every device stands in the database", 90
            )
            wait_until(lambda: is_service_ready(running), "the service is ready again", 30)
            # The lock of its identity went with the old sessions, and was taken again.
            second = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "gateway",
                    "serve",
                    "--config",
                    str(tmp_path / "fleetgate/fleetgate.toml"),
                ],
                env=os.environ
                | {"FLEETGATE_DATABASE__URL": url, "FLEETGATE_STATE_DIRECTORY": str(tmp_path / "other")},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert second.returncode == 1
            assert "another gateway already works as worker 'worker-1' on this database" in second.stderr
        checked = verify(running.database)
        assert checked.ok, checked
        running.restart()
    server.end()
