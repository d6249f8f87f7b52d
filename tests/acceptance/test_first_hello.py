"""The main job on the real broker: a factory-fresh device connects, is verified, and stands where it belongs."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from broker_fixtures import wait_until
from databases import new_url
from running import Running, TestDevice, random_name, running_gateway

from gateway.device.messages import Presence, Result
from gateway.operations import authorities, devices
from provisioning.authorities import AuthorityState
from provisioning.devices import ConnectionState
from provisioning.envelope import key_id_of
from provisioning.topics import Up
from store.times import now_utc
from store.verify import verify


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("running")
    with running_gateway(directory / "fleetgate", new_url(request.param, directory)) as gateway:
        gateway.product("sensor", cohort_rules=[{"hardware": {"model": "lab-*"}, "cohort": "canary"}])
        yield gateway
        report = verify(gateway.database)
        assert report.ok, report


def fresh(running: Running, directory: Path, *, v5: bool = True, **profile: object) -> TestDevice:
    made = running.made["sensor"].issue(random_name("dev"), now=now_utc())
    return TestDevice(running, made, directory, v5=v5, **profile)


@pytest.mark.parametrize("v5", [True, False], ids=["mqtt5", "mqtt311"])
def test_a_fresh_device_is_welcomed_and_stands_in_product_and_cohort(
    running: Running, tmp_path: Path, v5: bool
) -> None:
    device = fresh(running, tmp_path, v5=v5, model="lab-1", version="1.2.3").connect()
    reply = device.hello()
    assert (reply.result, reply.reason) == (Result.WELCOME, None)
    assert (reply.product, reply.cohort, reply.identifier) == ("sensor", "canary", device.identity.topic_name)
    view = devices.find(running.desk, running.principal, device.identity.topic_name)
    assert (view.product, view.cohort, view.connection) == ("sensor", "canary", ConnectionState.ONLINE)
    assert view.device.firmware_version == "1.2.3"
    device.disconnect()


def test_a_hello_that_is_repeated_is_answered_again_and_changes_nothing(
    running: Running, tmp_path: Path
) -> None:
    device = fresh(running, tmp_path).connect()
    hello = device.voice.hello(nonce="same-nonce-1", ts=int(now_utc().timestamp() * 1000))
    device.send(Up.HELLO, hello)
    device.send(Up.HELLO, hello)
    first, second = device.reply(), device.reply()
    assert first.result == second.result == Result.WELCOME
    assert first.identifier == second.identifier
    device.disconnect()


def test_a_clock_that_says_1970_costs_one_round_trip(running: Running, tmp_path: Path) -> None:
    device = fresh(running, tmp_path).connect()
    reply = device.hello(ts=0)
    assert (reply.result, reply.reason) == (Result.CHALLENGE, "clock_off")
    assert device.hello(challenge=reply.challenge).result == Result.WELCOME
    device.disconnect()


def test_the_chain_may_stay_away_once_the_key_is_known(running: Running, tmp_path: Path) -> None:
    device = fresh(running, tmp_path).connect()
    assert device.hello(with_chain=False).reason == "chain_required"
    assert device.hello().result == Result.WELCOME
    assert device.hello(with_chain=False).result == Result.WELCOME
    device.disconnect()


def test_goodbye_will_and_heartbeat(running: Running, tmp_path: Path) -> None:
    device = fresh(running, tmp_path).connect()
    device.hello()

    def is_now(state: ConnectionState) -> bool:
        found = devices.find(running.desk, running.principal, device.identity.topic_name)
        return found.connection is state

    device.send(Up.PRESENCE, device.voice.presence(Presence.SLEEPING))
    wait_until(lambda: is_now(ConnectionState.SLEEPING), "the device sleeps")
    device.send(Up.PRESENCE, device.voice.presence(Presence.ONLINE))
    wait_until(lambda: is_now(ConnectionState.ONLINE), "the device is back")
    assert device.party is not None
    device.party.drop()
    wait_until(lambda: is_now(ConnectionState.OFFLINE), "the will arrives")


def test_a_blocked_device_is_refused_and_stays_so_until_unblocked(running: Running, tmp_path: Path) -> None:
    device = fresh(running, tmp_path).connect()
    device.hello()
    name = device.identity.topic_name
    devices.set_blocked(running.desk, running.principal, name, blocked=True)
    refused = device.hello()
    assert (refused.result, refused.reason) == (Result.REJECTED, "device_blocked")
    inbox = devices.list_inbox(
        running.desk, running.principal, product=None, reason="device_blocked", limit=100
    )
    assert name in {item.topic_name for item in inbox}
    devices.set_blocked(running.desk, running.principal, name, blocked=False)
    assert device.hello().result == Result.WELCOME
    device.disconnect()


def test_a_ca_registered_live_is_trusted_at_the_next_handshake_and_refused_once_revoked(
    running: Running, tmp_path: Path
) -> None:
    authority = running.product("gadget")
    device = TestDevice(running, authority.issue(random_name("gadget"), now=now_utc()), tmp_path).connect()
    assert device.hello().product == "gadget"
    (registered,) = authorities.list_all(running.desk, running.principal, "gadget")
    authorities.move(running.desk, running.principal, registered.id, AuthorityState.REVOKED)
    refused = device.hello()
    assert (refused.result, refused.reason) == (Result.REJECTED, "ca_revoked")
    (item,) = devices.list_inbox(running.desk, running.principal, product="gadget", reason=None, limit=9)
    assert (item.reason, item.topic_name, item.key_id) == (
        "ca_revoked",
        device.identity.topic_name,
        key_id_of(device.identity.key.public_key()),
    )
    device.disconnect()


def test_the_identifier_pattern_and_the_quota_refuse_with_their_own_words(
    running: Running, tmp_path: Path
) -> None:
    authority = running.product("meter", identifier_pattern="m-[0-9]+", quota=1)
    answers = [
        TestDevice(running, authority.issue(name, now=now_utc()), tmp_path).connect().hello()
        for name in ("x-1", "m-1", "m-2")
    ]
    assert [answer.reason for answer in answers] == ["identifier_pattern", None, "quota_exhausted"]


def test_hellos_said_while_the_gateway_is_down_are_all_welcomed(running: Running, tmp_path: Path) -> None:
    waiting = [fresh(running, tmp_path).connect() for _ in range(5)]
    running.gateway.stop()
    for device in waiting:
        hello = device.voice.hello(nonce="while-down-1", ts=int(now_utc().timestamp() * 1000))
        device.send(Up.HELLO, hello)
    running.restart()
    assert [device.reply().result for device in waiting] == [Result.WELCOME] * len(waiting)


def test_the_api_shows_what_happened(running: Running, tmp_path: Path) -> None:
    device = fresh(running, tmp_path).connect()
    device.hello()
    with running.api() as api:
        shown = api.get(f"/api/v1/devices/{device.identity.topic_name}").json()
        assert (shown["product"], shown["connection"]) == ("sensor", "online")
        figures = api.get("/api/v1/stats").json()
        assert figures["products"]["sensor"]["devices"]["active"] >= 1
        assert api.get("/readyz").json() == {"broker": True, "database": True}
        assert "fleetgate_replies_total" in api.get("/metrics").text
        missing = api.get("/api/v1/devices/nobody")
        assert (missing.status_code, missing.headers["content-type"]) == (404, "application/problem+json")
        assert api.get("/api/v1/devices", headers={"Authorization": "Bearer no"}).status_code == 401
        checked = api.post("/api/v1/certificates/check", json={"chain": device.made.pem.decode()}).json()
        assert checked["result"] == "welcome"
    device.disconnect()
