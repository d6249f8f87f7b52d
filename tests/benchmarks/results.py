"""Figures of a run: medians with their spread, ratios to the baselines of the same round, targets, table, JSON.

Pure: is given numbers, returns numbers and text.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One measured thing over the rounds."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Figure":
        """Of at least one value."""
        return cls(median=statistics.median(values), least=min(values), most=max(values))

    def show(self, digits: int = 0) -> str:
        """`median (least to most)`, or one number where there is nothing between them."""
        middle, low, high = (f"{value:,.{digits}f}" for value in (self.median, self.least, self.most))
        return middle if low == high else f"{middle} ({low} to {high})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a figure is to reach."""

    key: str
    title: str
    bound: float
    at_most: bool = False
    unit: str = ""
    digits: int = 2
    devices: int = 0  # how large a fleet it is meant for

    def reached(self, value: float) -> bool:
        """Whether `value` is good enough."""
        return value <= self.bound if self.at_most else value >= self.bound

    @property
    def words(self) -> str:
        """The target as people read it."""
        return f"{'≤' if self.at_most else '≥'} {self.bound:,g}{self.unit}"


MILLION: Final = 1_000_000
TARGETS: Final = (
    Target(key="first_over_b2", title="first hellos, one worker, SQLite ÷ B2", bound=0.55),
    Target(key="first_over_b1", title="first hellos, one worker, SQLite ÷ B1", bound=4.0),
    Target(key="known_over_b5", title="known devices' hellos, one worker, SQLite ÷ B5", bound=0.34),
    Target(key="p50_ms", title="hello → welcome at half load, p50", bound=2.0, at_most=True, unit=" ms"),
    Target(key="p99_ms", title="hello → welcome at half load, p99", bound=10.0, at_most=True, unit=" ms"),
    Target(key="fanout_over_b3", title="rollout fan-out, offers ÷ B3", bound=0.2, digits=3),
    Target(key="two_over_one", title="two workers ÷ one, first hellos, PostgreSQL", bound=1.5),
    Target(key="tls_over_b1", title="TLS connection with first hello ÷ B1", bound=0.8),
    Target(
        key="bytes_per_device",
        title="memory per known device",
        bound=160,
        at_most=True,
        unit=" B",
        digits=0,
        devices=MILLION,
    ),
    Target(
        key="stats_ms", title="statistics from counters", bound=1.0, at_most=True, unit=" ms", devices=MILLION
    ),
    Target(key="stats_speedup", title="statistics, scan ÷ counters", bound=1000, digits=0, devices=MILLION),
    Target(
        key="page_ms",
        title="a page of 100 devices, over HTTP",
        bound=100,
        at_most=True,
        unit=" ms",
        digits=0,
        devices=MILLION,
    ),
)

RATIOS: Final[dict[str, tuple[str, str]]] = {
    "first_over_b2": ("first sqlite 1", "B2"),
    "first_over_b1": ("first sqlite 1", "B1"),
    "known_over_b5": ("known sqlite 1", "B5"),
    "fanout_over_b3": ("fanout sqlite 1", "B3"),
    "two_over_one": ("first postgresql 2", "first postgresql 1"),
    "tls_over_b1": ("arrivals sqlite 1", "B1"),
}
"""Each ratio's two series: divided round by round, so that a slow minute of the machine hits both sides."""

BASELINES: Final = {
    "B1": "full mutual-TLS connections in a second of the broker's one thread",
    "B2": "first hellos, cryptography alone, one thread",
    "B3": "messages of 1.5 kB, QoS 1, one to one, broker",
    "B5": "P-256 verifies, one thread",
}


@dataclass(slots=True)
class Results:
    """Everything that was measured, by series; each round adds a value to each.

    Attributes:
        points: of the growth curves: devices, then figures by name.
    """

    series: dict[str, list[float]] = field(default_factory=dict)
    points: dict[int, dict[str, float]] = field(default_factory=dict)
    stages: dict[str, dict[str, float]] = field(default_factory=dict)
    safeguards: dict[str, dict[str, float]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, value: float) -> None:
        """Adds a round's value."""
        self.series.setdefault(name, []).append(value)

    def figure(self, name: str) -> Figure | None:
        """A series as one figure; None where it was not measured."""
        values = self.series.get(name)
        return Figure.of(values) if values else None

    def ratio(self, key: str) -> Figure | None:
        """A ratio over the rounds."""
        above, below = (self.series.get(name, []) for name in RATIOS[key])
        values = [one / other for one, other in zip(above, below, strict=False)]
        return Figure.of(values) if values else None

    def target_figure(self, target: Target) -> Figure | None:
        """What was measured for a target."""
        return self.ratio(target.key) if target.key in RATIOS else self.figure(target.key)

    def reached(self, target: Target) -> bool | None:
        """Whether a target is reached; None where it was not measured, or on too small a fleet."""
        found = self.target_figure(target)
        if found is None or target.devices > max(self.points, default=0):
            return None
        return target.reached(found.median)


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` (0–1) of the values do not exceed (nearest rank)."""
    ordered = sorted(values)
    rank = max(1, -(-len(ordered) * share // 1))
    return ordered[int(rank) - 1]


def targets_table(results: Results) -> list[tuple[str, str, str, str]]:
    """Rows of what, target, measured, and the verdict."""
    rows = []
    for target in TARGETS:
        found, reached = results.target_figure(target), results.reached(target)
        if found is None:
            measured, verdict = "", "not measured"
        else:
            measured = found.show(target.digits) + target.unit
            verdict = {True: "reached", False: "not reached"}.get(
                reached,
                f"only {max(results.points, default=0):,} devices",  # type: ignore[arg-type]
            )
        title = f"{target.title}, at {target.devices:,} devices" if target.devices else target.title
        rows.append((title, target.words, measured, verdict))
    return rows


def rates_table(results: Results) -> list[tuple[str, str]]:
    """Every series that is no target's own, as it was measured."""
    own = {target.key for target in TARGETS}
    rows = []
    for name in results.series:
        found = results.figure(name)
        if found is not None and name not in own:
            title = f"{name}: {BASELINES[name]}" if name in BASELINES else name
            rows.append((title, found.show(0 if found.median >= 100 else 2)))
    return rows


def growth_table(results: Results) -> list[tuple[str, ...]]:
    """A row for each figure of the growth curves, a column for each size of the fleet; sizes are the first row."""
    sizes = sorted(results.points)
    names = list(results.points[sizes[0]]) if sizes else []
    rows = [
        (name.replace("_", " "), *(_show(results.points[size][name], name) for size in sizes))
        for name in names
    ]
    return [("", *(f"{size:,}" for size in sizes)), *rows]


def _show(value: float, name: str) -> str:
    return f"{value:,.{2 if name.endswith('ms') else 0}f}"


def stages_table(results: Results) -> list[tuple[str, ...]]:
    """A row for each stage of a hello, a column for each kind of hello, and the sum; the kinds are the first row."""
    kinds = list(results.stages)
    stages = list(results.stages[kinds[0]]) if kinds else []
    rows = [(stage, *(f"{results.stages[kind][stage]:,.0f}" for kind in kinds)) for stage in stages]
    total = ("together", *(f"{sum(results.stages[kind].values()):,.0f}" for kind in kinds))
    return [("stage", *kinds), *rows, total]


def safeguards_table(results: Results) -> list[tuple[str, ...]]:
    """A row for each safeguard, a column for each kind of time; the kinds are the first row."""
    kinds = list(next(iter(results.safeguards.values()), {}))
    rows = [(name, *(f"{costs[kind]:,.0f}" for kind in kinds)) for name, costs in results.safeguards.items()]
    return [("safeguard", *kinds), *rows]


def put_block(text: str, name: str, content: str) -> str:
    """A document with what stands between `<!-- bench:NAME -->` and `<!-- bench:end -->` replaced."""
    begin, end = f"<!-- bench:{name} -->\n", "<!-- bench:end -->"
    head, found, tail = text.partition(begin)
    _, closed, rest = tail.partition(end)
    if not found or not closed:
        raise ValueError(f"the document has no block {begin.strip()} … {end}")
    return f"{head}{begin}{content}{end}{rest}"


def to_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a document."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def to_document(results: Results, facts: Mapping[str, object]) -> dict[str, Any]:
    """What build/bench.json holds: medians, and every round's value beside them.

    Args:
        facts: how the run was made: rounds, sizes, versions.
    """

    def median(name: str) -> float | None:
        found = results.figure(name)
        return None if found is None else round(found.median, 4)

    ratios = {key: results.ratio(key) for key in RATIOS}
    extra = {"p50_ms", "p99_ms", "bytes_per_device", "stats_ms", "stats_speedup", "page_ms"}
    return {
        "run": dict(facts),
        "baselines": {name: median(name) for name in BASELINES},
        "rates": {
            name: median(name) for name in results.series if name not in BASELINES and name not in extra
        },
        "ratios": {key: None if found is None else round(found.median, 4) for key, found in ratios.items()},
        "latency_ms": {"p50": median("p50_ms"), "p99": median("p99_ms")},
        "bytes_per_device": median("bytes_per_device"),
        "stats_ms": median("stats_ms"),
        "stats_speedup": median("stats_speedup"),
        "page_ms": median("page_ms"),
        "growth": {str(devices): dict(figures) for devices, figures in sorted(results.points.items())},
        "stages_us": {name: dict(stages) for name, stages in results.stages.items()},
        "safeguards_us": {name: dict(costs) for name, costs in results.safeguards.items()},
        "targets": {
            target.key: {
                "bound": target.bound,
                "at_most": target.at_most,
                "reached": results.reached(target),
            }
            for target in TARGETS
        },
        "rounds": {name: [round(value, 4) for value in values] for name, values in results.series.items()},
        "notes": list(results.notes),
    }


def to_json(results: Results, facts: Mapping[str, object]) -> str:
    """The same, as text that changes little between runs."""
    return json.dumps(to_document(results, facts), indent=2) + "\n"
