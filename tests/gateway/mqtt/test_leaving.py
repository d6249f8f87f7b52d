"""The session of a worker that left: emptied to the last message while others take what is new, and then ended."""

import queue
from collections.abc import Iterator

import pytest
from broker_fixtures import DEADLINE_SECONDS, InstalledBroker, Party, device_pair, install, wait_until

from gateway.mqtt import connection, pki
from gateway.mqtt.capath import CaPath
from gateway.mqtt.client import Transport, TransportSettings
from gateway.mqtt.leaving import LeavingTransport, end_session
from store.times import now_utc

TOPIC = "fg/v1/p-1/hello"
MANY = 2600  # more for each of two than the broker sends at once (max_inflight_messages 1000)


@pytest.fixture(scope="module")
def broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[InstalledBroker]:
    installed = install(tmp_path_factory.mktemp("leaving") / "fleetgate")
    with installed.broker:
        yield installed


@pytest.fixture(scope="module")
def device(broker: InstalledBroker, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Party]:
    authority = pki.create_authority("Product A", now_utc())
    CaPath(broker.installation.capath).add("product-a", authority.pem)
    with Party(broker, device_pair(tmp_path_factory.mktemp("keys"), authority, "p-1")) as party:
        yield party


def drain(transport: Transport, into: list[bytes]) -> None:
    """Takes and acknowledges what is there."""
    for message in transport.drain(500, 0.05):
        into.append(message.payload)
        transport.acknowledge(message)


def has_session(settings: TransportSettings) -> bool:
    """Whether the broker keeps a session for this client id; keeps it as it is."""
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()
    client = connection.new_client(settings)
    client.on_connect = lambda _client, _data, flags, _reason, _more: answers.put(flags.session_present)
    connection.connect(client, settings)
    client.loop_start()
    found = answers.get(timeout=DEADLINE_SECONDS)
    client.disconnect()
    client.loop_stop()
    return found


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_session_is_emptied_and_ended_and_nothing_is_lost(
    broker: InstalledBroker, device: Party, protocol: str
) -> None:
    group = f"group-{protocol.replace('.', '-')}"
    ways = [
        broker.settings(client_id=f"{name}-{protocol}", group=group, protocol=protocol, queue_limit=10_000)
        for name in ("stays", "leaves")
    ]
    got: dict[str, list[bytes]] = {"stays": [], "leaves": []}
    stays, leaves = (Transport(way) for way in ways)
    for transport in (stays, leaves):
        transport.start()
        assert transport.wait_ready(DEADLINE_SECONDS)
    leaves.close()
    device.publish_many(TOPIC, [b"old-%d" % number for number in range(MANY)])

    taking = LeavingTransport(ways[1])
    taking.start()
    assert taking.wait_ready(DEADLINE_SECONDS)
    device.publish_many(TOPIC, [b"new-%d" % number for number in range(100)])

    def done() -> bool:
        drain(taking, got["leaves"])
        drain(stays, got["stays"])
        return taking.drained and len(got["stays"]) + len(got["leaves"]) >= MANY + 100

    wait_until(done, "everything is received", 60)
    taking.close()
    end_session(ways[1])
    assert not has_session(ways[1])
    end_session(ways[1])
    stays.close()
    end_session(ways[0])

    everything = [b"old-%d" % number for number in range(MANY)] + [
        b"new-%d" % number for number in range(100)
    ]
    assert sorted(got["stays"] + got["leaves"]) == sorted(everything), "each once"
    assert len(got["leaves"]) > 1000, "it had its share"
    assert not [payload for payload in got["leaves"] if payload.startswith(b"new")], "nothing new comes to it"


def test_a_connection_that_is_lost_on_the_way_begins_again(broker: InstalledBroker, device: Party) -> None:
    way = broker.settings(client_id="interrupted", group="interrupted")
    transport = Transport(way)
    transport.start()
    assert transport.wait_ready(DEADLINE_SECONDS)
    transport.close()
    device.publish_many(TOPIC, [b"%d" % number for number in range(50)])
    taking = LeavingTransport(way)
    taking.start()
    wait_until(lambda: taking.stats().received == 50 and taking._heard_in is not None, "all is received")
    assert not taking.drained, "nothing was taken yet"
    first = taking.drain(500, 1.0)
    assert len(first) == 50
    assert taking.drained
    other = connection.new_client(way)  # takes the session over: the connection ends, nothing acknowledged
    connection.connect(other, way)
    other.loop_start()
    wait_until(lambda: taking.stats().generation > 0, "the connection is lost")
    assert not taking.drained
    other.loop_stop()
    line = other.socket()
    if line is not None:
        line.close()
    again: list[bytes] = []

    def done() -> bool:
        drain(taking, again)
        return taking.drained

    wait_until(done, "it is empty")
    assert sorted(again) == sorted(message.payload for message in first), "all of it came again"
    taking.close()
    end_session(way)
    assert not has_session(way)


def test_a_session_that_is_not_there_is_empty(broker: InstalledBroker) -> None:
    way = broker.settings(client_id="never-there", group="never-there")
    taking = LeavingTransport(way)
    taking.start()
    wait_until(lambda: taking.drained, "there is nothing")
    assert taking.stats().received == 0
    taking.close()
    end_session(way)
