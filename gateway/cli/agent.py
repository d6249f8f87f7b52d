"""`fleetgate agent run`: be a device, with a certificate and key of your own."""

import signal
from pathlib import Path
from typing import Annotated

import typer
from cryptography.hazmat.primitives import serialization

from gateway.cli.files import read_file
from gateway.cli.output import ExitCode, print_line
from gateway.demo.stage import find_broker
from gateway.device.agent import Agent, AgentError, AgentSettings
from gateway.device.messages import Profile, Result
from provisioning.envelope import check_signing_key, key_id_of, spki_of
from provisioning.ids import KeyId
from provisioning.topics import DEFAULT_PREFIX

app = typer.Typer(no_args_is_help=True, help="The reference device.")


@app.callback()
def _agent() -> None:
    """The reference device."""


@app.command()
def run(
    cert: Annotated[Path, typer.Option(exists=True, help="The device's certificate, PEM, leaf first.")],
    key: Annotated[Path, typer.Option(exists=True, help="Its private key, PEM.")],
    host: Annotated[str | None, typer.Option(help="The broker's host, as its certificate says it.")] = None,
    port: Annotated[int, typer.Option(help="The broker's port for devices.")] = 8883,
    cafile: Annotated[Path | None, typer.Option(exists=True, help="CA of the broker's certificate.")] = None,
    audience: Annotated[str | None, typer.Option(help="The gateway's name. [default: the host]")] = None,
    prefix: Annotated[str, typer.Option(help="First levels of every topic.")] = DEFAULT_PREFIX,
    demo: Annotated[Path | None, typer.Option(help="Dial the demo of this folder instead.")] = None,
    model: Annotated[str, typer.Option(help="Hardware model to report.")] = "reference",
    firmware: Annotated[str, typer.Option(help="Firmware version to report.")] = "1.0.0",
    state: Annotated[
        Path | None, typer.Option(help="Folder of its images and offers. [default: it takes no firmware]")
    ] = None,
    signing_key: Annotated[
        list[Path] | None, typer.Option(help="Public key that may sign its firmware; may be repeated.")
    ] = None,
    roll_back: Annotated[
        bool, typer.Option("--roll-back", help="Let new images fail, to see a rollback.")
    ] = False,
    once: Annotated[bool, typer.Option("--once", help="Leave after the first answer.")] = False,
    mqtt311: Annotated[bool, typer.Option("--mqtt311", help="Speak MQTT 3.1.1 instead of 5.")] = False,
    no_clock: Annotated[bool, typer.Option("--no-clock", help="Have no clock: answer challenges.")] = False,
) -> None:
    """Connect, say hello, and stay until Ctrl-C; prints what happens."""
    if demo is not None:
        broker = find_broker(demo)
        host, port, cafile = broker.host, broker.port, broker.cafile
        audience, prefix = broker.audience, broker.prefix
    if host is None or cafile is None:
        raise AgentError("say where to dial: --host and --cafile, or --demo FOLDER")
    agent = Agent(
        AgentSettings(
            cert=cert,
            key=key,
            host=host,
            port=port,
            cafile=cafile,
            audience=audience or host,
            prefix=prefix,
            profile=Profile(model=model, version=firmware, stays=not once),
            mqtt5=not mqtt311,
            has_clock=not no_clock,
            state=state,
            signing_keys=dict(_load_key(file) for file in signing_key or ()),
            rolls_back=roll_back,
        ),
        print_line,
    )
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: agent.stop())
    reply = agent.run(until_answered=once)
    if once and (reply is None or reply.result != Result.WELCOME):
        raise typer.Exit(ExitCode.FAILURE)


def _load_key(file: Path) -> tuple[KeyId, bytes]:
    try:
        key = check_signing_key(serialization.load_pem_public_key(read_file(file)))
    except ValueError as error:
        raise AgentError(f"{file} is no public key in PEM: {error}") from error
    return key_id_of(key), spki_of(key)
