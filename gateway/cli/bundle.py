"""`fleetgate bundle`: made and signed on this machine, then pushed; the private key never leaves it."""

import hashlib
import sys
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.files import read_file, write_file
from gateway.cli.key import load_private, load_public
from gateway.cli.output import (
    ExitCode,
    JsonOption,
    print_json,
    print_object,
    print_rows,
    print_rules,
    say,
)
from gateway.cli.product import ProductArgument
from provisioning.bundles import (
    Artifact,
    BundleStatement,
    Hardware,
    check_artifact,
    check_statement,
    digest_of,
    parse_statement,
    read_envelope,
    sign_payload,
)
from provisioning.decision import Rule, first_failed
from provisioning.envelope import key_id_of, spki_of
from provisioning.errors import InvalidError, MessageError, RejectReason, SetupError
from store.blobs import read_chunks

app = typer.Typer(no_args_is_help=True, help="Bundles: artifacts under a signed statement.")
SIGNED_SUFFIX: Final = ".bundle"
STATEMENT_SUFFIX: Final = ".json"
StatementFile = Annotated[
    Path,
    typer.Argument(help="The statement that `bundle create` wrote; or a *.bundle, to sign it again."),
]
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
    target = output or files[0].parent / f"{product}-{version}{STATEMENT_SUFFIX}"
    _check_places(files, target)
    planned = BundleStatement(
        product=product,
        version=version,
        bundle_seq=sequence,
        artifacts=tuple(Artifact(name=file.name, size=1, sha256="0" * 64) for file in files),
        hardware=_hardware(hardware or []),
        floor=floor,
        notes=notes,
        created_at=int(datetime.now(UTC).timestamp() * 1000),
    )
    _check(planned)  # before a gigabyte is read
    statement = replace(planned, artifacts=tuple(_measure(file) for file in files))
    payload = _check(statement)
    write_file(target, payload)
    say(f"next: fleetgate bundle sign {target} --key KEY")
    print_object(_shown(statement, digest_of(payload), target), as_json=as_json)


@app.command()
def sign(
    statement: StatementFile,
    key: Annotated[Path, typer.Option(help="Private key, from `fleetgate key create`.")],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="[default: *.bundle beside it]")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Sign a statement, as it is written. Signing again replaces the *.bundle; the content stays the same."""
    payload = read_file(statement)
    if statement.suffix == SIGNED_SUFFIX:
        payload = read_envelope(payload).payload
    signed = sign_payload(load_private(key), payload)
    read = parse_statement(payload)
    target = output or _signed_name(statement)
    artifacts = [statement.parent / one.name for one in read.artifacts]
    _check_target(target, [key, *artifacts, *([] if statement.suffix == SIGNED_SUFFIX else [statement])])
    write_file(target, signed)
    say(f"next: fleetgate bundle push {target}")
    print_object(_shown(read, digest_of(payload), target), as_json=as_json)


@app.command("verify")
def verify_(
    envelope: EnvelopeFile,
    key: Annotated[Path, typer.Option(help="Public key that must have signed it: FILE.pub.")],
    product: Annotated[
        str | None, typer.Option(help="The product that it must be for. [default: any]")
    ] = None,
    files: FilesOption = None,
    as_json: JsonOption = False,
) -> None:
    """Verify signature and artifacts, as a device does, rule by rule; ends with 1 if one fails."""
    public = load_public(key)
    checked = check_statement(read_file(envelope), {key_id_of(public): spki_of(public)}, product=product)
    rules = [*checked.rules]
    if checked.statement is not None:
        rules += [_check_file(files or envelope.parent, one) for one in checked.statement.artifacts]
    ok = first_failed(rules) is None
    if as_json:
        shown = None if checked.statement is None else _shown(checked.statement, checked.digest, envelope)
        print_json({"ok": ok, "bundle": shown, "rules": [rule._asdict() for rule in rules]})
    else:
        print_rules(rule._asdict() for rule in rules)
        if checked.statement is not None:
            print_object(_shown(checked.statement, checked.digest, envelope), as_json=False)
    if not ok:
        raise typer.Exit(ExitCode.FAILURE)


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


def _check(statement: BundleStatement) -> bytes:
    """The statement's bytes; what the gateway would refuse is refused here."""
    payload = statement.encode()
    try:
        parse_statement(payload)
    except MessageError as error:
        raise InvalidError(error.detail) from error
    return payload


def _check_places(files: list[Path], target: Path) -> None:
    """All artifacts in one folder, where `verify` and `push` find them; and none of them written over."""
    for file in files:
        if not file.is_file():
            raise InvalidError(f"{file} is no file", field="files")
        if file.stat().st_size == 0:
            raise InvalidError(f"{file} is empty; an artifact has at least 1 byte", field="files")
        if file.parent.resolve() != files[0].parent.resolve():
            raise InvalidError(
                f"the artifacts must be in one folder: {files[0].parent} and {file.parent} differ",
                field="files",
            )
    _check_target(target, files)
    if target.suffix == SIGNED_SUFFIX:
        raise InvalidError(
            f"{target}: *{SIGNED_SUFFIX} is the name of a signed statement, which `bundle sign` writes",
            field="output",
        )


def _check_target(target: Path, kept: list[Path]) -> None:
    """What is written may replace an earlier one of its kind, and nothing else that is in use here."""
    for file in kept:
        if target.exists() and file.exists() and target.samefile(file):
            raise InvalidError(
                f"{file} would be written over: name another file with --output", field="output"
            )


def _check_file(folder: Path, artifact: Artifact) -> Rule:
    file = folder / artifact.name
    if not file.is_file():
        return Rule(
            name=f"artifact {artifact.name}",
            passed=False,
            detail=f"{file} is not there; --files says where the artifacts are",
            reason=RejectReason.ARTIFACT_MISSING,
        )
    found = _measure(file)
    return check_artifact(artifact, size=found.size, sha256=found.sha256)


def _signed_name(statement: Path) -> Path:
    # Not `with_suffix` alone: a version's last number is no suffix.
    name = statement.name.removesuffix(STATEMENT_SUFFIX).removesuffix(SIGNED_SUFFIX)
    return statement.with_name(f"{name}{SIGNED_SUFFIX}")


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
    return Progress(*columns, console=Console(stderr=True), transient=True, disable=not sys.stderr.isatty())


def _hardware(entries: list[str]) -> tuple[Hardware, ...]:
    revisions: dict[str, list[str]] = {}
    whole: set[str] = set()  # named without a revision: every one, whatever else is named
    for entry in entries:
        model, _, revision = entry.partition(":")
        if not model:
            raise InvalidError(f"hardware is MODEL or MODEL:REVISION, got {entry!r}", field="hardware")
        revisions.setdefault(model, []).append(revision)
        if not revision:
            whole.add(model)
    return tuple(
        Hardware(model=model, revisions=() if model in whole else tuple(found))
        for model, found in revisions.items()
    )


def _shown(statement: BundleStatement, digest: str, file: Path) -> dict[str, Any]:
    return {
        "file": str(file),
        "product": statement.product,
        "version": statement.version,
        "bundle_seq": statement.bundle_seq,
        "digest": digest,
        "artifacts": [f"{one.name} ({one.size} bytes)" for one in statement.artifacts],
    }
