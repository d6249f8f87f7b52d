"""`fleetgate demo`: the main job on this machine, to watch, or headless to check."""

import contextlib
import itertools
import signal
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from gateway.cli.api import open_api
from gateway.cli.output import ExitCode, print_json, print_line, say
from gateway.demo import PRODUCTS, Demo, judge, make_certificate, run_fleet, running_demo
from gateway.device.fleet import Fleet, FleetReport

app = typer.Typer(help="The main job, live on this machine.", invoke_without_command=True)
DirectoryOption = Annotated[Path, typer.Option(help="Where its state is; an earlier demo there is replaced.")]
_BAR = 40


@app.callback()
def demo(
    context: typer.Context,
    directory: DirectoryOption = Path("demo"),
    devices: Annotated[int, typer.Option(min=1, max=20_000, help="Well-behaved devices.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="Time limit of provisioning.")] = 120.0,
    headless: Annotated[bool, typer.Option("--headless", help="No view; ends when all is done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Devices arrive, are verified, and stand in their product and cohort; one kind is refused, with its reason."""
    if context.invoked_subcommand is not None:
        return
    steps = itertools.count(1)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends broker and gateway too
        signal.signal(number, signal.default_int_handler)

    def tell(what: str, command: str) -> None:
        if not as_json:
            print_line(f"{next(steps):2}. {what}")
            if command:
                print_line(f"      $ {command}")

    with contextlib.suppress(KeyboardInterrupt), running_demo(directory.absolute(), tell) as running:
        tell(f"{devices} devices connect, and {max(1, devices // 50)} intruders", "")
        if headless or as_json:
            fleet, report = run_fleet(running, devices, seconds)
        else:
            fleet, report = _watched(running, devices, seconds)
        answer = judge(running, report, devices)
        if as_json:
            print_json(answer)
        else:
            _summarize(report)
            latency = answer["latency_ms"]
            print_line(f"hello → reply: {latency['p50']} ms in the middle, {latency['p99']} ms at 99 %")
            print_line(f"SQL and devices agree, and the invariants hold: {'yes' if answer['ok'] else 'NO'}")
        if not (headless or as_json):
            _stay(running, fleet)
        fleet.close()
        if not answer["ok"]:
            raise typer.Exit(ExitCode.FAILURE)


@app.command()
def certificate(
    name: Annotated[str, typer.Argument(help="Your device's name.")],
    directory: DirectoryOption = Path("demo"),
) -> None:
    """Make a certificate of your own for the running demo, and become a device with it."""
    cert, key = make_certificate(directory.absolute(), name)
    print_line(f"certificate {cert}, key {key}")
    print_line(
        f"say hello with it:  fleetgate agent run --cert {cert} --key {key} --demo {directory.absolute()}"
    )


def _watched(running: Demo, devices: int, seconds: float) -> tuple[Fleet, FleetReport]:
    with Live(console=Console(), refresh_per_second=8, transient=True) as live:
        last = 0.0

        def show(fleet: Fleet) -> None:
            nonlocal last
            if time.monotonic() - last > 0.12:
                last = time.monotonic()
                live.update(_picture(fleet.report(), devices))

        return run_fleet(running, devices, seconds, show)


def _picture(report: FleetReport, devices: int) -> Group:
    answered = sum(outcome.done for outcome in report.outcomes)
    filled = _BAR * answered // max(1, len(report.outcomes))
    bar = Text.assemble(
        ("█" * filled, "green"),
        ("░" * (_BAR - filled), "dim"),
        f" {answered} of {len(report.outcomes)} answered",
    )
    return Group(bar, _table(report))


def _table(report: FleetReport) -> Table:
    table = Table(box=None, padding=(0, 2))
    for column in ("product", "canary", "main", ""):
        table.add_column(column)
    cohorts = Counter((outcome.product, outcome.cohort) for outcome in report.welcomed)
    most = max([*report.by_product.values(), 1])
    for product in PRODUCTS:
        width = _BAR * report.by_product[product] // most
        table.add_row(
            product,
            str(cohorts[product, "canary"]),
            str(cohorts[product, "main"]),
            Text("█" * width, "green"),
        )
    for reason, count in report.refused.items():
        table.add_row("refused", "", str(count), Text(f"{'█' * min(count, _BAR)} {reason}", "red"))
    return table


def _summarize(report: FleetReport) -> None:
    Console().print(_table(report))
    intruder = next((outcome for outcome in report.outcomes if outcome.name.startswith("intruder-")), None)
    if intruder is not None:
        print_line(f"{intruder.name} had a genuine certificate and was refused: {intruder.reason}")


def _stay(running: Demo, fleet: Fleet) -> None:
    place = running.place
    print_line("")
    print_line("Try now, in another terminal:")
    for line in (
        f"export FLEETGATE_CONFIG={place.settings}",
        "fleetgate stats",
        "fleetgate device list --limit 10",
        "fleetgate inbox list",
        "fleetgate demo certificate alice      # then become that device, and watch it arrive here",
        "fleetgate verify-store",
    ):
        print_line(f"  {line}")
    say("Ctrl-C ends the demo.")
    with contextlib.suppress(KeyboardInterrupt):
        _watch_arrivals(running, fleet)
    say("ended; the state stays in the folder until the next demo")


def _watch_arrivals(running: Demo, fleet: Fleet) -> None:
    """Keeps the fleet connected and tells of each device that arrives, until Ctrl-C."""
    with open_api(running.place.settings) as api:
        known = {row["id"] for row in api.pages("devices", limit=100_000)}
        look_at = 0.0
        while True:
            fleet.serve(0.1)
            if time.monotonic() < look_at:
                continue
            look_at = time.monotonic() + 1.0
            for row in api.pages("devices", limit=100_000):
                if row["id"] not in known:
                    known.add(row["id"])
                    print_line(f"arrived: {row['identifier']} → {row['product']}, cohort {row['cohort']}")
