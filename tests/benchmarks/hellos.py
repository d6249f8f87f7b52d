"""Hellos through the real broker and the real service: how many a second, and how long each waits."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from benchmarks.fleet import Fleet, Place
from benchmarks.results import percentile
from benchmarks.wire import StalledError, drive, pace
from benchmarks.world import Gateways, World

WINDOW: Final = 2000
"""Hellos without an answer: enough for two workers' batches of 200 and the broker's queue, and no flood."""

LATENCY_SECONDS: Final = 6.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """A rate, and what one hello cost in CPU time."""

    per_second: float
    gateway_us: float
    broker_us: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """From when a hello was due to leave to when its welcome was read."""

    p50_ms: float
    p99_ms: float


def measure_rate(world: World, gateways: Gateways, packets: Sequence[bytes]) -> Rate:
    """As many hellos a second as are answered while the next ones are waiting already."""
    with world.line() as line:
        line.subscribe(f"{world.place.prefix}/+/reply")
        gateway, broker = gateways.usage().cpu_seconds, world.broker_usage().cpu_seconds
        took = drive(line, packets, window=WINDOW, heard=_check_welcome)
        gateway, broker = gateways.usage().cpu_seconds - gateway, world.broker_usage().cpu_seconds - broker
    return Rate(
        per_second=len(packets) / took,
        gateway_us=gateway / len(packets) * 1e6,
        broker_us=broker / len(packets) * 1e6,
    )


def measure_latency(
    world: World, fleet: Fleet, numbers: range, *, with_chain: bool, per_second: float
) -> Latency:
    """How long a welcome takes when hellos come evenly at that rate.

    Args:
        numbers: of the devices; only so many speak as there is time for.
    """
    numbers = numbers[: max(1, int(per_second * LATENCY_SECONDS))]
    packets = fleet.hellos(numbers, with_chain=with_chain)
    place: Place = world.place

    def index_of(body: bytes) -> int:
        _check_welcome(body)
        return place.index_of(body) - numbers.start

    with world.line() as line:
        line.subscribe(f"{place.prefix}/+/reply")
        took = pace(line, packets, per_second, index_of)
    return Latency(p50_ms=percentile(took, 0.50) * 1000, p99_ms=percentile(took, 0.99) * 1000)


def _check_welcome(body: bytes) -> bool:
    """Each answer must be a welcome: a refusal is cheaper, and would look fast."""
    if b'"result":"welcome"' not in body:
        raise StalledError(f"a hello was not welcomed: {body!r}")
    return True
