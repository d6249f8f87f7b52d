"""`fleetgate stats`: the fleet in figures, from counters."""

import shutil
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Final

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import JsonOption, print_json, print_line, print_rows, text_of
from provisioning.statistics import FLOWS, Per

FIGURE_WIDTH: Final = 60
_OTHER_COLUMNS: Final = 70
_BARS: Final = "▁▂▃▄▅▆▇█"


def stats(
    product: Annotated[str | None, typer.Option(help="Only of this product.")] = None,
    per: Annotated[
        Per | None, typer.Option(help="Connects, disconnects, enrollments and refusals over time instead.")
    ] = None,
    last: Annotated[
        int, typer.Option(min=1, max=1440, help="With --per: so many minutes or hours, up to now.")
    ] = 60,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Devices by state, product and cohort, who is connected, connects and refusals by reason, versions."""
    if per is not None:
        with open_api(config) as api:
            flows = api.get("stats", "flows", product=product, per=per.value, last=last)
        if as_json:
            print_json(flows)
        else:
            _print_flows(flows)
        return
    with open_api(config) as api:
        figures = api.get("stats", product=product)
    if as_json:
        print_json(figures)
        return
    _print(figures)


def _print(figures: Mapping[str, Any]) -> None:
    rows = []
    for product, of_product in figures["products"].items():
        rows.append(_row(product, "", of_product))
        rows += [_row("", cohort, of_cohort) for cohort, of_cohort in of_product["cohorts"].items()]
    rows.append(_row("total", "", figures["totals"]))
    columns = ("product", "cohort", "devices", "connected", "connects", "disconnects", "refused")
    print_rows(rows, [(column, column) for column in columns], as_json=False)
    _print_updates(figures)
    for name in ("devices", "firmware", "disconnects", "refusals", "attempts", "failures"):
        words = figures["totals"][name]
        if words:
            print_line(f"{name}: " + ", ".join(f"{text_of(word)} {count}" for word, count in words.items()))


def _print_updates(figures: Mapping[str, Any]) -> None:
    rows = [
        {
            "product": product,
            "updates by": kind.removesuffix("s"),
            "": key,
            "succeeded": f"{rate['succeeded']} of {rate['finished']}",
            "rate": f"{rate['rate']:.1%}",
            "95 %": f"{rate['low']:.1%} – {rate['high']:.1%}",
        }
        for product, of_product in figures["products"].items()
        for kind, rates in of_product["updates"].items()
        for key, rate in rates.items()
        if rate["finished"]
    ]
    if rows:
        print_rows(rows, [(name, name) for name in rows[0]], as_json=False)


def _row(product: str, cohort: str, figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "product": product,
        "cohort": cohort,
        "devices": sum(figures["devices"].values()),
        "connected": figures["connected"],
        "connects": sum(figures["connects"].values()),
        "disconnects": sum(figures["disconnects"].values()),
        "refused": sum(figures["refusals"].values()),
    }


def _print_flows(flows: Mapping[str, Any]) -> None:
    per, starts = flows["per"], flows["starts"]
    width = max(10, min(FIGURE_WIDTH, shutil.get_terminal_size().columns - _OTHER_COLUMNS))
    rows = []
    for flow in FLOWS:
        for word, counts in flows[flow].items():
            rows.append(
                {
                    "flow": flow,
                    "word": word or "–",
                    "figure": draw(counts, width),
                    "sum": sum(counts),
                    f"most a {per}": max(counts),
                    f"this {per}": counts[-1],
                }
            )
    columns = ("flow", "word", "sum", f"most a {per}", f"this {per}", "figure")
    print_rows(rows, [(column, column) for column in columns], as_json=False)
    print_line(f"{len(starts)} {per}s from {starts[0]}, the last one still running")


def draw(counts: Sequence[int], width: int) -> str:
    """A line of bars, each the sum of as many counts as it takes to fit `width`; the last is the newest."""
    step = -(-len(counts) // width)
    first = len(counts) % step
    groups = [counts[:first]] if first else []
    groups += [counts[at : at + step] for at in range(first, len(counts), step)]
    sums = [sum(group) for group in groups]
    most = max(sums)
    # Nothing is a dot, so that the least of something is seen beside it.
    return "".join(_BARS[(value * len(_BARS) - 1) // most] if value > 0 else "·" for value in sums)
