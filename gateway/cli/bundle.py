"""`fleetgate bundle`: made and signed on this machine, then pushed; the private key never leaves it."""

import hashlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from cryptography.hazmat.primitives import serialization
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.files import read_file, write_file
from gateway.cli.key import load_private
from gateway.cli.output import JsonOption, print_object, print_rows, say
from gateway.cli.product import ProductArgument
from provisioning.bundles import (
    Artifact,
    BundleStatement,
    Hardware,
    digest_of,
    parse_statement,
    read_envelope,
    sign_statement,
    verify_statement,
)
from provisioning.envelope import check_signing_key, key_id_of, spki_of
from provisioning.errors import InvalidError, RejectReason, SetupError, VerificationError
from store.blobs import read_chunks

app = typer.Typer(no_args_is_help=True, help="Bundles: artifacts under a signed statement.")
SIGNED_SUFFIX: Final = ".bundle"
StatementFile = Annotated[Path, typer.Argument(help="The statement that `bundle create` wrote.")]
EnvelopeFile = Annotated[Path, typer.Argument(help="The signed statement, *.bundle.")]
FilesOption = Annotated[
    Path | None, typer.Option("--files", help="Folder of the artifacts. [default: that of the statement]")
]


@app.command()
def create(
    files: Annotated[list[Path], typer.Argument(help="The artifacts, in the order devices install them.")],
    product: Annotated[str, typer.Option(help="The product it is for.")],
    version: Annotated[str, typer.Option(help="Its version, for people.")],
    sequence: Annotated[
        int, typer.Option(min=1, help="Its bundle_seq: above every earlier one of the product.")
    ],
    hardware: Annotated[
        list[str] | None,
        typer.Option(help="MODEL or MODEL:REVISION it is for; may be repeated. [default: any]"),
    ] = None,
    floor: Annotated[
        int | None, typer.Option(min=1, help="Lowest bundle_seq from which devices may come to it.")
    ] = None,
    notes: Annotated[str, typer.Option(help="A word for people.")] = "",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="[default: PRODUCT-VERSION.json by the first file]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Write the statement of a bundle: what it is made of. Nothing is signed or sent yet."""
    statement = BundleStatement(
        product=product,
        version=version,
        bundle_seq=sequence,
        artifacts=tuple(_measure(file) for file in files),
        hardware=_hardware(hardware or []),
        floor=floor,
        notes=notes,
        created_at=int(datetime.now(UTC).timestamp() * 1000),
    )
    parse_statement(statement.encode())  # what the gateway would refuse is refused here
    target = output or files[0].parent / f"{product}-{version}.json"
    write_file(target, statement.encode())
    say(f"next: fleetgate bundle sign {target} --key KEY")
    print_object(_shown(statement, target), as_json=as_json)


@app.command()
def sign(
    statement: StatementFile,
    key: Annotated[Path, typer.Option(help="Private key, from `fleetgate key create`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="[default: *.bundle beside it]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a statement."""
    payload = read_file(statement)
    signed = sign_statement(load_private(key), parse_statement(payload))
    target = output or statement.with_suffix(SIGNED_SUFFIX)
    write_file(target, signed)
    say(f"next: fleetgate bundle push {target}")
    print_object(_shown(parse_statement(read_envelope(signed).payload), target), as_json=as_json)


@app.command("verify")
def verify_(
    envelope: EnvelopeFile,
    key: Annotated[Path, typer.Option(help="Public key that must have signed it: FILE.pub.")],
    files: FilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify signature and artifacts, as a device does."""
    data = read_file(envelope)
    public = check_signing_key(serialization.load_pem_public_key(read_file(key)))
    unproven = parse_statement(read_envelope(data).payload)
    statement = verify_statement(data, {key_id_of(public): spki_of(public)}, product=unproven.product)
    for artifact in statement.artifacts:
        found = _measure((files or envelope.parent) / artifact.name)
        if (found.size, found.sha256) != (artifact.size, artifact.sha256):
            raise VerificationError(
                RejectReason.ARTIFACT_MISMATCH,
                f"{artifact.name}: {found.size} bytes with SHA-256 {found.sha256}, the statement says "
                f"{artifact.size} bytes and {artifact.sha256}",
            )
    print_object(_shown(statement, envelope), as_json=as_json)


@app.command()
def push(
    envelope: EnvelopeFile,
    files: FilesOption = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Send a signed bundle to the gateway, artifacts first; those that it has are not sent again."""
    data = read_file(envelope)
    statement = parse_statement(read_envelope(data).payload)
    body = {"envelope": data.decode()}
    with open_api(config) as api:
        checked = api.post("products", statement.product, "bundles", "check", body=body)
        failed = next((rule for rule in checked["rules"] if rule["passed"] is False), None)
        if failed is None or failed["reason"] == RejectReason.ARTIFACT_MISSING:
            for missing in checked["missing"]:
                file = (files or envelope.parent) / missing["name"]
                with _progress() as progress:
                    chunks = _watched(file, progress, f"sending {missing['name']}")
                    api.upload("products", statement.product, "artifacts", missing["sha256"], chunks=chunks)
        made = api.post("products", statement.product, "bundles", body=body)
    say(f"next: fleetgate rollout create {statement.product} --bundle {statement.version} --cohort COHORT")
    print_object(made, as_json=as_json)


@app.command("list")
def list_(product: ProductArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List a product's bundles, the newest first."""
    with open_api(config) as api:
        rows = api.items("products", product, "bundles")
    columns = [
        ("version", "version"),
        ("sequence", "bundle_seq"),
        ("bytes", "size"),
        ("hardware", "hardware"),
        ("digest", "digest"),
    ]
    print_rows(rows, columns, as_json=as_json)


@app.command()
def show(
    product: ProductArgument,
    version: Annotated[str, typer.Argument(help="The bundle's version.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show one bundle."""
    with open_api(config) as api:
        print_object(api.get("products", product, "bundles", version), as_json=as_json)


def _measure(file: Path) -> Artifact:
    found = hashlib.sha256()
    size = 0
    with _progress() as progress:
        for chunk in _watched(file, progress, f"reading {file.name}"):
            found.update(chunk)
            size += len(chunk)
    return Artifact(name=file.name, size=size, sha256=found.hexdigest())


def _watched(file: Path, progress: Progress, text: str) -> Iterator[bytes]:
    try:
        task = progress.add_task(text, total=file.stat().st_size)
        for chunk in read_chunks(file):
            yield chunk
            progress.advance(task, len(chunk))
    except OSError as error:
        raise SetupError(f"{file} cannot be read: {error.strerror}") from error


def _progress() -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    return Progress(*columns, console=Console(stderr=True), transient=True)


def _hardware(entries: list[str]) -> tuple[Hardware, ...]:
    revisions: dict[str, list[str]] = {}
    for entry in entries:
        model, _, revision = entry.partition(":")
        if not model:
            raise InvalidError(f"hardware is MODEL or MODEL:REVISION, got {entry!r}", field="hardware")
        revisions.setdefault(model, []).extend([revision] if revision else [])
    return tuple(Hardware(model=model, revisions=tuple(found)) for model, found in revisions.items())


def _shown(statement: BundleStatement, file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "product": statement.product,
        "version": statement.version,
        "bundle_seq": statement.bundle_seq,
        "digest": digest_of(statement.encode()),
        "artifacts": [f"{one.name} ({one.size} bytes)" for one in statement.artifacts],
    }
