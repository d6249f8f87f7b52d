"""`fleetgate api-key`: who may ask the gateway, and for what."""

from datetime import UTC, datetime, timedelta
from typing import Annotated

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import JsonOption, print_object, print_rows, say
from provisioning.access import Role

app = typer.Typer(no_args_is_help=True, help="API keys.")
NameArgument = Annotated[str, typer.Argument(help="Name of the key; the audit has it.")]


@app.command()
def create(
    name: NameArgument,
    role: Annotated[Role, typer.Option(help="Everything, the daily work, or look.")] = Role.OPERATOR,
    expires_days: Annotated[
        float | None, typer.Option(min=0.001, max=3650, help="It ends after so many days. [default: never]")
    ] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Make an API key. It is shown this once: the gateway keeps only its hash."""
    until = None if expires_days is None else (datetime.now(UTC) + timedelta(days=expires_days)).isoformat()
    with open_api(config) as api:
        made = api.post("api-keys", body={"name": name, "role": role.value, "expires_at": until})
    print_object(made, as_json=as_json)
    if made["key"] is None:  # the first answer was lost on its way
        say(f"key {name} was made, and its answer got lost: revoke it, and make one of another name")
    else:
        say("keep the key now, in a file of mode 0600 or a secret store: it is not shown again")


@app.command("list")
def list_(config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List API keys, also those that ended."""
    with open_api(config) as api:
        rows = api.items("api-keys")
    columns = [
        ("name", "name"),
        ("role", "role"),
        ("created", "created_at"),
        ("expires", "expires_at"),
        ("revoked", "revoked_at"),
    ]
    print_rows(rows, columns, as_json=as_json)


@app.command()
def revoke(
    name: NameArgument,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Revoke an API key, at once and for good. The last admin key that works cannot be."""
    if not yes:
        typer.confirm(f"Refuse API key {name} from now on? This cannot be taken back.", abort=True, err=True)
    with open_api(config) as api:
        print_object(api.post("api-keys", name, "revoke"), as_json=as_json)
