"""`device watch`: what a device says and is told, live, with what it proves and why it was answered so."""

import base64
import contextlib
import json
import queue
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from broker_fixtures import DEADLINE_SECONDS, wait_until
from running import Running, TestDevice, random_name, running_gateway

from gateway.watching import MOST_WATCHES
from provisioning.access import Role, hash_key, new_key
from provisioning.envelope import sign
from provisioning.ids import OrganizationId
from provisioning.topics import Up
from store import organizations
from store.ids import new_id
from store.times import now_utc


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_gateway(tmp_path_factory.mktemp("running") / "fleetgate") as gateway:
        gateway.product("pump", identifier_pattern="[a-z]+-[0-9]+")
        yield gateway


@contextmanager
def watching(running: Running, name: str) -> Iterator["queue.Queue[dict[str, Any]]"]:
    """A watch that has begun; gives its lines."""
    lines: queue.Queue[dict[str, Any]] = queue.Queue()
    begun, ending = threading.Event(), threading.Event()

    def read() -> None:
        with running.api() as api, api.stream("GET", f"/api/v1/watch/{name}") as answer:
            assert answer.status_code == 200, answer.read()
            for line in answer.iter_lines():
                begun.set()
                if line:
                    lines.put(json.loads(line))
                if ending.is_set():
                    return

    thread = threading.Thread(target=read)
    thread.start()
    try:
        assert begun.wait(DEADLINE_SECONDS)
        assert lines.get(timeout=DEADLINE_SECONDS) == {"topic_name": name}
        yield lines
    finally:
        ending.set()
        thread.join(timeout=DEADLINE_SECONDS)
        assert not thread.is_alive()


def device_of(running: Running, tmp_path: Path, name: str) -> TestDevice:
    return TestDevice(running, running.made["pump"].issue(name, now=now_utc()), tmp_path).connect()


def take(lines: "queue.Queue[dict[str, Any]]", count: int) -> list[dict[str, Any]]:
    return [lines.get(timeout=DEADLINE_SECONDS) for _ in range(count)]


def test_a_hello_and_its_answer_are_seen(running: Running, tmp_path: Path) -> None:
    name = random_name("dev")
    with watching(running, name) as lines:
        device = device_of(running, tmp_path, name)
        device.hello()
        up, down = take(lines, 2)
        device.disconnect()
    assert (up["direction"], up["verb"], up["proven"], up["reason"]) == ("up", "hello", True, None)
    assert up["payload"]["chain"] == "1 certificate"
    assert up["payload"]["hardware"]["model"]
    assert (down["direction"], down["verb"], down["payload"]["result"]) == ("down", "reply", "welcome")


def test_a_wrong_signature_is_named_by_its_mistake(running: Running, tmp_path: Path) -> None:
    name = random_name("dev")
    with watching(running, name) as lines:
        device = device_of(running, tmp_path, name)
        device.voice.begin_connection()
        right = json.loads(device.voice.hello(nonce="q3J8vN0xTtWm2K5a", ts=int(now_utc().timestamp() * 1000)))
        payload = base64.b64decode(right["payload"])
        right["signatures"][0]["sig"] = base64.b64encode(sign(device.made.key, payload)).decode()
        device.send(Up.HELLO, json.dumps(right).encode())
        assert device.reply().reason == "bad_signature"
        up, down = take(lines, 2)
        device.disconnect()
    assert (up["proven"], up["reason"]) == (False, "bad_signature")
    assert "over the payload alone, without its pre-authentication encoding" in up["detail"]
    assert down["reason"] == "bad_signature"


def test_what_cannot_be_read_is_shown_as_such(running: Running, tmp_path: Path) -> None:
    name = random_name("dev")
    with watching(running, name) as lines:
        device = device_of(running, tmp_path, name)
        device.send(Up.PRESENCE, b"hello?")
        assert device.reply().reason == "malformed_json"
        up, _ = take(lines, 2)
        device.disconnect()
    assert (up["payload"], up["reason"]) == (None, "malformed_json")


def test_a_refusal_says_which_rule(running: Running, tmp_path: Path) -> None:
    name = random_name("DEV")
    with watching(running, name) as lines:
        device = device_of(running, tmp_path, name)
        assert device.hello().reason == "identifier_pattern"
        up, down = take(lines, 2)
        device.disconnect()
    assert up["proven"]
    assert down["reason"] == "identifier_pattern"
    assert "[a-z]+-[0-9]+" in down["detail"]


def test_what_another_organization_owns_is_not_shown(running: Running, tmp_path: Path) -> None:
    name = random_name("dev")
    device = device_of(running, tmp_path, name)
    device.hello()
    other, key = OrganizationId(new_id()), new_key(b"o" * 32)
    with running.database.write() as tx:
        organizations.create(tx, id=other, name="other", at=now_utc())
        organizations.create_key(
            tx,
            id=new_id(),
            organization_id=other,
            name="k",
            role=Role.ADMIN,
            sha256=hash_key(key),
            at=now_utc(),
        )
    headers = {"Authorization": f"Bearer {key}"}
    with httpx.Client(base_url=str(running.api().base_url), headers=headers) as api:
        assert api.get(f"/api/v1/watch/{name}").status_code == 404
        stranger = random_name("dev")
        with api.stream("GET", f"/api/v1/watch/{stranger}") as answer:
            lines = answer.iter_lines()
            assert json.loads(next(lines)) == {"topic_name": stranger}
            unknown = device_of(running, tmp_path, stranger)
            unknown.hello()
            # The first may have been due before the hello came; one of these stands in its place.
            assert [next(lines), next(lines)] == ["", ""], "its CA is the other organization's"
            unknown.disconnect()
    device.disconnect()


def test_watches_are_bounded_and_end_with_their_reader(running: Running) -> None:
    with running.api() as api, contextlib.ExitStack() as stack:

        def opens() -> bool:
            stream = api.stream("GET", "/api/v1/watch/many-1")
            if stream.__enter__().status_code == 200:
                stack.push(stream)
                return True
            stream.__exit__(None, None, None)
            return False

        for _ in range(MOST_WATCHES):
            wait_until(opens, "the watches of earlier tests have ended")
        refused = api.get("/api/v1/watch/one-more")
        assert (refused.status_code, refused.json()["type"]) == (429, "urn:fleetgate:problem:busy")
        assert int(refused.headers["retry-after"]) > 0
        stack.close()
        wait_until(opens, "one has ended with its reader")


def test_no_topic_name_is_refused(running: Running) -> None:
    with running.api() as api:
        assert api.get("/api/v1/watch/a%2Fb").status_code in (404, 422)
        assert api.get("/api/v1/watch/+").status_code == 422
