"""Workers as processes: one leaves for good and its share is freed; the leader dies and the lease moves; roles part."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from broker_fixtures import wait_until
from databases import new_url
from faults.loader import say_all_once
from running import Running, TestDevice, running_gateway
from workers import Workers

from gateway.device.factory import Authority, create_authority
from gateway.device.messages import Result
from store import reports
from store.times import now_utc
from store.verify import verify

pytestmark = [pytest.mark.faults, pytest.mark.timeout(240)]
HELLOS = 400


@contextmanager
def installed(tmp_path: Path) -> Iterator[tuple[Running, str, Authority]]:
    """An installation on PostgreSQL whose own gateway has been stopped."""
    url = new_url("postgresql", tmp_path)
    with running_gateway(tmp_path / "fleetgate", url) as running:
        authority = running.product("sensor")
        running.gateway.stop()
        yield running, url, authority
        checked = verify(running.database)
        assert checked.ok, checked
        running.restart()


def command(running: Running, *words: str) -> subprocess.CompletedProcess[str]:
    """`fleetgate …` as an operator runs it."""
    config = str(running.installed.installation.settings)
    return subprocess.run(
        [sys.executable, "-m", "gateway", *words, "--config", config],
        env=os.environ | {"FLEETGATE_API_KEY": running.key},
        capture_output=True,
        text=True,
        timeout=90,
        check=False,
    )


def workers_of(running: Running) -> dict[str, dict[str, Any]]:
    ran = command(running, "worker", "list", "--json")
    assert ran.returncode == 0, ran.stderr
    return {row["name"]: row for row in json.loads(ran.stdout)}


def say(running: Running, authority: Authority, names: range, directory: Path) -> None:
    """Says one hello for each of many devices that never repeat it."""
    place = running.installed.installation
    directory.mkdir()
    for process in say_all_once(
        [authority.issue(f"dev-{number}", now=now_utc()) for number in names],
        port=place.device_port,
        cafile=place.broker_ca,
        audience=place.audience,
        prefix=place.prefix,
        directory=directory,
    ):
        assert process.wait(timeout=120) == 0


def count_devices(running: Running) -> int:
    with running.database.read() as tx:
        return reports.count_devices(tx).get("sensor", 0)


def audited(running: Running) -> list[tuple[str, str, str]]:
    with running.database.read() as tx:
        rows = tx.connection.execute(
            sa.text("SELECT actor, action, object_id FROM audit WHERE object_type = 'worker' ORDER BY id")
        )
        return [(row.actor, row.action, row.object_id) for row in rows]


def test_the_share_of_a_worker_that_left_for_good_is_freed_and_nothing_of_it_is_lost(tmp_path: Path) -> None:
    with installed(tmp_path) as (running, url, authority), Workers(running, url, 2, tmp_path) as workers:
        assert {name: row["alive"] for name, row in workers_of(running).items()} == {
            "worker-1": True,
            "worker-2": True,
        }
        refused = command(running, "worker", "retire", "worker-2")
        assert refused.returncode == 5
        assert "worker 'worker-2' runs: it was heard" in refused.stderr
        assert command(running, "worker", "retire", "nobody").returncode == 3

        workers.kill(1)
        say(running, authority, range(HELLOS), tmp_path / "before")
        # Its half waits at the broker for as long as its session lasts: the fault that this is about.
        wait_until(lambda: count_devices(running) >= HELLOS // 2, "the other has worked its half", 60)
        wait_until(lambda: not workers_of(running)["worker-2"]["alive"], "it counts as gone", 30)
        assert count_devices(running) <= HELLOS * 3 // 4
        ran = command(running, "worker", "retire", "worker-2", "--json")
        assert (ran.returncode, json.loads(ran.stdout)["state"]) == (0, "retired"), ran.stderr
        assert "nothing waits for it at the broker any more" in ran.stderr
        wait_until(lambda: count_devices(running) == HELLOS, "every device is known", 30)

        again = command(running, "worker", "retire", "worker-2", "--json")
        assert again.returncode == 0, "repeating changes nothing"
        assert audited(running) == [("admin", "worker.retire", "worker-2")]
        # Nobody's share: everything that is said now comes to the one that is left, at once.
        say(running, authority, range(HELLOS, HELLOS + 50), tmp_path / "after")
        wait_until(lambda: count_devices(running) == HELLOS + 50, "all of them come to who is left", 20)
        last = command(running, "worker", "retire", "worker-1")
        assert last.returncode == 5, "it runs"


def test_a_worker_told_to_leave_for_good_leaves_nothing_behind(tmp_path: Path) -> None:
    with installed(tmp_path) as (running, url, authority), Workers(running, url, 2, tmp_path) as workers:
        assert workers.stop(1) == 0
        workers.start(1, "--retire-on-exit")
        workers.wait_ready(1)
        assert workers.stop(1) == 0
        say(running, authority, range(60), tmp_path / "first")
        wait_until(lambda: workers_of(running)["worker-2"]["state"] == "retired", "it is retired", 30)
        wait_until(lambda: count_devices(running) == 60, "everything that was said is worked", 20)
        # And it may come back, as any new worker may.
        workers.start(1)
        workers.wait_ready(1)
        assert workers_of(running)["worker-2"]["alive"]


def test_the_lease_moves_within_seconds_when_its_holder_dies(tmp_path: Path) -> None:
    with installed(tmp_path) as (running, url, _), Workers(running, url, 3, tmp_path) as workers:
        for _ in range(2):
            leader = workers.leader()
            workers.kill(leader)
            died = time.monotonic()
            wait_until(lambda was=leader: workers.leader() != was, "another holds the lease", 10)  # type: ignore[misc]
            sys.stderr.write(f"\nthe lease moved {time.monotonic() - died:.1f} s after a kill\n")
            workers.start(leader)
            workers.wait_ready(leader)


def test_roles_part_over_processes_do_the_whole_work(tmp_path: Path) -> None:
    with installed(tmp_path) as (running, url, _):
        for place in running.settings.broker.capath.iterdir():
            place.unlink()
        workers = Workers(running, url, 3, tmp_path)
        # The first has the port that the command line asks.
        for number, roles in enumerate(["api", "ingest", "scheduler,authorities"]):
            workers.start(number, "--role", roles)
        with workers_running(workers):
            health = f"http://127.0.0.1:{workers.ports[2]}"
            assert httpx.get(f"{health}/healthz", trust_env=False).status_code == 200
            assert httpx.get(f"{health}/readyz", trust_env=False).json() == {"database": True}
            assert httpx.get(f"{health}/api/v1/products", trust_env=False).status_code == 404
            assert "fleetgate_broker_connected 1.0" in metrics(workers.ports[1])
            assert "fleetgate_broker_connected" not in metrics(workers.ports[0])
            assert "fleetgate_downloads_active" in metrics(workers.ports[0])
            known = workers_of(running)
            assert {name: row["roles"] for name, row in known.items()} == {
                "worker-1": ["api"],
                "worker-2": ["ingest"],
                "worker-3": ["scheduler", "authorities"],
            }
            assert sorted(place.name for place in running.settings.broker.capath.iterdir()) != []
            # A CA that is trusted by a command of the api worker comes into the capath of the third.
            desk_authority = create_trusted(running)
            device = TestDevice(
                running, desk_authority.issue("dev-1", now=now_utc()), tmp_path / "k"
            ).connect()
            assert device.hello().result == Result.WELCOME
            assert workers.leader() == 2
            # The first was the gateway of before, with a session; it has been emptied and ended.
            wait_until(lambda: "session_ended" in workers.logs[1].read_text(), "no share is stranded", 10)


def metrics(port: int) -> str:
    return httpx.get(f"http://127.0.0.1:{port}/metrics", trust_env=False).text


def create_trusted(running: Running) -> Authority:
    """A CA, registered and activated over the API."""
    authority = create_authority("Second CA", now=now_utc())
    before = set(running.settings.broker.capath.iterdir())
    with running.api() as api:
        made = api.post(
            "/api/v1/products/sensor/authorities",
            json={"name": "second", "certificate": authority.pem.decode()},
        ).json()
        proof = authority.prove(made["code"], now_utc()).decode()
        path = f"/api/v1/authorities/{made['id']}"
        assert api.post(f"{path}/prove", json={"certificate": proof}).status_code == 200
        assert api.post(f"{path}/activate").status_code == 200
    wait_until(lambda: set(running.settings.broker.capath.iterdir()) > before, "the capath has it", 10)
    return authority


@contextmanager
def workers_running(workers: Workers) -> Iterator[None]:
    try:
        for number in range(len(workers.names)):
            workers.wait_ready(number)
        yield
    finally:
        assert [workers.stop(number) for number in range(len(workers.names))] == [0, 0, 0]


def test_a_second_process_on_one_sqlite_file_is_refused(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "fleetgate") as running:
        running.gateway.stop()
        url, config = running.settings.database.url, str(running.installed.installation.settings)
        with Workers(running, url, 1, tmp_path):
            ran = subprocess.run(
                [sys.executable, "-m", "gateway", "serve", "--role", "scheduler", "--config", config],
                env=os.environ
                | {"FLEETGATE_STATE_DIRECTORY": str(tmp_path / "other"), "FLEETGATE_WORKER": "worker-2"},
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert ran.returncode == 1
            assert (
                "SQLite serves one process, which has every role; stop it first, or move to PostgreSQL"
                in ran.stderr
            )
        running.restart()
