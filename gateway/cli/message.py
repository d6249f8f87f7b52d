"""`fleetgate message check`: what is wrong with a device's message, and which bytes it should have signed."""

import hashlib
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from cryptography import x509

from gateway.cli.files import read_file
from gateway.cli.output import ExitCode, JsonOption, print_json, print_line, print_rules, text_of
from provisioning.diagnosis import Diagnosis, diagnose
from provisioning.errors import InvalidError
from provisioning.topics import DEFAULT_PREFIX

app = typer.Typer(no_args_is_help=True, help="Messages of devices.")


@app.command()
def check(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="What was published, byte for byte; - reads it.")
    ],
    topic: Annotated[str, typer.Option(help="Where it was published: PREFIX/NAME/VERB.")],
    audience: Annotated[str | None, typer.Option(help="The gateway's name, as devices know it.")] = None,
    certificate: Annotated[
        Path | None, typer.Option(help="The device's (PEM), for messages that carry none.")
    ] = None,
    prefix: Annotated[str, typer.Option(help="Of the gateway's topics.")] = DEFAULT_PREFIX,
    at: Annotated[str | None, typer.Option(help="When it was sent (ISO 8601); now if left out.")] = None,
    as_json: JsonOption = False,
) -> None:
    """Say what is wrong with a message, check by check, and which bytes to sign; needs no gateway."""
    data = sys.stdin.buffer.read() if str(file) == "-" else read_file(file)
    diagnosis = diagnose(
        data,
        topic=topic,
        prefix=prefix,
        now=_time(at),
        audience=audience,
        certificate=None if certificate is None else _certificate(certificate),
    )
    if as_json:
        print_json(_document(diagnosis))
    else:
        _show(diagnosis)
    if diagnosis.reason is not None:
        raise typer.Exit(ExitCode.FAILURE)


def _show(diagnosis: Diagnosis) -> None:
    document = _document(diagnosis)
    print_rules(document["rules"])
    if diagnosis.signed is not None:
        print_line(f"bytes to sign ({len(diagnosis.signed)}): {text_of(document['signed'])}")
        print_line(f"their SHA-256: {document['signed_sha256']}")
    print_line(f"result: {diagnosis.reason or _say_good(diagnosis)}")


def _say_good(diagnosis: Diagnosis) -> str:
    if any(rule.passed is None for rule in diagnosis.rules):
        return "nothing wrong in what could be checked"
    return "nothing wrong; `fleetgate certificate check` asks the gateway about the certificate"


def _document(diagnosis: Diagnosis) -> dict[str, Any]:
    signed = diagnosis.signed
    return {
        "rules": [
            {
                "name": rule.name,
                "passed": rule.passed,
                "detail": rule.detail,
                "reason": rule.reason,
                "changes_at": rule.changes_at,
            }
            for rule in diagnosis.rules
        ],
        "signed": None if signed is None else signed.decode("utf-8", "backslashreplace"),
        "signed_sha256": None if signed is None else hashlib.sha256(signed).hexdigest(),
        "reason": diagnosis.reason,
    }


def _certificate(file: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(read_file(file))
    except ValueError as error:
        raise InvalidError(f"{file} holds no certificate in PEM", field="certificate") from error


def _time(text: str | None) -> datetime:
    if text is None:
        return datetime.now(UTC)
    try:
        at = datetime.fromisoformat(text)
    except ValueError as error:
        raise InvalidError(
            f"at must be an ISO 8601 time such as 2026-01-01T00:00:00Z, got {text!r}"
        ) from error
    return at if at.tzinfo else at.replace(tzinfo=UTC)
