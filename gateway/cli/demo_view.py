"""What the demo shows: arrivals by product and cohort, rollouts as bars, refusals and ends with their reasons."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from rich import box
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from gateway.cli.output import print_line
from gateway.demo.script import PRODUCTS
from gateway.device.fleet import FleetReport

BAR: Final = 24
_BAD: Final = ("failed", "rolled_back", "rejected", "timed_out")
_FLYING: Final = (
    "offered", "accepted", "downloading", "downloaded", "verified", "waiting", "installing", "rebooting",
    "confirming", "deferred",
)  # fmt: skip


def picture(report: FleetReport, rollouts: Sequence[Mapping[str, Any]], devices: int) -> RenderableType:
    """The moving picture while it runs."""
    answered = sum(outcome.done for outcome in report.outcomes)
    parts: list[RenderableType] = [
        Text.assemble(_bar(answered, len(report.outcomes), "green"), f"  {answered} devices answered"),
        _arrivals(report),
    ]
    if rollouts:
        parts.append(_rollouts(rollouts, report))
    return Group(*parts)


def print_summary(answer: Mapping[str, Any], report: FleetReport) -> None:
    """What came of it, at the end."""
    console = Console()
    console.print(_arrivals(report))
    if answer["rollouts"]:
        console.print(_rollouts(answer["rollouts"], report))
    for outcome in report.outcomes:
        if outcome.reason == "identifier_pattern":
            print_line(f"{outcome.name} had a genuine certificate and was refused: {outcome.reason}")
            break
    ends = ", ".join(f"{count} {state}" for state, count in answer["attempts"].items())
    print_line(f"updates: {ends or 'none'}")
    latency = answer["latency_ms"]
    print_line(f"hello → reply: {latency['p50']} ms in the middle, {latency['p99']} ms at 99 %")
    print_line(f"SQL and devices agree, and the invariants hold: {'yes' if answer['ok'] else 'NO'}")


def _arrivals(report: FleetReport) -> Table:
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("product", "canary", "main", "devices"):
        table.add_column(column, justify="left" if column in ("product", "devices") else "right")
    cohorts = Counter((outcome.product, outcome.cohort) for outcome in report.welcomed)
    most = max([*report.by_product.values(), 1])
    for product in PRODUCTS:
        count = report.by_product[product]
        table.add_row(
            product,
            str(cohorts[product, "canary"]),
            str(cohorts[product, "main"]),
            Text.assemble(("█" * (BAR * count // most), "green"), f" {count}"),
        )
    for reason, count in sorted(report.refused.items()):
        table.add_row(Text("refused", "red"), "", "", Text(f"{count} {reason}", "red"))
    return table


def _rollouts(rollouts: Sequence[Mapping[str, Any]], report: FleetReport) -> Table:
    cohorts = Counter((outcome.product, outcome.cohort) for outcome in report.welcomed)
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for column in ("rollout", "state", "progress", ""):
        table.add_column(column, no_wrap=column != "")
    for rollout in sorted(rollouts, key=lambda one: (one["product"], one["cohort"])):
        states = rollout["attempts"]
        whole = max(cohorts[rollout["product"], rollout["cohort"]], sum(states.values()))
        good = states.get("succeeded", 0)
        bad = sum(states.get(state, 0) for state in _BAD)
        flying = sum(states.get(state, 0) for state in _FLYING)
        words = [f"{good} of {whole}"] + [f"{states[s]} {s}" for s in _BAD if states.get(s)]
        table.add_row(
            f"{rollout['product']} {rollout['cohort']} → {rollout['version']}",
            rollout["state"],
            _stacked(good, bad, flying, whole),
            ", ".join(words),
        )
    return table


def _stacked(good: int, bad: int, flying: int, whole: int) -> Text:
    """One bar: done, ended badly, under way, still to come."""
    text = Text()
    ends = [good, good + bad, good + bad + flying, whole]
    begin = 0
    for end, (mark, style) in zip(
        ends, (("█", "green"), ("█", "red"), ("▒", "cyan"), ("░", "dim")), strict=True
    ):
        until = round(BAR * min(end, whole) / max(1, whole))
        text.append(mark * (until - begin), style)
        begin = until
    return text


def _bar(part: int, whole: int, style: str) -> Text:
    filled = BAR * part // max(1, whole)
    return Text.assemble(("█" * filled, style), ("░" * (BAR - filled), "dim"))
