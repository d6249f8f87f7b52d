"""`fleetgate inbox`: who was proven genuine, and refused all the same."""

from typing import Annotated

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import JsonOption, print_rows, say

app = typer.Typer(no_args_is_help=True, help="Refused devices that were proven genuine.")


@app.command("list")
def list_(
    product: Annotated[str | None, typer.Option(help="Only of this product.")] = None,
    reason: Annotated[str | None, typer.Option(help="Only with this reason word.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 100,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """List them, the latest first; docs/errors.md says for each reason what to do."""
    with open_api(config) as api:
        rows = api.items("inbox", limit=limit, product=product, reason=reason)
    columns = [
        ("reason", "reason"),
        ("product", "product"),
        ("identifier", "identifier"),
        ("topic name", "topic_name"),
        ("seen", "seen"),
        ("last", "last_at"),
        ("detail", "detail"),
    ]
    print_rows(rows, columns, as_json=as_json)
    if rows and not as_json:
        say("docs/errors.md has a section for each reason")
