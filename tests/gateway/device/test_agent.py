"""The reference agent against the real gateway: welcomed, and back by itself after the broker was away."""

import threading
from pathlib import Path

import pytest
from broker_fixtures import wait_until
from running import Running, running_gateway

from gateway.device.agent import Agent, AgentSettings
from gateway.device.messages import Profile, Result
from gateway.operations import devices
from provisioning.devices import ConnectionState
from store.times import now_utc


def settings(
    running: Running, directory: Path, *, has_clock: bool = True, mqtt5: bool = True
) -> AgentSettings:
    place = running.installed.installation
    cert, key = running.made["sensor"].issue("dev-1", now=now_utc()).write(directory)
    return AgentSettings(
        cert=cert,
        key=key,
        host="localhost",
        port=place.device_port,
        cafile=place.broker_ca,
        audience=place.audience,
        prefix=place.prefix,
        profile=Profile(model="agent", version="2.0.0"),
        has_clock=has_clock,
        mqtt5=mqtt5,
    )


@pytest.mark.parametrize(
    ("has_clock", "mqtt5"), [(True, True), (False, False)], ids=["clock", "no-clock-311"]
)
def test_it_is_welcomed_comes_back_after_the_broker_and_says_goodbye(
    tmp_path: Path, has_clock: bool, mqtt5: bool
) -> None:
    with running_gateway(tmp_path / "fleetgate") as running:
        running.product("sensor")
        heard: list[str] = []
        agent = Agent(settings(running, tmp_path, has_clock=has_clock, mqtt5=mqtt5), heard.append)
        thread = threading.Thread(target=agent.run)
        thread.start()

        def welcomes() -> int:
            return sum(line.startswith("welcome: dev-1 of product sensor, cohort main") for line in heard)

        try:
            wait_until(lambda: welcomes() == 1, f"the agent is welcomed: {heard}")
            assert any("challenged" in line for line in heard) is not has_clock
            running.installed.broker.stop()
            running.installed.broker.start()
            wait_until(lambda: welcomes() == 2, f"the agent comes back: {heard}", 30)
        finally:
            agent.stop()
            thread.join(timeout=20)
        assert not thread.is_alive()
        assert agent.last_reply is not None
        assert agent.last_reply.result == Result.WELCOME

        def is_offline() -> bool:
            view = devices.find(running.desk, running.principal, "dev-1")
            return view.connection is ConnectionState.OFFLINE

        wait_until(is_offline, "its goodbye arrives")
