"""`fleetgate certificate check`: what would happen to a certificate, rule by rule; changes nothing."""

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.ca import FileArgument, read_pem
from gateway.cli.output import ExitCode, JsonOption, print_json, print_line, text_of

app = typer.Typer(no_args_is_help=True, help="Device certificates.")
_MARKS = {True: "ok  ", False: "NO  ", None: "–   "}


@app.command()
def check(file: FileArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Say what would happen to a device with this certificate (chain: leaf first); ends with 1 if refused."""
    with open_api(config) as api:
        rules = api.post("certificates", "check", body={"certificate": read_pem(file)})
    refusal = next((rule for rule in rules if rule["passed"] is False), None)
    if as_json:
        reason = refusal["reason"] if refusal else None
        print_json({"accepted": refusal is None, "reason": reason, "rules": rules})
    else:
        for rule in rules:
            print_line(f"{_MARKS[rule['passed']]}{rule['name']}: {text_of(rule['detail'])}")
        print_line("it would be welcome" if refusal is None else f"it would be refused: {refusal['reason']}")
    if refusal is not None:
        raise typer.Exit(ExitCode.FAILURE)
