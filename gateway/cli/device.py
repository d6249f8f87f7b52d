"""`fleetgate device`: what stands in the registry. A device is named by identifier, topic name or id."""

import contextlib
import json
from typing import Annotated, Any

import typer

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.output import (
    JsonOption,
    print_compact,
    print_json,
    print_line,
    print_object,
    print_rows,
    print_rules,
    say,
    text_of,
)
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


@app.command()
def grant(
    device: DeviceArgument,
    hours: Annotated[float, typer.Option(min=0.01, max=720, help="How long it lasts.")] = 24,
    withdraw: Annotated[bool, typer.Option("--withdraw", help="Take it back instead.")] = False,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a device bring one new key that its old key did not sign for; the first that is proven binds."""
    with open_api(config) as api:
        if withdraw:
            shown = api.delete("devices", device, "grant")
        else:
            shown = api.post("devices", device, "grant", body={"hours": hours})
    print_object(shown, as_json=as_json)


@app.command()
def explain(device: DeviceArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """Why a device is, or is not, offered firmware now: every rule in order."""
    with open_api(config) as api:
        answer = api.get("devices", device, "explain")
    if as_json:
        print_json(answer)
        return
    print_rules(answer["rules"])
    attempt = answer["attempt"]
    if attempt is not None:
        percent = "" if attempt["percent"] is None else f" {attempt['percent']} %"
        print_line(f"attempt {attempt['id']} at {attempt['version']}: {attempt['state']}{percent}")
    print_line(
        f"{text_of(answer['device'])} is offered {answer['version']} now"
        if answer["offered"]
        else f"{text_of(answer['device'])} is offered nothing new now"
    )


@app.command()
def timeline(
    device: DeviceArgument,
    limit: Annotated[int, typer.Option(min=1, max=1000, help="At most so many.")] = 50,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """What happened to a device, the newest first."""
    with open_api(config) as api:
        rows = api.items("devices", device, "timeline", limit=limit)
    columns = [
        ("at", "at"),
        ("what", "kind"),
        ("from", "before"),
        ("to", "word"),
        ("bundle", "about"),
        ("reason", "reason"),
    ]
    print_rows(rows, columns, as_json=as_json)


@app.command()
def watch(
    name: Annotated[
        str, typer.Argument(help="A device, or the topic name (CN) of one that is not known yet.")
    ],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show live what a device says, decoded, and what it is answered and why. Ends with Ctrl-C."""
    with open_api(config) as api, contextlib.suppress(KeyboardInterrupt):
        for line in api.lines("watch", name):
            if "verb" not in line:
                say(f"watching {line['topic_name']}; Ctrl-C ends it")
            elif as_json:
                print_compact(line)
            else:
                _show_passed(line)


def _show_passed(line: dict[str, Any]) -> None:
    """One message: when, which way, what it proved or why it was answered so; then what it said."""
    time = line["at"][11:23]
    if line["direction"] == "up":
        verdict = {True: "proven", False: "not proven", None: "not checked"}[line["proven"]]
        mark = "→"
    else:
        payload = line["payload"]
        verdict = str(payload.get("result", "")) if isinstance(payload, dict) else ""
        mark = "←"
    why = f" {line['reason']}" if line["reason"] else ""
    why += f": {text_of(line['detail'])}" if line["detail"] else ""
    print_line(f"{time} {mark} {line['verb']} ({line['bytes']} bytes) {verdict}{why}")
    shown = (
        "cannot be read"
        if line["payload"] is None
        else text_of(json.dumps(line["payload"], ensure_ascii=False))
    )
    print_line(f"             {shown}")
