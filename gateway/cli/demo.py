"""`fleetgate demo`: the main job on this machine, to watch, or headless to check."""

import contextlib
import itertools
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.live import Live

from gateway.cli.api import Api, open_api
from gateway.cli.demo_view import picture, print_summary
from gateway.cli.output import ExitCode, print_json, print_line, say
from gateway.demo.cast import make_plans
from gateway.demo.script import Script, make_certificate
from gateway.demo.stage import Stage, running_demo
from gateway.demo.verdict import Verdict, judge
from gateway.device.fleet import Fleet
from gateway.device.messages import load_identity_files

app = typer.Typer(help="The main job, live on this machine.", invoke_without_command=True)
DirectoryOption = Annotated[Path, typer.Option(help="Where its state is; an earlier demo there is replaced.")]
CONNECTS_PER_SECOND = 120.0
SETTLE_SECONDS = 5.0


@app.callback()
def demo(
    context: typer.Context,
    directory: DirectoryOption = Path("demo"),
    devices: Annotated[int, typer.Option(min=1, max=20_000, help="Well-behaved devices.")] = 200,
    seconds: Annotated[float, typer.Option(min=1, help="Time limit of it all.")] = 120.0,
    headless: Annotated[bool, typer.Option("--headless", help="No view; ends when all is done.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Devices arrive, are verified and placed, and get their firmware by a scheduled rollout; intruders are refused."""
    if context.invoked_subcommand is not None:
        return
    steps = itertools.count(1)
    for number in (signal.SIGTERM, signal.SIGHUP):  # a closed terminal ends broker and gateway too
        signal.signal(number, signal.default_int_handler)
    program = context.find_root().command

    def tell(what: str, command: str) -> None:
        if as_json:
            return
        if what:
            print_line(f"{next(steps):2}. {what}")
        if command:
            print_line(f"      $ {command}")

    def run(words: Sequence[str]) -> None:
        program.main(args=list(words), prog_name="fleetgate", standalone_mode=False)

    intruders = max(1, devices // 50)
    with contextlib.suppress(KeyboardInterrupt), running_demo(directory.absolute(), tell) as stage:
        script = Script(stage=stage, run=run, say=tell)
        script.register()
        script.publish()
        begins = devices / CONNECTS_PER_SECOND + 4.0
        script.schedule(begins, most_in_flight=max(10, devices // 6))
        tell(f"{devices} devices connect, and {intruders} intruder{'s' if intruders > 1 else ''}", "")
        fleet = Fleet(
            make_plans(script, devices, intruders), stage.broker, connects_per_second=CONNECTS_PER_SECOND
        )
        with open_api(stage.place.settings) as api:
            watch = _no_view() if headless or as_json else _view(api, devices)
            with watch as show:
                fleet.run(seconds, on_change=show, until=lambda _: _is_over(fleet))
        verdict = _settle(stage, fleet, devices)
        if as_json:
            print_json(verdict.answer)
        else:
            print_summary(verdict.answer, fleet.report())
        if not (headless or as_json):
            _stay(stage, fleet)
        fleet.close()
        if not verdict.ok:
            for difference in verdict.differences:
                say(f"fleetgate: {difference}")
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
    topic_name = load_identity_files(cert, key).topic_name
    print_line(f"and watch it, in another terminal:  fleetgate device watch {topic_name}")


def _is_over(fleet: Fleet) -> bool:
    """Whether every well-behaved device has come to an end of its update."""
    return all(
        device.plan.expected is not None
        or any(result != "deferred" for result in device.outcome.updates.values())
        for device in fleet.devices
    )


def _settle(stage: Stage, fleet: Fleet, devices: int) -> Verdict:
    """Serves on until the last reports have been worked and the rollouts have completed, for a few seconds."""
    ends = time.monotonic() + SETTLE_SECONDS
    while True:
        verdict = judge(stage, fleet.report(), devices)
        over = all(rollout["state"] == "completed" for rollout in verdict.answer["rollouts"])
        if (verdict.ok and over) or time.monotonic() > ends:
            return verdict
        fleet.serve(0.2)


@contextlib.contextmanager
def _no_view() -> Iterator[Callable[[Fleet], None]]:
    yield lambda _: None


@contextlib.contextmanager
def _view(api: Api, devices: int) -> Iterator[Callable[[Fleet], None]]:
    with Live(console=Console(), refresh_per_second=8, transient=True) as live:
        last, rollouts = 0.0, []

        def show(fleet: Fleet) -> None:
            nonlocal last, rollouts
            if time.monotonic() - last > 0.25:
                last = time.monotonic()
                rollouts = api.items("rollouts")
                live.update(picture(fleet.report(), rollouts, devices))

        yield show


def _stay(stage: Stage, fleet: Fleet) -> None:
    place = stage.place
    ended = {
        result: outcome.name
        for outcome in fleet.report().outcomes
        for result in outcome.updates.values()
        if result != "succeeded"
    }
    example = ended.get("rolled_back") or ended.get("failed") or fleet.devices[0].outcome.name
    print_line("")
    print_line("Try now, in another terminal:")
    for line in (
        f"export FLEETGATE_CONFIG={place.settings}",
        "fleetgate stats",
        "fleetgate rollout list",
        f"fleetgate device explain {example}",
        f"fleetgate device timeline {example}",
        "fleetgate inbox list",
        "fleetgate demo certificate alice      # then become that device, and watch it arrive here",
        "fleetgate verify-store",
    ):
        print_line(f"  {line}")
    say("Ctrl-C ends the demo.")
    with contextlib.suppress(KeyboardInterrupt):
        _watch_arrivals(stage, fleet)
    say("ended; the state stays in the folder until the next demo")


def _watch_arrivals(stage: Stage, fleet: Fleet) -> None:
    """Keeps the fleet connected and tells of each device that arrives, until Ctrl-C."""
    with open_api(stage.place.settings) as api:
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
