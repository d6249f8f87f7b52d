"""`fleetgate key`: keys that sign bundles. The private one is made here, and stays on this machine."""

import os
from pathlib import Path
from typing import Annotated

import typer
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from gateway.cli.api import ConfigOption, open_api
from gateway.cli.files import read_file
from gateway.cli.output import JsonOption, print_object, print_rows, say
from gateway.cli.product import ProductArgument
from provisioning.bundles import check_bundle_key
from provisioning.envelope import PrivateKey, PublicKey, check_signing_key, key_id_of
from provisioning.errors import ConflictError, FleetgateError, InvalidError, SetupError, VerificationError

app = typer.Typer(no_args_is_help=True, help="Keys that sign bundles.")
KeyFile = Annotated[
    Path, typer.Argument(metavar="FILE", help="The private key; FILE.pub is its public half.")
]
PASSPHRASE_VARIABLE = "FLEETGATE_KEY_PASSPHRASE"  # noqa: S105 - the name of a variable


@app.command()
def create(
    file: KeyFile,
    algorithm: Annotated[str, typer.Option(help="p256, or ed25519 where all devices have it.")] = "p256",
    passphrase: Annotated[bool, typer.Option(help="Ask for a passphrase that encrypts it.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Make a signing key on this machine. The gateway only ever sees FILE.pub."""
    key: PrivateKey
    match algorithm:
        case "p256":
            key = ec.generate_private_key(ec.SECP256R1())
        case "ed25519":
            key = ed25519.Ed25519PrivateKey.generate()
            say(
                "note: secure elements and older TLS libraries often lack Ed25519; devices must verify with it"
            )
        case other:
            raise InvalidError(f"algorithm must be p256 or ed25519, got {other!r}", field="algorithm")
    secret = os.environ.get(PASSPHRASE_VARIABLE, "")
    if passphrase and not secret:
        secret = typer.prompt("Passphrase", hide_input=True, confirmation_prompt=True, err=True)
    encryption: serialization.KeySerializationEncryption = serialization.NoEncryption()
    if secret:
        encryption = serialization.BestAvailableEncryption(secret.encode())
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    public = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    _write(file, private, 0o600)
    try:
        _write(_public(file), public, 0o644)
    except FleetgateError:
        file.unlink()  # half a pair would be in the way of the next try
        raise
    shown = {
        "private": str(file),
        "public": str(_public(file)),
        "algorithm": algorithm,
        "encrypted": bool(secret),
        "key_id": key_id_of(key.public_key()),
    }
    print_object(shown, as_json=as_json)
    say(f"next: fleetgate key add PRODUCT {_public(file)}; keep {file} here, and a copy in a safe place")


@app.command()
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="A private key, or a public one.")],
    as_json: JsonOption = False,
) -> None:
    """Show what a key is, and its id. The private half is read, where it is given, and never printed."""
    private = b"PRIVATE KEY-----" in read_file(file)
    key = load_private(file).public_key() if private else load_public(file)
    shown = {
        "file": str(file),
        "private": private,
        "algorithm": "ed25519" if isinstance(key, ed25519.Ed25519PublicKey) else "p256",
        "key_id": key_id_of(key),
    }
    print_object(shown, as_json=as_json)


@app.command()
def add(
    product: ProductArgument,
    file: Annotated[Path, typer.Argument(help="The public key: FILE.pub.")],
    name: Annotated[str | None, typer.Option(help="Its name. [default: that of the file]")] = None,
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a public key sign the product's bundles."""
    body = {
        "name": name or file.name.split(".")[0].lower(),
        "key": read_file(file).decode("ascii", "replace"),
    }
    with open_api(config) as api:
        print_object(api.post("products", product, "keys", body=body), as_json=as_json)


@app.command("list")
def list_(product: ProductArgument, config: ConfigOption = None, as_json: JsonOption = False) -> None:
    """List a product's signing keys."""
    with open_api(config) as api:
        rows = api.items("products", product, "keys")
    columns = [("name", "name"), ("key id", "key_id"), ("since", "created_at"), ("revoked", "revoked_at")]
    print_rows(rows, columns, as_json=as_json)


@app.command()
def revoke(
    product: ProductArgument,
    name: Annotated[str, typer.Argument(help="The key's name.")],
    config: ConfigOption = None,
    as_json: JsonOption = False,
) -> None:
    """Let a key sign no further bundles; those that it signed stay."""
    with open_api(config) as api:
        print_object(api.post("products", product, "keys", name, "revoke"), as_json=as_json)


def load_private(file: Path) -> PrivateKey:
    """A signing key from its file, asking for its passphrase where it has one.

    Raises:
        SetupError: the file cannot be read.
        InvalidError: it is no key that signs, or the passphrase is wrong.
    """
    data = read_file(file)
    if file.stat().st_mode & 0o077:
        say(f"note: {file} is open to other users of this machine; chmod 600 {file}")
    secret = os.environ.get(PASSPHRASE_VARIABLE, "")
    if b"ENCRYPTED" in data and not secret:
        secret = typer.prompt("Passphrase", hide_input=True, err=True)
    try:
        key = serialization.load_pem_private_key(data, secret.encode() if b"ENCRYPTED" in data else None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise InvalidError(f"{file} is no private key in PEM, or the passphrase is wrong: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey):
        raise InvalidError(f"{file} holds a {type(key).__name__}; bundles are signed by P-256 or Ed25519")
    _check_kind(file, key.public_key())
    return key


def load_public(file: Path) -> PublicKey:
    """A public key that may have signed bundles, from its file.

    Raises:
        SetupError: the file cannot be read.
        InvalidError: it is no such key.
    """
    data = read_file(file)
    if b"PRIVATE KEY-----" in data:
        raise InvalidError(f"{file} is a private key; the public one is wanted, {_public(file)}", field="key")
    try:
        key = check_signing_key(serialization.load_pem_public_key(data))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise InvalidError(f"{file} is no public key in PEM: {error}", field="key") from error
    except VerificationError as error:
        raise InvalidError(f"{file}: {error.detail}", field="key") from error
    _check_kind(file, key)
    return key


def _check_kind(file: Path, key: PublicKey) -> None:
    try:
        check_bundle_key(key)
    except VerificationError as error:
        raise InvalidError(f"{file}: {error.detail}", field="key") from error


def _public(file: Path) -> Path:
    return file.with_name(f"{file.name}.pub")


def _write(file: Path, data: bytes, mode: int) -> None:
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    except FileExistsError as error:
        raise ConflictError(f"{file} is there already; a key is never overwritten") from error
    except OSError as error:
        raise SetupError(f"{file} cannot be made: {error.strerror}") from error
    with os.fdopen(descriptor, "wb") as output:
        output.write(data)
