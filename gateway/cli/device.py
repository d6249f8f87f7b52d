"""`fleetgate device`: what stands in the registry. A device is named by identifier, topic name or id."""

from typing import Annotated

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import JsonOption, print_object, print_rows
from gateway.cli.product import ProductArgument

app = typer.Typer(no_args_is_help=True, help="Devices.")
DeviceArgument = Annotated[str, typer.Argument(metavar="DEVICE", help="Identifier, topic name or id.")]


@app.command()
def create(
    product: ProductArgument,
    identifier: Annotated[str, typer.Argument(help="Its name in the product.")],
    cohort: Annotated[str | None, typer.Option(help="Its cohort.")] = None,
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be repeated.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Put a device into the registry before it comes: the first verified key with its identifier binds to it."""
    body = {"identifier": identifier, "cohort": cohort, "tags": tag or []}
    with open_api(config) as api:
        print_object(api.post("products", product, "devices", body=body), as_json=as_json)


@app.command("list")
def list_(
    product: Annotated[str | None, typer.Option(help="Only of this product.")] = None,
    cohort: Annotated[str | None, typer.Option(help="Only of this cohort.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List devices."""
    with open_api(config) as api:
        rows = list(api.pages("devices", limit=limit, product=product, cohort=cohort, state=state))
    columns = [
        ("identifier", "identifier"),
        ("product", "product"),
        ("cohort", "cohort"),
        ("state", "state"),
        ("connection", "connection"),
        ("firmware", "firmware_version"),
        ("last seen", "last_seen_at"),
        ("id", "id"),
    ]
    print_rows(rows, columns, as_json=as_json)


@app.command()
def show(device: DeviceArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one device."""
    with open_api(config) as api:
        print_object(api.get("devices", device), as_json=as_json)


@app.command()
def block(device: DeviceArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Refuse a device from now on."""
    with open_api(config) as api:
        print_object(api.post("devices", device, "block"), as_json=as_json)


@app.command()
def unblock(device: DeviceArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Let a blocked device in again."""
    with open_api(config) as api:
        print_object(api.post("devices", device, "unblock"), as_json=as_json)
