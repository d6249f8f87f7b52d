"""`fleetgate serve`: the gateway itself, in the foreground."""

import typer

from gateway.cli.api import ConfigOption
from gateway.settings import Settings


def serve(config: ConfigOption = None) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, then finish what is queued and end."""
    from gateway.service import run

    raise typer.Exit(run(Settings.load(config)))
