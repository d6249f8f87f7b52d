"""`fleetgate certificate check`: what would happen to a certificate, rule by rule; changes nothing."""

from typing import Annotated

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.ca import FileArgument, read_pem
from gateway.cli.output import ExitCode, JsonOption, print_json, print_line, print_rules

app = typer.Typer(no_args_is_help=True, help="Device certificates.")


@app.command()
def check(
    file: FileArgument,
    product: Annotated[str | None, typer.Option(help="The product that it should come to.")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Say what would happen to a device with this certificate (chain: leaf first); ends with 1 if refused."""
    with open_api(config) as api:
        answer = api.post("certificates", "check", body={"chain": read_pem(file), "product": product})
    if as_json:
        print_json(answer)
    else:
        print_rules(answer["rules"])
        reason = f" ({answer['reason']})" if answer["reason"] else ""
        print_line(f"result: {answer['result']}{reason}")
    if answer["result"] == "rejected":
        raise typer.Exit(ExitCode.FAILURE)
