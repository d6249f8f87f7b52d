"""`fleetgate serve`: the gateway itself, in the foreground."""

from typing import Annotated

import typer

from gateway.cli.api import ConfigOption
from gateway.settings import Settings
from provisioning.workers import parse_roles


def serve(
    role: Annotated[
        list[str] | None,
        typer.Option(
            help="ingest, api, scheduler or authorities; more than once, or with commas. [default: setting roles]",
            show_default=False,
        ),
    ] = None,
    retire_on_exit: Annotated[
        bool,
        typer.Option("--retire-on-exit", help="It will not come back: another worker empties its queue."),
    ] = False,
    config: ConfigOption = None,
) -> None:
    """Run the gateway until SIGTERM or Ctrl-C, then finish what is queued and end."""
    from gateway.service import run

    settings = Settings.load(config)
    if role:
        settings = settings.model_copy(update={"roles": parse_roles(role)})
    raise typer.Exit(run(settings, retire_on_exit=retire_on_exit))
