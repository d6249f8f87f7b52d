"""Two workers on one shared subscription and one PostgreSQL: one device's messages are split between them."""

from pathlib import Path

import pytest
from broker_fixtures import wait_until
from databases import new_url
from running import TestDevice, running_gateway, start_gateway

from gateway.device.messages import Presence, Result
from gateway.mqtt.broker import free_ports
from provisioning.topics import Up
from store import reports
from store.database import Database
from store.times import now_utc
from store.verify import verify

pytestmark = pytest.mark.faults
DEVICES = 25
ROUNDS = 8


def test_two_workers_share_devices_and_count_nothing_twice(tmp_path: Path) -> None:
    url = new_url("postgresql", tmp_path)
    with running_gateway(tmp_path / "fleetgate", url) as running:
        authority = running.product("sensor")
        first = running.settings
        port, download_port = free_ports(2)
        second = first.model_copy(
            update={
                "worker": "worker-2",
                "broker": first.broker.model_copy(update={"client_id": f"{first.broker.client_id}-2"}),
                "http": first.http.model_copy(update={"port": port}),
                "downloads": first.downloads.model_copy(update={"port": download_port}),
            }
        )
        other_database = Database(url)
        other = start_gateway(second, other_database)
        try:
            devices = [
                TestDevice(running, authority.issue(f"dev-{number}", now=now_utc()), tmp_path / "k").connect()
                for number in range(DEVICES)
            ]
            for device in devices:
                hello = device.voice.hello(nonce="first-one-1", ts=int(now_utc().timestamp() * 1000))
                device.send(Up.HELLO, hello)
                device.send(Up.HELLO, hello)  # the same again, most likely to the other worker
            assert {device.reply().result for device in devices} == {Result.WELCOME}
            assert {device.reply().result for device in devices} == {Result.WELCOME}
            for _ in range(ROUNDS):
                for device in devices:
                    device.send(Up.PRESENCE, device.voice.presence(Presence.SLEEPING))
                    device.send(Up.PRESENCE, device.voice.presence(Presence.ONLINE))
            sent = DEVICES * (2 + 2 * ROUNDS)

            def worked() -> int:
                tallies = (running.gateway.pipeline.tally, other.pipeline.tally)
                return sum(sum(tally.messages.values()) for tally in tallies)

            wait_until(lambda: worked() >= sent, "both have worked everything", 60)
            assert (
                min(sum(t.messages.values()) for t in (running.gateway.pipeline.tally, other.pipeline.tally))
                > 0
            )
            running.gateway.stop()
        finally:
            other.stop()
            other_database.close()
        with running.database.read() as tx:
            assert reports.count_devices(tx) == {"sensor": DEVICES}
            figures = reports.load_figures(tx, running.principal.organization_id)["totals"]
        assert figures["enrollments"] == {"jitp": DEVICES}
        checked = verify(running.database)
        assert checked.ok, checked
        running.restart()
