"""A worker that left for good, in one process: its session's messages are worked and answered by who is left."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from broker_fixtures import DEADLINE_SECONDS, wait_until
from running import Running, TestDevice, running_gateway

from gateway import secrets
from gateway.device.messages import Result
from gateway.mqtt.client import Transport
from gateway.operations import api_keys
from gateway.service import make_way
from provisioning.access import Role
from provisioning.errors import SetupError
from provisioning.topics import Up
from provisioning.workers import ALL_ROLES, Worker, WorkerState
from store import workers
from store.times import now_utc, to_ms

DEVICES = 6


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_gateway(tmp_path_factory.mktemp("retiring") / "fleetgate") as made:
        made.product("sensor")
        yield made


def leave(running: Running, name: str, client_id: str, root: bytes) -> None:
    """What a worker leaves behind: a session at the broker, and its row."""
    transport = Transport(replace(make_way(running.settings, root), client_id=client_id))
    transport.start()
    assert transport.wait_ready(DEADLINE_SECONDS)
    transport.close()
    now = now_utc()
    worker = Worker(
        name=name,
        broker="main",
        roles=ALL_ROLES,
        version="1",
        state=WorkerState.RUNNING,
        started_at=now,
        heard_at=now,
        queued=0,
        has_session=True,
    )
    with running.database.write() as tx:
        workers.register(tx, worker, client_id=client_id, client_sealed=secrets.seal(root, client_id))
        workers.leave(tx, name, WorkerState.STOPPED)


def listed(api: httpx.Client, name: str) -> dict[str, Any]:
    (found,) = (row for row in api.get("/api/v1/workers").json() if row["name"] == name)
    return dict(found)


def test_what_waits_for_a_worker_that_left_is_answered_by_another(running: Running, tmp_path: Path) -> None:
    root = secrets.load_root_secret(running.settings.root_secret_file)
    # Its client id stood in its own settings: the row is all that others know of it.
    leave(running, "old", "some-secret-of-its-own", root)
    authority = running.made["sensor"]
    devices = [
        TestDevice(running, authority.issue(f"dev-{number}", now=now_utc()), tmp_path).connect()
        for number in range(DEVICES)
    ]
    for device in devices:
        device.send(Up.HELLO, device.voice.hello(nonce="only-once-1", ts=to_ms(now_utc())))
    with running.api() as api:
        assert {name: listed(api, name)["alive"] for name in ("old", "worker-1")} == {
            "old": False,
            "worker-1": True,
        }
        answer = api.post("/api/v1/workers/old/retire")
        assert (answer.status_code, answer.json()["state"]) == (200, "retiring"), answer.text
        assert [device.reply().result for device in devices] == [Result.WELCOME] * DEVICES
        wait_until(lambda: listed(api, "old")["state"] == "retired", "it is retired")
        assert api.post("/api/v1/workers/old/retire").json()["state"] == "retired"
        alive = api.post("/api/v1/workers/worker-1/retire")
        assert alive.status_code == 409
        assert "worker 'worker-1' runs" in alive.json()["detail"]
        assert api.post("/api/v1/workers/nobody/retire").status_code == 404
    for device in devices:
        device.disconnect()


def test_only_an_admin_retires_workers(running: Running) -> None:
    _, key = api_keys.create(running.desk, running.principal, name="daily", role=Role.OPERATOR)
    with running.api() as api:
        mine = {"Authorization": f"Bearer {key}"}
        assert api.get("/api/v1/workers", headers=mine).status_code == 200
        assert api.post("/api/v1/workers/worker-1/retire", headers=mine).status_code == 403


def test_a_seal_is_of_one_root_secret() -> None:
    sealed = secrets.seal(b"r" * 32, "client")
    assert sealed != secrets.seal(b"r" * 32, "client"), "its nonce is new each time"
    assert secrets.unseal(b"r" * 32, sealed) == "client"
    for root, given in ((b"s" * 32, sealed), (b"r" * 32, sealed[:-1]), (b"r" * 32, b"")):
        with pytest.raises(SetupError, match="sealed under another root secret"):
            secrets.unseal(root, given)
