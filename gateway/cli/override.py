"""`fleetgate override`: a bundle for named devices, over a period."""

from typing import Annotated

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import JsonOption, print_object, print_rows, say
from gateway.cli.product import ProductArgument
from gateway.cli.rollout import parse_time

app = typer.Typer(no_args_is_help=True, help="Bundles for named devices.")


@app.command()
def create(
    product: ProductArgument,
    bundle: Annotated[str, typer.Option(help="Version of the bundle.")],
    device: Annotated[list[str], typer.Option(help="Identifier, topic name or id; may be repeated.")],
    start: Annotated[str | None, typer.Option(help="[default: now]")] = None,
    end: Annotated[str | None, typer.Option(help="[default: until it is removed]")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Give devices a bundle of their own; it goes before every rollout."""
    body = {
        "product": product,
        "version": bundle,
        "devices": device,
        "starts_at": None if start is None else parse_time(start),
        "ends_at": None if end is None else parse_time(end),
    }
    with open_api(config) as api:
        print_object(api.post("overrides", body=body), as_json=as_json)


@app.command("list")
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List overrides, the newest first."""
    with open_api(config) as api:
        rows = api.items("overrides")
    columns = [("id", "id"), ("version", "version"), ("devices", "devices"), ("until", "ends_at")]
    print_rows(rows, columns, as_json=as_json)


@app.command()
def remove(
    override: Annotated[str, typer.Argument(help="Its id.")],
    config: ConfigOption = None,
) -> None:
    """Take an override back; attempts that it opened go on."""
    with open_api(config) as api:
        api.delete("overrides", override)
    say("removed")
