"""The order of a run: every round measures everything once, baselines first, so that all share the machine's mood."""

import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Final

from databases import find_initdb

from benchmarks import baselines, connections, mass, safeguards, stages
from benchmarks.fleet import Fleet
from benchmarks.hellos import WINDOW, measure_latency, measure_rate
from benchmarks.helpers import HelperError
from benchmarks.offers import measure_fanout
from benchmarks.results import Results
from benchmarks.wire import drive, pace
from benchmarks.world import World

CONFIGURATIONS: Final = (("sqlite", 1), ("postgresql", 1), ("postgresql", 2))  # SQLite serves one process
WARM: Final = 400
"""Hellos of devices of their own that a new process answers first, and that are not measured."""
ALONE_PER_SECOND: Final = 25.0
"""Hellos so rare that each is a batch of its own."""
LEAST_GENERATOR: Final = 3.0
"""How many times faster than the gateway the load generator must be, or the run says that it is in the way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How much is measured."""

    hellos: int
    connects: int
    messages: int
    seconds: float
    fleets: tuple[int, ...]


FULL: Final = Sizes(
    hellos=4000, connects=1000, messages=50_000, seconds=1.0, fleets=(1_000, 10_000, 100_000, 1_000_000)
)
QUICK: Final = Sizes(hellos=600, connects=200, messages=15_000, seconds=0.4, fleets=(1_000, 10_000))


class Run:
    """One run.

    Args:
        tell: shows progress.
    """

    def __init__(self, world: World, fleet: Fleet, sizes: Sizes, tell: Callable[[str], None]) -> None:
        self._world = world
        self._fleet = fleet
        self._sizes = sizes
        self._tell = tell
        self._has_postgresql = find_initdb() is not None
        self.results: Final = Results()

    def prepare(self) -> None:
        """Makes the devices."""
        devices = 2 * self._sizes.hellos + WARM
        self._tell(f"making {devices:,} devices, in {os.cpu_count()} processes")
        self._fleet.grow(devices)
        if not self._has_postgresql:
            self.results.notes.append("PostgreSQL is not installed: its figures are missing")

    def round(self, number: int, of: int) -> None:
        """Measures everything once."""
        begin = f"round {number} of {of}: "
        self._tell(begin + "baselines")
        self._baselines()
        for kind, workers in CONFIGURATIONS:
            if kind == "postgresql" and not self._has_postgresql:
                continue
            self._tell(f"{begin}{workers} worker{'s' * (workers > 1)} on {kind}")
            self._configuration(kind, workers)
        self._tell(begin + "devices on TLS connections of their own")
        with self._world.gateways(self._world.new_database("sqlite")):
            numbers = range(min(self._sizes.connects, self._fleet.size))
            rate, share = connections.measure_arrivals(self._world, self._fleet, numbers)
            self.results.add("arrivals sqlite 1", rate)
            self.results.add("arrivals sqlite 1: the broker's share of a core", share)

    def _baselines(self) -> None:
        add, sizes, world = self.results.add, self._sizes, self._world
        add("B5", baselines.measure_b5(sizes.seconds))
        packets = self._fleet.hellos(range(min(1000, sizes.hellos)), with_chain=True)
        add("B2", baselines.measure_b2(packets, world.authority.cert, sizes.seconds))
        rate, share = connections.measure_connects(
            world, self._fleet, range(min(sizes.connects, self._fleet.size))
        )
        add("B1", rate / share)  # the broker has one thread: what it does in a second of its own
        add("connections as they came", rate)
        add("B3", baselines.measure_b3(world, sizes.messages))
        repeated = packets * max(1, sizes.messages // len(packets))
        add("load generator, broker alone", baselines.measure_generator(world, repeated))

    def _configuration(self, kind: str, workers: int) -> None:
        world, fleet, add = self._world, self._fleet, self.results.add
        name, half = f"{kind} {workers}", range(self._sizes.hellos)
        with world.gateways(world.new_database(kind), workers) as gateways:
            warm = range(2 * self._sizes.hellos, fleet.size)
            measure_rate(world, gateways, fleet.hellos(warm, with_chain=True))
            first = measure_rate(world, gateways, fleet.hellos(half, with_chain=True))
            known = measure_rate(world, gateways, fleet.hellos(half, with_chain=False))
            for what, rate in (("first", first), ("known", known)):
                add(f"{what} {name}", rate.per_second)
                add(f"{what} {name}: gateway's µs", rate.gateway_us)
                add(f"{what} {name}: broker's µs", rate.broker_us)
            if workers == 1:
                rest = range(self._sizes.hellos, 2 * self._sizes.hellos)
                late = measure_latency(world, fleet, rest, with_chain=True, per_second=first.per_second / 2)
                again = measure_latency(world, fleet, half, with_chain=False, per_second=known.per_second / 2)
                if kind == "sqlite":
                    add("p50_ms", late.p50_ms)
                    add("p99_ms", late.p99_ms)
                else:
                    add(f"first {name}: p50 ms", late.p50_ms)
                    add(f"first {name}: p99 ms", late.p99_ms)
                add(f"known {name}: p50 ms", again.p50_ms)
                add(f"known {name}: p99 ms", again.p99_ms)
                add(f"fanout {name}", measure_fanout(world, gateways))

    def stages(self) -> None:
        """Where the time of one hello goes."""
        self._tell("stages of one hello")
        numbers = range(self._sizes.hellos)

        def load(with_chain: bool, alone: bool = False) -> Callable[[], int]:
            def say() -> int:
                spoken = numbers[: max(1, len(numbers) // 10)] if alone else numbers
                packets = self._fleet.hellos(spoken, with_chain=with_chain)
                with self._world.line() as line:
                    line.subscribe(f"{self._world.place.prefix}/+/reply")
                    if alone:
                        pace(line, packets, ALONE_PER_SECOND, self._world.place.index_of)
                    else:
                        drive(line, packets, window=WINDOW, heard=lambda _: True)
                return len(packets)

            return say

        loads = {
            "first hello, µs": load(True),
            "known device's hello, µs": load(False),
            "the same, each a batch of its own, µs": load(False, alone=True),
        }
        url = self._world.new_database("sqlite")
        try:
            self.results.stages = stages.measure_stages(self._world, url, loads)
        except HelperError as error:
            self.results.notes.append(f"the stages were not measured: {error}")

    def safeguards(self) -> None:
        """What each safeguard costs."""
        self._tell("safeguards of the hello path")
        devices = min(600, self._sizes.hellos)
        self.results.safeguards = safeguards.measure_safeguards(self._world.directory, devices)

    def growth(self) -> None:
        """What a larger fleet costs."""
        points = self.results.points
        for size in self._sizes.fleets:
            self._tell(f"growth: {size:,} known devices")
            started = time.monotonic()
            sample = range(min(2000, self._sizes.hellos))
            points[size] = asdict(mass.measure_point(self._world, self._fleet, size, sample))
            self._tell(f"growth: {size:,} known devices took {time.monotonic() - started:.0f} s")
        least, most = min(points), max(points)
        for size in sorted(points)[1:]:
            grown = (points[size]["resident_mb"] - points[least]["resident_mb"]) * 1e6 / (size - least)
            self.results.add("bytes_per_device" if size == most else f"bytes per device at {size:,}", grown)
        self.results.add("stats_ms", points[most]["stats_ms"])
        self.results.add("page_ms", points[most]["page_ms"])
        self.results.add("stats_speedup", points[most]["scan_ms"] / points[most]["stats_ms"])

    def check_generator(self) -> None:
        """Notes whether the load generator can have been in the way."""
        own = self.results.figure("load generator, broker alone")
        fastest = max(
            (
                found
                for name in self.results.series
                if (found := self.results.figure(name)) and _is_hello(name)
            ),
            key=lambda found: found.median,
        )
        assert own is not None
        times = own.median / fastest.median
        self.results.add("load generator ÷ fastest gateway", times)
        if times < LEAST_GENERATOR:
            self.results.notes.append(f"the load generator is only {times:.1f} times as fast as the gateway")


def _is_hello(name: str) -> bool:
    return name.startswith(("first", "known")) and ":" not in name
