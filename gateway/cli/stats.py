"""`fleetgate stats`: the fleet in figures, from counters."""

from collections.abc import Mapping
from typing import Annotated, Any

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import JsonOption, print_json, print_line, print_rows, text_of


def stats(
    product: Annotated[str | None, typer.Option(help="Only of this product.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Devices by state, product and cohort, who is connected, connects and refusals by reason, versions."""
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
    for name in ("devices", "firmware", "disconnects", "refusals"):
        words = figures["totals"][name]
        if words:
            print_line(f"{name}: " + ", ".join(f"{text_of(word)} {count}" for word, count in words.items()))


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
