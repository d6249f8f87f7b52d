"""`fleetgate cohort`: named segments of a product's devices."""

from typing import Annotated

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import JsonOption, print_object, print_rows
from gateway.cli.product import ProductArgument

app = typer.Typer(no_args_is_help=True, help="Cohorts of a product.")
_COLUMNS = [("name", "name"), ("description", "description"), ("created", "created_at")]


@app.command()
def create(
    product: ProductArgument,
    name: Annotated[str, typer.Argument(help="Name of the cohort.")],
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make a cohort in a product."""
    with open_api(config) as api:
        made = api.post("products", product, "cohorts", body={"name": name, "description": description})
    print_object(made, as_json=as_json)


@app.command()
def show(
    product: ProductArgument,
    name: Annotated[str, typer.Argument(help="Name of the cohort.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one cohort."""
    with open_api(config) as api:
        print_object(api.get("products", product, "cohorts", name), as_json=as_json)


@app.command("list")
def list_(product: ProductArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List a product's cohorts."""
    with open_api(config) as api:
        rows = api.items("products", product, "cohorts")
    print_rows(rows, _COLUMNS, as_json=as_json)
