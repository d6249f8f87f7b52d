"""`fleetgate product`: kinds of devices, and how each takes in new ones."""

from pathlib import Path
from typing import Annotated, Any

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.files import read_json
from gateway.cli.output import JsonOption, print_object, print_rows, say
from provisioning.products import EnrollmentMode, IdentifierSource

app = typer.Typer(no_args_is_help=True, help="Products, and how they take in devices.")
ProductArgument = Annotated[str, typer.Argument(help="Name of the product.")]


@app.command()
def create(
    name: ProductArgument,
    description: Annotated[str, typer.Option(help="What it is.")] = "",
    tag: Annotated[list[str] | None, typer.Option(help="A tag; may be repeated.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a product. It lets nobody in until `product jitp NAME --enable`."""
    with open_api(config) as api:
        made = api.post("products", body={"name": name, "description": description, "tags": tag or []})
    say(f"product {name} made; next: fleetgate cohort create {name} main")
    print_object(made, as_json=as_json)


@app.command()
def show(product: ProductArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Show one product with its JITP settings."""
    with open_api(config) as api:
        print_object(api.get("products", product), as_json=as_json)


@app.command("list")
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List the products."""
    with open_api(config) as api:
        rows = api.items("products")
    columns = [
        ("name", "name"),
        ("description", "description"),
        ("JITP", "jitp.enabled"),
        ("enrolled", "enrolled"),
        ("tags", "tags"),
    ]
    print_rows(rows, columns, as_json=as_json)


@app.command()
def jitp(
    product: ProductArgument,
    enable: Annotated[
        bool | None, typer.Option("--enable/--disable", help="Whether unknown devices enroll.")
    ] = None,
    mode: Annotated[EnrollmentMode | None, typer.Option(help="Who may enroll.")] = None,
    identifier_source: Annotated[
        IdentifierSource | None, typer.Option(help="Certificate field that is the identifier.")
    ] = None,
    identifier_pattern: Annotated[
        str | None, typer.Option(help="Regular expression for the whole identifier; empty: none.")
    ] = None,
    allow: Annotated[
        list[str] | None, typer.Option(help="Identifier to add to the allow-list; repeatable.")
    ] = None,
    quota: Annotated[
        int | None, typer.Option(min=-1, help="Most devices ever enrolled; -1: no limit.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Tag for devices that enroll; replaces the old ones.")
    ] = None,
    default_cohort: Annotated[
        str | None, typer.Option(help="Cohort where no rule matches; empty: none.")
    ] = None,
    settings: Annotated[
        Path | None,
        typer.Option(exists=True, dir_okay=False, help="All settings, rules too, from a JSON file."),
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or change how a product takes in devices that it has never seen."""
    changes: dict[str, Any] = {
        "enabled": enable,
        "mode": None if mode is None else mode.value,
        "identifier_source": None if identifier_source is None else identifier_source.value,
        "tags": tag,
    }
    changes = {key: value for key, value in changes.items() if value is not None}
    if identifier_pattern is not None:
        changes["identifier_pattern"] = identifier_pattern or None
    if default_cohort is not None:
        changes["default_cohort"] = default_cohort or None
    if quota is not None:
        changes["quota"] = None if quota < 0 else quota
    with open_api(config) as api:
        current = api.get("products", product)["jitp"]
        if allow:
            changes["allow_list"] = sorted({*current.get("allow_list", []), *allow})
        if settings is not None:
            current = read_json(settings)
        if settings is not None or changes:
            current = api.put("products", product, "jitp", body={**current, **changes})
            current = current["jitp"]
    print_object(current, as_json=as_json)
