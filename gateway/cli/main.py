"""The command line: `fleetgate NOUN VERB`. Errors are one line on standard error, and an exit code each kind.

0 done · 1 failed · 2 used wrongly · 3 not found · 4 not allowed · 5 conflict · 6 timed out.
"""

import sys
from collections.abc import Sequence
from importlib.metadata import version
from typing import Annotated

import typer

from gateway.cli import (
    agent,
    api_key,
    bundle,
    ca,
    certificate,
    cohort,
    demo,
    device,
    inbox,
    key,
    message,
    override,
    product,
    rollout,
    worker,
)
from gateway.cli.doctor import doctor
from gateway.cli.init import init
from gateway.cli.output import ExitCode, exit_code, print_line, say, text_of
from gateway.cli.serve import serve
from gateway.cli.stats import stats
from gateway.cli.verify_store import verify_store
from provisioning.errors import FleetgateError

root = typer.Typer(
    name="fleetgate",
    help="MQTT-connected device provisioning gateway.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
root.command()(init)
root.command()(serve)
root.command()(doctor)
root.command()(stats)
root.command("verify-store")(verify_store)
for _name, _module in (
    ("product", product),
    ("cohort", cohort),
    ("ca", ca),
    ("key", key),
    ("bundle", bundle),
    ("rollout", rollout),
    ("override", override),
    ("device", device),
    ("inbox", inbox),
    ("certificate", certificate),
    ("message", message),
    ("api-key", api_key),
    ("worker", worker),
    ("agent", agent),
    ("demo", demo),
):
    root.add_typer(_module.app, name=_name)


def _print_version(wanted: bool) -> None:
    if wanted:
        print_line(f"fleetgate {version('fleetgate')}")
        raise typer.Exit


@root.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """MQTT-connected device provisioning gateway."""


def run(arguments: Sequence[str]) -> int:
    """Runs one command and returns its exit code."""
    try:
        root(args=list(arguments), prog_name="fleetgate")
    except FleetgateError as error:
        say(f"fleetgate: {text_of(str(error))}")
        return exit_code(error)
    except SystemExit as ended:
        return ended.code if isinstance(ended.code, int) else ExitCode.OK
    return ExitCode.OK


def main() -> None:
    """The entry point of the `fleetgate` program."""
    sys.exit(run(sys.argv[1:]))
