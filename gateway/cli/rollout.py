"""`fleetgate rollout`: a bundle on its way to cohorts."""

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.files import read_json
from gateway.cli.output import JsonOption, print_object, print_rows
from gateway.cli.product import ProductArgument
from provisioning.errors import InvalidError

app = typer.Typer(no_args_is_help=True, help="Rollouts.")
RolloutArgument = Annotated[str, typer.Argument(metavar="ROLLOUT", help="Its id.")]
COLUMNS = [
    ("id", "id"),
    ("product", "product"),
    ("cohort", "cohort"),
    ("version", "version"),
    ("state", "state"),
    ("start", "start_at"),
    ("attempts", "attempts"),
]


@app.command()
def create(
    product: ProductArgument,
    bundle: Annotated[str, typer.Option(help="Version of the bundle.")],
    cohort: Annotated[list[str], typer.Option(help="A cohort; may be repeated.")],
    at: Annotated[
        str | None, typer.Option(help="When it begins, as 2027-01-31T02:00+01:00. [default: now]")
    ] = None,
    most_in_flight: Annotated[int | None, typer.Option(min=1, help="Attempts open at once.")] = None,
    most_per_minute: Annotated[int | None, typer.Option(min=1, help="Offers within a minute.")] = None,
    plan: Annotated[Path | None, typer.Option(help="File with the whole plan, JSON.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Roll a bundle out to cohorts: one rollout for each."""
    settings = {} if plan is None else read_json(plan)
    for name, value in (("most_in_flight", most_in_flight), ("most_per_minute", most_per_minute)):
        if value is not None:
            settings[name] = value
    body = {
        "product": product,
        "version": bundle,
        "cohorts": cohort,
        "start_at": None if at is None else parse_time(at),
        "plan": settings,
    }
    with open_api(config) as api:
        print_rows(api.post("rollouts", body=body), COLUMNS, as_json=as_json)


@app.command("list")
def list_(
    product: Annotated[str | None, typer.Option(help="Only of this product.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List rollouts, the newest first."""
    with open_api(config) as api:
        print_rows(api.items("rollouts", product=product), COLUMNS, as_json=as_json)


@app.command()
def show(rollout: RolloutArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one rollout, with its attempts by state."""
    with open_api(config) as api:
        print_object(api.get("rollouts", rollout), as_json=as_json)


@app.command()
def pause(rollout: RolloutArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Make no new offers; open attempts go on."""
    _move(rollout, "pause", config, as_json)


@app.command()
def resume(rollout: RolloutArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Go on making offers."""
    _move(rollout, "resume", config, as_json)


@app.command()
def cancel(rollout: RolloutArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """End it for good, and call off attempts that do not install yet."""
    _move(rollout, "cancel", config, as_json)


def _move(rollout: str, verb: str, config: Path | None, as_json: bool) -> None:
    with open_api(config) as api:
        print_object(api.post("rollouts", rollout, verb), as_json=as_json)


def parse_time(text: str) -> str:
    """A time with its zone, as the API takes it; one without a zone is this machine's.

    Raises:
        InvalidError: it is none.
    """
    try:
        return datetime.fromisoformat(text).astimezone().isoformat()
    except ValueError as error:
        raise InvalidError(f"{text!r} is no time; write it as 2027-01-31T02:00+01:00", field="at") from error
