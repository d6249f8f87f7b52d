"""`fleetgate worker`: who works, and what becomes of a worker that left for good."""

import time
from typing import Annotated, Any, Final

import typer

from gateway.cli.api import Api, ConfigOption, open_api
from gateway.cli.output import JsonOption, TimedOutError, print_object, print_rows, say
from provisioning.workers import WorkerState

app = typer.Typer(no_args_is_help=True, help="Workers of this installation.")
_LOOK_SECONDS: Final = 0.5


@app.command("list")
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List workers: what each does, whether it lives, and when it was last heard."""
    with open_api(config) as api:
        rows = api.items("workers")
    columns = [
        ("name", "name"),
        ("broker", "broker"),
        ("roles", "roles"),
        ("state", "state"),
        ("alive", "alive"),
        ("last heard", "heard_at"),
        ("queued", "queued"),
        ("version", "version"),
    ]
    print_rows(rows, columns, as_json=as_json)


@app.command()
def retire(
    name: Annotated[str, typer.Argument(help="Name of a worker that will not come back.")],
    wait_seconds: Annotated[
        float, typer.Option(min=0, max=3600, help="How long to wait until its messages are worked.")
    ] = 60.0,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Free the share of a worker that left for good: another works what waits for it, and ends its session."""
    with open_api(config) as api:
        worker = api.post("workers", name, "retire")
        ends = time.monotonic() + wait_seconds
        while worker["state"] == WorkerState.RETIRING and time.monotonic() < ends:
            time.sleep(_LOOK_SECONDS)
            worker = _find(api, name)
    print_object(worker, as_json=as_json)
    match worker["state"]:
        case WorkerState.RETIRED:
            say(f"worker {name} is retired: nothing waits for it at the broker any more")
        case WorkerState.RETIRING:
            raise TimedOutError(
                f"worker {name} is not empty after {wait_seconds:.0f} s; it goes on by itself, and "
                "`fleetgate worker list` shows when it is retired"
            )
        case _:
            say(f"worker {name} has started again, and is not retired")


def _find(api: Api, name: str) -> dict[str, Any]:
    return next(row for row in api.items("workers") if row["name"] == name)
