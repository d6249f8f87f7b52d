"""Who may speak and listen at the real broker, on the shipped configuration: facts that we rely on."""

from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from broker_fixtures import (
    InstalledBroker,
    Pair,
    Party,
    RefusedError,
    device_pair,
    response_properties,
    wait_until,
)
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from gateway.mqtt import pki
from gateway.mqtt.capath import CaPath
from gateway.mqtt.client import Incoming, Transport
from provisioning.topics import parse_up

NOT_AUTHORIZED = 0x87  # MQTT 5 §2.4
NO_MATCHING_SUBSCRIBERS = 0x10

Issue = Callable[[str], Pair]


@pytest.fixture(scope="module")
def issue(installed_broker: InstalledBroker, tmp_path_factory: pytest.TempPathFactory) -> Issue:
    """Makes certificates of a CA that the broker trusts."""
    authority = pki.create_authority("Product A", datetime.now(UTC))
    CaPath(installed_broker.installation.capath).add("product-a", authority.pem)
    directory = tmp_path_factory.mktemp("devices")
    return lambda common_name: device_pair(directory, authority, common_name)


@pytest.fixture
def gateway(installed_broker: InstalledBroker) -> Iterator[Transport]:
    transport = installed_broker.transport()
    yield transport
    transport.close()


def take(transport: Transport, count: int) -> list[Incoming]:
    """The next `count` messages, acknowledged."""
    taken: list[Incoming] = []

    def enough() -> bool:
        for incoming in transport.drain(timeout_seconds=0.1):
            transport.acknowledge(incoming)
            taken.append(incoming)
        return len(taken) >= count

    wait_until(enough, f"{count} messages at the gateway")
    return taken


def test_a_device_speaks_on_its_own_topic(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    with Party(installed_broker, issue("p-1")) as device:
        more = response_properties("fg/v1/p-1/reply", b"\x00\xff")
        assert device.publish("fg/v1/p-1/hello", b"{}", properties=more) == 0
    (incoming,) = take(gateway, 1)
    assert (incoming.topic, incoming.payload, incoming.qos) == ("fg/v1/p-1/hello", b"{}", 1)
    assert (incoming.response_topic, incoming.correlation) == ("fg/v1/p-1/reply", b"\x00\xff")


@pytest.mark.parametrize(("v5", "answer"), [(True, NOT_AUTHORIZED), (False, 0)], ids=["mqtt5", "mqtt311"])
def test_a_device_cannot_speak_on_anothers_topic(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport, v5: bool, answer: int
) -> None:
    with Party(installed_broker, issue("p-1"), v5=v5) as device:
        # On 3.1.1 the broker acknowledges what it drops.
        assert device.publish("fg/v1/p-2/hello", b"spoofed") == answer
        device.publish("fg/v1/p-1/hello", b"own")
    assert [incoming.payload for incoming in take(gateway, 1)] == [b"own"]


def test_a_name_with_a_slash_reaches_no_topic_of_ours(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    with (
        Party(installed_broker, issue("p-2/hello")) as stranger,
        Party(installed_broker, issue("p-1")) as device,
    ):
        assert stranger.publish("fg/v1/p-2/hello", b"spoofed") == NOT_AUTHORIZED
        # What its certificate allows is a level deeper than anything the gateway subscribes to.
        assert stranger.publish("fg/v1/p-2/hello/hello", b"deeper") == NO_MATCHING_SUBSCRIBERS
        device.publish("fg/v1/p-1/hello", b"own")
    assert [incoming.payload for incoming in take(gateway, 1)] == [b"own"]
    assert parse_up("fg/v1/p-2/hello/hello") is None


@pytest.mark.parametrize("name", ["+", "#", "p-1/+"])
def test_a_wildcard_for_a_name_may_say_nothing(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport, name: str
) -> None:
    with Party(installed_broker, issue(name)) as stranger:
        assert stranger.publish("fg/v1/p-1/hello", b"spoofed") == NOT_AUTHORIZED


def test_a_device_named_gateway_is_a_device(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    with (
        Party(installed_broker, issue("gateway")) as stranger,
        Party(installed_broker, issue("p-1")) as device,
    ):
        stranger.subscribe("fg/v1/+/hello")
        assert stranger.publish("fg/v1/p-1/reply", b"welcome") == NOT_AUTHORIZED
        device.publish("fg/v1/p-1/hello", b"secret")
        take(gateway, 1)
        stranger.subscribe("fg/v1/gateway/reply")
        assert gateway.publish("fg/v1/gateway/reply", b"marker")
        assert stranger.received.get(timeout=10).payload == b"marker"


def test_a_device_certificate_does_not_open_the_gateways_listener(
    installed_broker: InstalledBroker, issue: Issue
) -> None:
    party = Party(installed_broker, issue("gateway"), port=installed_broker.installation.gateway_port)
    with pytest.raises(RefusedError):
        party.connect()


def test_the_gateways_certificate_does_not_open_the_devices_listener(
    installed_broker: InstalledBroker,
) -> None:
    place = installed_broker.installation
    pair = Pair(certificate=place.gateway_certificate, key=place.gateway_key)
    with pytest.raises(RefusedError):
        Party(installed_broker, pair).connect()


def test_a_stolen_client_id_takes_over_nothing(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    generation = gateway.stats().generation
    with (
        Party(installed_broker, issue("p-1")) as device,
        Party(installed_broker, issue("thief"), client_id=installed_broker.settings().client_id) as thief,
        Party(installed_broker, issue("thief-2"), client_id="p-1"),
    ):
        thief.subscribe("fg/v1/+/hello")
        device.publish("fg/v1/p-1/hello", b"own")
        assert [incoming.payload for incoming in take(gateway, 1)] == [b"own"]
    assert gateway.stats().generation == generation


def test_a_device_hears_its_own_replies_alone(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    with Party(installed_broker, issue("p-1")) as first, Party(installed_broker, issue("p-2")) as second:
        for device in (first, second):
            assert device.subscribe("fg/v1/+/reply") < 0x80, (
                "an ACL file never denies SUBSCRIBE, only delivery"
            )
        gateway.publish("fg/v1/p-1/reply", b"one")
        gateway.publish("fg/v1/p-2/reply", b"two")
        assert first.received.get(timeout=10).payload == b"one"
        assert second.received.get(timeout=10).payload == b"two"
        gateway.publish("fg/v1/p-1/reply", b"last")
        assert first.received.get(timeout=10).payload == b"last"
        assert second.received.empty()


def test_a_shared_group_is_stolen_only_by_who_knows_its_name(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    payloads = [b"%d" % number for number in range(40)]
    with Party(installed_broker, issue("thief")) as thief, Party(installed_broker, issue("p-1")) as device:
        thief.subscribe("$share/fleetgate/fg/v1/+/hello")
        thief.subscribe("$share/gateway/fg/v1/+/hello")
        device.publish_many("fg/v1/p-1/hello", payloads)
        assert {incoming.payload for incoming in take(gateway, 40)} == set(payloads)
        # The fact that makes the name a secret: a member without the right to read still gets its share, and
        # the broker drops it.
        thief.subscribe(f"$share/{installed_broker.installation.group}/fg/v1/+/hello")
        device.publish_many("fg/v1/p-1/hello", payloads)
        device.publish("fg/v1/p-1/presence", b"marker")
        taken: list[bytes] = []
        while b"marker" not in taken:
            taken += [incoming.payload for incoming in take(gateway, 1)]
        assert len(taken) < 41
        assert thief.received.empty()


def test_a_ca_added_while_running_is_trusted_at_the_next_handshake(
    installed_broker: InstalledBroker, tmp_path: Path, gateway: Transport
) -> None:
    authority = pki.create_authority("Registered later", datetime.now(UTC))
    pair = device_pair(tmp_path, authority, "late-1")
    with pytest.raises(RefusedError):
        Party(installed_broker, pair).connect()
    pid = installed_broker.broker.pid
    CaPath(installed_broker.installation.capath).add("late", authority.pem)
    with Party(installed_broker, pair) as device:
        device.publish("fg/v1/late-1/presence", b"here")
    assert [incoming.payload for incoming in take(gateway, 1)] == [b"here"]  # and nothing is left for others
    assert installed_broker.broker.pid == pid is not None


def test_a_takeover_sends_the_old_sessions_will(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    pair = issue("p-1")
    take_all(gateway)
    topic = "fg/v1/p-1/presence"
    old = Party(installed_broker, pair, will=(topic, b"offline of the old conn")).connect()
    with Party(installed_broker, pair, will=(topic, b"offline of the new conn")) as new:
        new.publish("fg/v1/p-1/hello", b"hello of the new conn")
        # The will comes in spite of the new session, before its hello or after: only `conn` tells them apart.
        payloads = {incoming.payload for incoming in take(gateway, 2)}
        assert payloads == {b"offline of the old conn", b"hello of the new conn"}
    old.client.loop_stop()


def test_a_will_is_sent_when_a_device_vanishes(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    spoofer = Party(installed_broker, issue("p-3"), will=("fg/v1/p-1/presence", b"spoofed")).connect()
    device = Party(installed_broker, issue("p-1"), will=("fg/v1/p-1/presence", b"offline")).connect()
    spoofer.drop()  # CONNECT took its will; it is checked only now, and dropped
    device.drop()
    assert [incoming.payload for incoming in take(gateway, 1)] == [b"offline"]


def test_a_payload_above_16_kib_is_dropped(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    with Party(installed_broker, issue("p-1"), v5=False) as device:
        assert device.publish("fg/v1/p-1/hello", b"x" * 16385) == 0, "3.1.1 has no word for it"
        assert device.publish("fg/v1/p-1/hello", b"y" * 16384) == 0
    assert [len(incoming.payload) for incoming in take(gateway, 1)] == [16384]


def test_a_packet_far_above_the_limit_ends_the_connection(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    with Party(installed_broker, issue("p-1")) as device:
        device.client.publish("fg/v1/p-1/hello", b"x" * 100_000, qos=1)
        device.wait_disconnected()
    with Party(installed_broker, issue("p-1")) as device:
        device.publish("fg/v1/p-1/hello", b"own")
    assert [incoming.payload for incoming in take(gateway, 1)] == [b"own"]


def test_a_packet_that_paho_refuses_is_read_as_any_other(
    installed_broker: InstalledBroker, issue: Issue, gateway: Transport
) -> None:
    generation = gateway.stats().generation
    odd = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
    odd.UserProperty = ("name", "\ufeff")  # mosquitto passes it on
    odd.CorrelationData = b"\x07"
    with Party(installed_broker, issue("p-1")) as device:
        assert device.publish("fg/v1/p-1/hello", b"odd", properties=odd) == 0
        device.publish("fg/v1/p-1/hello", b"own")
    assert [(one.payload, one.correlation) for one in take(gateway, 2)] == [(b"odd", b"\x07"), (b"own", None)]
    stats = gateway.stats()
    assert (stats.unreadable, stats.generation) == (0, generation)


def take_all(transport: Transport) -> None:
    """Acknowledges what earlier tests left."""
    while batch := transport.drain(timeout_seconds=0.2):
        for incoming in batch:
            transport.acknowledge(incoming)
