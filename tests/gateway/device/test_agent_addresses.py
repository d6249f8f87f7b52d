"""The agent behind a proxy that refuses: it waits when told to, asks for fresh addresses, and gives up in the end."""

import threading
from collections import deque
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest
from agents import agent_of, settings
from broker_fixtures import wait_until
from firmware import attempts_of, make_product, push, roll_out
from running import Running, running_gateway

from gateway.mqtt.broker import free_ports
from gateway.operations import rollouts
from provisioning.rollouts import RolloutState
from store import attempts

Planned = tuple[int, dict[str, str]]


class Proxy(ThreadingHTTPServer):
    """Between devices and the downloads listener: gives its planned answers first, then those of the listener."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.planned: deque[Planned] = deque()
        self.seen: list[str] = []
        self.behind = 0


class _Handler(BaseHTTPRequestHandler):
    server: Proxy
    protocol_version = "HTTP/1.0"

    def do_GET(self) -> None:
        self.server.seen.append(self.path)
        if self.server.planned:
            status, headers = self.server.planned.popleft()
            body = b'{"type":"urn:fleetgate:problem:url_expired"}'
        else:
            found = httpx.get(f"http://127.0.0.1:{self.server.behind}{self.path}", trust_env=False)
            status, headers, body = found.status_code, {}, found.content
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: the test says what it has seen."""


@pytest.fixture(scope="module")
def proxy() -> Iterator[Proxy]:
    with Proxy() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def running(proxy: Proxy, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETGATE_DOWNLOADS__PUBLIC_URL", f"http://127.0.0.1:{proxy.server_port}")
        with running_gateway(tmp_path_factory.mktemp("running") / "fleetgate") as gateway:
            proxy.behind = gateway.settings.downloads.port
            yield gateway


@pytest.fixture
def planned(proxy: Proxy) -> Proxy:
    proxy.planned.clear()
    proxy.seen.clear()
    return proxy


def test_too_many_downloads_are_waited_for_and_cost_no_try(
    running: Running, planned: Proxy, tmp_path: Path
) -> None:
    planned.planned.extend([(429, {"Retry-After": "0"})] * 12)
    product = make_product(running, "sensor")
    view = roll_out(running, product, push(running, product).version)
    with agent_of(settings(running, tmp_path, product)) as heard:
        wait_until(lambda: attempts_of(running, view) == {"succeeded": 1}, f"it succeeds: {heard}", 30)
    assert len(planned.seen) == 13


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_refused_address_is_asked_for_anew(
    running: Running, planned: Proxy, tmp_path: Path, status: int
) -> None:
    planned.planned.append((status, {}))
    product = make_product(running, "sensor")
    view = roll_out(running, product, push(running, product).version)
    with agent_of(settings(running, tmp_path, product)) as heard:
        wait_until(lambda: attempts_of(running, view) == {"succeeded": 1}, f"it succeeds: {heard}", 30)
    assert "an address was refused (url_expired); asking for fresh ones" in heard
    assert len(planned.seen) == 2


def test_addresses_that_are_refused_again_and_again_end_the_update(
    running: Running, planned: Proxy, tmp_path: Path
) -> None:
    planned.planned.extend([(410, {})] * 3)
    product = make_product(running, "sensor")
    view = roll_out(running, product, push(running, product).version)
    with agent_of(settings(running, tmp_path, product)) as heard:
        wait_until(lambda: attempts_of(running, view) == {"failed": 1}, f"it fails: {heard}", 30)
    assert len(planned.seen) == 3
    with running.database.read() as tx:
        (attempt,) = attempts.list_of_rollout(tx, view.rollout.id, only_open=False)
    assert attempt.reason == "url_refused"


def test_a_download_is_let_go_when_its_offer_is_taken_back(
    running: Running, planned: Proxy, tmp_path: Path
) -> None:
    planned.planned.extend([(429, {"Retry-After": "1"})] * 1000)
    product = make_product(running, "sensor")
    first = roll_out(running, product, push(running, product).version)
    with agent_of(settings(running, tmp_path, product)) as heard:
        wait_until(lambda: bool(planned.seen), "it downloads")
        rollouts.move(running.desk, running.principal, first.rollout.id, RolloutState.CANCELLED)
        wait_until(lambda: any("taken back" in line for line in heard), f"it hears of it: {heard}")
        planned.planned.clear()
        second = roll_out(running, product, push(running, product).version)
        wait_until(lambda: attempts_of(running, second) == {"succeeded": 1}, "it takes the next", 30)
    assert attempts_of(running, first) == {"cancelled": 1}


def test_downloads_over_https_trust_the_ca_of_the_broker(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        (port,) = free_ports(1)
        patch.setenv("FLEETGATE_DOWNLOADS__PORT", str(port))
        patch.setenv("FLEETGATE_DOWNLOADS__PUBLIC_URL", f"https://localhost:{port}")
        patch.setenv("FLEETGATE_DOWNLOADS__CERTFILE", str(tmp_path / "fleetgate" / "broker" / "server.pem"))
        patch.setenv("FLEETGATE_DOWNLOADS__KEYFILE", str(tmp_path / "fleetgate" / "broker" / "server.key"))
        with running_gateway(tmp_path / "fleetgate") as running:
            product = make_product(running, "sensor")
            view = roll_out(running, product, push(running, product).version)
            with agent_of(settings(running, tmp_path, product)):
                wait_until(lambda: attempts_of(running, view) == {"succeeded": 1}, "it succeeds", 30)
