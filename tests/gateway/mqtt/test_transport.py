"""The transport on the real broker: batches, backlog, pushing back, acknowledgements, reconnection."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from broker_fixtures import DEADLINE_SECONDS, InstalledBroker, Party, device_pair, install, wait_until

from gateway.mqtt import pki
from gateway.mqtt.capath import CaPath
from gateway.mqtt.client import Incoming, Transport
from provisioning.errors import InvalidError, SetupError

HELLO = "fg/v1/p-1/hello"
PROTOCOLS = pytest.mark.parametrize("protocol", ["5", "3.1.1"])


@pytest.fixture(scope="module")
def authority() -> pki.Signed:
    return pki.create_authority("Product A", datetime.now(UTC))


@pytest.fixture
def installed(tmp_path: Path, authority: pki.Signed) -> Iterator[InstalledBroker]:
    """A broker of the test's own, whose queues are empty."""
    installed = install(tmp_path / "fleetgate")
    CaPath(installed.installation.capath).add("product-a", authority.pem)
    with installed.broker:
        yield installed


@pytest.fixture
def device(installed: InstalledBroker, authority: pki.Signed, tmp_path: Path) -> Iterator[Party]:
    with Party(installed, device_pair(tmp_path / "device", authority, "p-1")) as party:
        yield party


def numbers(count: int) -> list[bytes]:
    return [b"%d" % number for number in range(count)]


def collect(
    transport: Transport, count: int, *, max_messages: int = 200, acknowledge: bool = True
) -> list[Incoming]:
    """The next `count` messages, in batches."""
    taken: list[Incoming] = []

    def enough() -> bool:
        for incoming in transport.drain(min(max_messages, count - len(taken)), timeout_seconds=0.1):
            if acknowledge:
                transport.acknowledge(incoming)
            taken.append(incoming)
        return len(taken) >= count

    wait_until(enough, f"{count} messages, {transport.stats()}")
    return taken


def test_full_batches_form_before_anything_is_acknowledged(installed: InstalledBroker, device: Party) -> None:
    transport = installed.transport()
    device.publish_many(HELLO, numbers(500))
    wait_until(lambda: transport.stats().queued == 500, "all in flight: the default of 20 would stop at 20")
    batch = transport.drain(200, timeout_seconds=1)
    assert [incoming.payload for incoming in batch] == numbers(200)
    transport.close()


@PROTOCOLS
def test_a_backlog_waits_for_an_absent_gateway(
    installed: InstalledBroker, device: Party, protocol: str
) -> None:
    installed.transport(protocol=protocol).close()
    device.publish_many(HELLO, numbers(3000))  # the default queue holds 1,000
    transport = installed.transport(protocol=protocol)
    taken = collect(transport, 3000)
    assert [incoming.payload for incoming in taken] == numbers(3000)
    assert transport.drain(timeout_seconds=0.3) == []
    transport.close()


@PROTOCOLS
def test_a_backlog_outlives_a_restart_of_the_broker(
    installed: InstalledBroker, device: Party, protocol: str
) -> None:
    installed.transport(protocol=protocol).close()
    device.publish_many(HELLO, numbers(50))
    installed.broker.restart()
    transport = installed.transport(protocol=protocol)
    assert [incoming.payload for incoming in collect(transport, 50)] == numbers(50)
    transport.close()


def test_a_full_queue_pushes_back_without_closing(installed: InstalledBroker, device: Party) -> None:
    transport = installed.transport(queue_limit=100)
    device.publish_many(HELLO, numbers(3000))
    wait_until(lambda: transport.stats().paused, "the queue fills")
    queued = [transport.stats().queued]
    taken: list[Incoming] = []
    while len(taken) < 3000:
        taken += collect(transport, 50, max_messages=50)
        queued.append(transport.stats().queued)
    stats = transport.stats()
    assert [incoming.payload for incoming in taken] == numbers(3000), "each once, and in order"
    assert max(queued) <= 100
    assert stats.pauses >= 1
    assert (stats.generation, stats.discarded) == (0, 0)
    transport.close()


@PROTOCOLS
def test_a_lost_connection_discards_the_queue_and_old_acknowledgements(
    installed: InstalledBroker, device: Party, protocol: str
) -> None:
    transport = installed.transport(protocol=protocol)
    device.publish_many(HELLO, numbers(50))
    wait_until(lambda: transport.stats().queued == 50, "50 queued")
    held = transport.drain(10, timeout_seconds=1)
    installed.broker.restart()
    wait_until(lambda: transport.stats().generation > 0 and transport.stats().connected, "it reconnects")
    assert transport.stats().discarded == 40
    for incoming in held:
        transport.acknowledge(incoming)  # of a connection that is gone: must strike nothing
    again = collect(transport, 50, acknowledge=False)
    assert [incoming.payload for incoming in again] == numbers(50)
    assert {incoming.generation for incoming in again} == {transport.stats().generation}
    transport.close()
    after = installed.transport(protocol=protocol)
    assert [incoming.payload for incoming in collect(after, 50)] == numbers(50), "none was struck"
    assert after.drain(timeout_seconds=0.3) == []
    after.close()


@PROTOCOLS
def test_what_was_not_acknowledged_comes_again(
    installed: InstalledBroker, device: Party, protocol: str
) -> None:
    transport = installed.transport(protocol=protocol)
    device.publish_many(HELLO, numbers(5))
    taken = collect(transport, 5, acknowledge=False)
    for index in (4, 0, 2):  # in any order
        transport.acknowledge(taken[index])
    transport.close()
    after = installed.transport(protocol=protocol)
    assert [incoming.payload for incoming in collect(after, 2)] == [b"1", b"3"]
    assert after.drain(timeout_seconds=0.3) == []
    after.close()


def test_stopping_works_what_is_queued_and_leaves_the_rest_to_the_broker(
    installed: InstalledBroker, device: Party
) -> None:
    transport = installed.transport()
    device.publish_many(HELLO, [b"before"])
    wait_until(lambda: transport.stats().queued == 1, "it is queued")
    transport.stop_reading()
    device.publish_many(HELLO, [b"after"])
    (incoming,) = transport.drain(timeout_seconds=1)
    assert transport.publish("fg/v1/p-1/reply", b"welcome"), "answers still go out"
    transport.acknowledge(incoming)
    assert transport.drain(timeout_seconds=DEADLINE_SECONDS) == [], "at once: no more will come"
    transport.close()
    assert transport.stats().published == 1
    after = installed.transport()
    assert [incoming.payload for incoming in collect(after, 1)] == [b"after"]
    after.close()


@PROTOCOLS
def test_every_token_comes_back_from_the_brokers_acknowledgement(
    installed: InstalledBroker, device: Party, protocol: str
) -> None:
    device.subscribe("fg/v1/p-1/reply")
    transport = installed.transport(protocol=protocol)
    tokens: list[object] = []
    transport.on_published(tokens.append)

    def publish(start: int) -> None:
        for number in range(start, start + 1000):
            assert transport.publish("fg/v1/p-1/reply", b"%d" % number, token=number, correlation=b"\x01\x02")

    threads = [threading.Thread(target=publish, args=(start,)) for start in (0, 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    wait_until(lambda: len(tokens) == 2000, "2000 tokens")
    assert set(tokens) == set(range(2000))
    stats = transport.stats()
    assert (stats.published, stats.refused, stats.outstanding) == (2000, 0, 0)
    first = device.received.get(timeout=10)
    assert getattr(first.properties, "CorrelationData", None) == (b"\x01\x02" if protocol == "5" else None)
    transport.close()


def test_a_token_comes_back_over_a_reconnection(installed: InstalledBroker) -> None:
    transport = installed.transport()
    tokens: list[object] = []
    transport.on_published(tokens.append)
    published = 0
    restarted = threading.Thread(target=installed.broker.restart)
    restarted.start()
    while restarted.is_alive() or published < 100:
        published += transport.publish("fg/v1/p-1/reply", b"x", token=published)
    restarted.join()
    wait_until(lambda: len(tokens) == published, "every publish that was taken is acknowledged")
    assert sorted(map(str, tokens)) == sorted(map(str, range(published)))
    transport.close()


def test_without_a_connection_nothing_is_taken(installed: InstalledBroker) -> None:
    transport = Transport(installed.settings())
    assert not transport.publish("fg/v1/p-1/reply", b"x")
    transport.start()
    assert transport.wait_ready(DEADLINE_SECONDS)
    installed.broker.stop()
    wait_until(lambda: not transport.stats().connected, "it sees the loss")
    assert not transport.publish("fg/v1/p-1/reply", b"x")
    assert transport.stats().last_error is not None
    transport.close()


def test_it_waits_for_a_broker_that_is_not_there_yet(tmp_path: Path) -> None:
    installed = install(tmp_path / "fleetgate")
    transport = Transport(installed.settings())
    transport.start()
    wait_until(lambda: "refused" in (transport.stats().last_error or ""), "it says why")
    with installed.broker:
        assert transport.wait_ready(DEADLINE_SECONDS)
        transport.close()


def test_closing_without_a_broker_ends(tmp_path: Path) -> None:
    transport = Transport(install(tmp_path / "fleetgate").settings(reconnect_max_seconds=30.0))
    transport.start()
    transport.close(timeout_seconds=1)
    assert not transport.stats().connected


def test_a_topic_above_its_rate_is_acknowledged_and_counted(
    installed: InstalledBroker, device: Party
) -> None:
    transport = installed.transport(rate_per_minute=1.0, rate_burst=5)
    device.publish_many(HELLO, numbers(20))
    device.publish_many("fg/v1/p-1/presence", [b"another topic"])
    wait_until(lambda: transport.stats().received == 21, "all are received")
    taken = collect(transport, 6)
    assert [incoming.payload for incoming in taken] == [*numbers(5), b"another topic"]
    assert transport.stats().rate_limited == 15
    for incoming in taken:
        transport.acknowledge(incoming)
    transport.close()
    after = installed.transport()
    assert after.drain(timeout_seconds=0.3) == [], "what was limited does not come again"
    after.close()


def test_the_brokers_uptime_is_told_and_goes_back_at_a_restart(installed: InstalledBroker) -> None:
    uptimes: list[int] = []
    transport = Transport(installed.settings())
    transport.on_uptime(uptimes.append)
    transport.start()
    wait_until(lambda: bool(uptimes), "told when connecting")
    told = len(uptimes)
    installed.broker.restart()
    wait_until(lambda: len(uptimes) > told, "told when connecting again")
    assert uptimes[-1] <= 10
    transport.close()


def test_another_process_with_the_client_id_takes_the_session(
    installed: InstalledBroker, device: Party
) -> None:
    first = installed.transport(reconnect_min_seconds=60.0, reconnect_max_seconds=60.0)
    device.publish_many(HELLO, [b"held by the first"])
    wait_until(lambda: first.stats().queued == 1, "the first holds it")
    second = installed.transport()
    assert [incoming.payload for incoming in collect(second, 1)] == [b"held by the first"]
    wait_until(lambda: first.stats().discarded == 1, "the first lets go of it")
    first.close()
    second.close()


def test_too_large_a_payload_is_refused_here(installed: InstalledBroker) -> None:
    transport = installed.transport()
    with pytest.raises(InvalidError, match="16385 bytes for fg/v1/p-1/reply: a message has at most 16384"):
        transport.publish("fg/v1/p-1/reply", b"x" * 16385)
    transport.close()


def test_a_missing_key_is_said_at_the_start(installed: InstalledBroker, tmp_path: Path) -> None:
    with pytest.raises(SetupError, match=r"cannot use .*absent"):
        Transport(installed.settings(keyfile=tmp_path / "absent")).start()


def test_messages_of_the_full_size_are_read(installed: InstalledBroker, device: Party) -> None:
    transport = installed.transport()
    device.publish_many(HELLO, [bytes([number]) * 16384 for number in range(50)])
    assert [incoming.payload[:1] for incoming in collect(transport, 50)] == [bytes([n]) for n in range(50)]
    transport.close()


def test_who_waits_for_messages_writes_what_others_publish(installed: InstalledBroker) -> None:
    transport = installed.transport()
    tokens: list[object] = []
    transport.on_published(tokens.append)
    drained: list[list[Incoming]] = []
    waiting = threading.Thread(
        target=lambda: drained.append(transport.drain(timeout_seconds=DEADLINE_SECONDS))
    )
    waiting.start()
    for number in range(100):
        assert transport.publish("fg/v1/p-1/reply", b"x", token=number)
    wait_until(lambda: len(tokens) == 100, "acknowledged while the other still waits")
    assert waiting.is_alive(), "nothing has come for it"
    transport.stop_reading()
    waiting.join(DEADLINE_SECONDS)
    assert drained == [[]]
    transport.close()


def test_a_batch_that_takes_long_keeps_neither_the_broker_nor_publishes_waiting(
    installed: InstalledBroker, device: Party
) -> None:
    """The broker ends a connection that was silent for one and a half times its keepalive (MQTT 5 §3.1.2.10)."""
    transport = installed.transport(keepalive_seconds=2)
    tokens: list[object] = []
    transport.on_published(tokens.append)
    device.publish_many(HELLO, [b"first"])
    (incoming,) = collect(transport, 1, acknowledge=False)
    began = time.monotonic()
    assert transport.publish("fg/v1/p-1/reply", b"x", token="published meanwhile")
    wait_until(lambda: tokens == ["published meanwhile"], "served by the transport's own thread")
    device.publish_many(HELLO, [b"second"])
    wait_until(lambda: transport.stats().queued == 1, "read by it, too")
    wait_until(lambda: time.monotonic() - began > 5, "the batch takes longer than the broker would wait")
    assert (transport.stats().connected, transport.stats().generation) == (True, 0)
    transport.acknowledge(incoming)
    assert [one.payload for one in collect(transport, 1)] == [b"second"]
    transport.close()


def test_a_connection_lost_while_somebody_waits_is_made_anew(
    installed: InstalledBroker, authority: pki.Signed, tmp_path: Path
) -> None:
    pair = device_pair(tmp_path / "device", authority, "p-1")
    transport = installed.transport()
    taken: list[bytes] = []

    def drain() -> None:
        while len(taken) < 20:
            for incoming in transport.drain(timeout_seconds=0.5):
                transport.acknowledge(incoming)
                taken.append(incoming.payload)

    waiting = threading.Thread(target=drain, daemon=True)
    waiting.start()
    with Party(installed, pair) as device:
        device.publish_many(HELLO, numbers(10))
        wait_until(lambda: len(taken) == 10, "the first ten")
    installed.broker.restart()
    wait_until(lambda: transport.stats().generation > 0 and transport.stats().connected, "it reconnects")
    with Party(installed, pair) as device:
        device.publish_many(HELLO, numbers(20)[10:])
    waiting.join(DEADLINE_SECONDS)
    assert set(taken) == set(numbers(20))
    transport.close()
