"""`make bench`, `make bench ROUNDS=1 QUICK=1`, `make bench PUBLISH=1`; see docs/performance.md."""

import argparse
import contextlib
import os
import platform
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from pathlib import Path
from typing import Final

import pydantic
import sqlalchemy
from rich.console import Console
from rich.table import Table

from benchmarks import results, sizing
from benchmarks.charts import draw_growth
from benchmarks.fleet import fleet_of
from benchmarks.results import Results
from benchmarks.run import FULL, QUICK, Run
from benchmarks.world import World

ROOT: Final = Path(__file__).parents[2]
BUILD: Final = ROOT / "build"
DOCUMENT: Final = ROOT / "docs" / "performance.md"
CHART: Final = "growth.png"


def main() -> int:
    """Runs it, and returns the exit code: 0 also where a target is missed; timing is never a test."""
    parser = argparse.ArgumentParser(prog="make bench")
    parser.add_argument("--rounds", type=int, default=5, help="how often everything is measured")
    parser.add_argument(
        "--quick", action="store_true", help="small numbers: below three minutes with one round"
    )
    parser.add_argument(
        "--publish", action="store_true", help="also writes the tables into docs/performance.md"
    )
    arguments = parser.parse_args()
    sizes = QUICK if arguments.quick else FULL
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that every process we started is ended
    console = Console()
    started = time.monotonic()

    def tell(text: str) -> None:
        console.print(f"[dim]{time.monotonic() - started:5.0f} s[/]  {text}", highlight=False)

    with contextlib.ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="fleetgate-bench-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        world = stack.enter_context(World(directory))
        fleet = stack.enter_context(fleet_of(world.place))
        run = Run(world, fleet, sizes, tell)
        run.prepare()
        for number in range(1, arguments.rounds + 1):
            run.round(number, arguments.rounds)
        run.stages()
        run.safeguards()
        run.growth()
        run.check_generator()
    facts = {
        "rounds": arguments.rounds,
        "quick": arguments.quick,
        "hellos": sizes.hellos,
        "cores": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "sqlite": sqlite3.sqlite_version,
        "sqlalchemy": sqlalchemy.__version__,
        "pydantic": pydantic.VERSION,
        "seconds": round(time.monotonic() - started),
    }
    BUILD.mkdir(exist_ok=True)
    (BUILD / "bench.json").write_text(results.to_json(run.results, facts))
    draw_growth(run.results.points, BUILD / CHART)
    if arguments.publish:
        shutil.copyfile(BUILD / CHART, DOCUMENT.parent / CHART)
        publish(run.results)
    show(console, run.results)
    tell(f"written: {BUILD.name}/bench.json, {BUILD.name}/{CHART}")
    return 0


def show(console: Console, found: Results) -> None:
    """Prints the tables."""
    for title, header, rows in _tables(found):
        table = Table(title=title, title_justify="left")
        for number, column in enumerate(header):
            table.add_column(column, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    for note in found.notes:
        console.print(f"note: {note}", highlight=False)


def publish(found: Results) -> None:
    """Writes the tables into the document."""
    text = DOCUMENT.read_text(encoding="utf-8")
    for (_, header, rows), name in zip(
        _tables(found), ("figures", "stages", "safeguards", "growth", "targets"), strict=True
    ):
        text = results.put_block(text, name, results.to_markdown(header, rows))
    header, *rows = sizing.sizing_table(found)
    text = results.put_block(text, "sizing", sizing.sizing_figures(found) + results.to_markdown(header, rows))
    DOCUMENT.write_text(text, encoding="utf-8")


def _tables(found: Results) -> list[tuple[str, tuple[str, ...], list[tuple[str, ...]]]]:
    stages, *stage_rows = results.stages_table(found)
    safeguards, *safeguard_rows = results.safeguards_table(found)
    sizes, *growth_rows = results.growth_table(found)
    return [
        ("Figures", ("what", "median (least to most)"), [*results.rates_table(found)]),
        ("Where one hello goes", stages, stage_rows),
        ("What safeguards cost", safeguards, safeguard_rows),
        ("Known devices", sizes, growth_rows),
        ("Targets", ("what", "target", "measured", ""), [*results.targets_table(found)]),
    ]


if __name__ == "__main__":
    sys.exit(main())
