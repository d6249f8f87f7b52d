"""Reference agents for tests: with a certificate of a product's CA, against the gateway that runs."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from firmware import KEYS
from running import Running, random_name

from gateway.device.agent import Agent, AgentSettings
from gateway.device.messages import Profile
from store.times import now_utc


def settings(running: Running, directory: Path, product: str, name: str | None = None) -> AgentSettings:
    place = running.installed.installation
    cert, key = running.made[product].issue(name or random_name("dev"), now=now_utc()).write(directory)
    return AgentSettings(
        cert=cert,
        key=key,
        host="localhost",
        port=place.device_port,
        cafile=place.broker_ca,
        audience=place.audience,
        prefix=place.prefix,
        profile=Profile(model="agent", version="0.9.0"),
        state=directory / "state",
        signing_keys=KEYS,
    )


@contextmanager
def agent_of(chosen: AgentSettings) -> Iterator[list[str]]:
    """An agent that runs; gives what it tells."""
    heard: list[str] = []
    agent = Agent(chosen, heard.append)
    thread = threading.Thread(target=agent.run)
    thread.start()
    try:
        yield heard
    finally:
        agent.stop()
        thread.join(timeout=20)
        assert not thread.is_alive()
