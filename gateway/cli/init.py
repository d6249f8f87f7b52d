"""`fleetgate init`: everything a real installation needs, in one folder, and its first organization and key."""

import json
import os
import pwd
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import typer

from gateway.cli.output import JsonOption, print_json, say
from gateway.installation import Installation, create_installation
from gateway.settings import Settings
from provisioning.access import KEY_BYTES, Role, hash_key, new_key
from provisioning.errors import SetupError
from provisioning.ids import OrganizationId
from provisioning.products import parse_name
from provisioning.topics import DEFAULT_PREFIX
from store import audit, migrate, organizations
from store.database import Database
from store.ids import new_id

KEY_NAME: Final = "admin"


@dataclass(frozen=True, slots=True, kw_only=True)
class FirstKey:
    """What `init` leaves behind for the operator."""

    organization: str
    key_file: Path


def init(
    directory: Annotated[Path, typer.Argument(help="Where to; made if it is not there.")],
    device_host: Annotated[str, typer.Option(help="Host name or address that devices dial.")],
    organization: Annotated[str, typer.Option(help="Name of the first organization.")] = "main",
    device_port: Annotated[int, typer.Option(help="Port that devices dial; 0: a free one.")] = 8883,
    gateway_port: Annotated[int, typer.Option(help="The gateway's own port at the broker; 0: free.")] = 8884,
    http_host: Annotated[str, typer.Option(help="Address of the API.")] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port of the API; 0: a free one.")] = 8080,
    download_port: Annotated[
        int, typer.Option(help="Port that devices download from; 0: a free one.")
    ] = 8081,
    prefix: Annotated[str, typer.Option(help="First levels of every topic.")] = DEFAULT_PREFIX,
    audience: Annotated[
        str | None,
        typer.Option(help="Name that devices sign. [default: the device host]", show_default=False),
    ] = None,
    database_url: Annotated[
        str | None,
        typer.Option(
            help="postgresql://… or sqlite:///FILE. [default: SQLite in DIRECTORY]", show_default=False
        ),
    ] = None,
    owner: Annotated[
        str | None,
        typer.Option(
            help="Account that runs the gateway. [default: fleetgate for root, else you]", show_default=False
        ),
    ] = None,
    broker_user: Annotated[
        str | None,
        typer.Option(
            help="Account that runs the broker. [default: mosquitto for root, else you]", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Make a new installation. Nothing that exists is overwritten."""
    parse_name(organization, "organization")
    if database_url is not None:
        _refuse_used(database_url)
    place = create_installation(
        directory,
        device_host=device_host,
        now=datetime.now(UTC),
        device_port=device_port,
        gateway_port=gateway_port,
        http_host=http_host,
        http_port=http_port,
        download_port=download_port,
        prefix=prefix,
        audience=audience,
        owner=owner or _account("fleetgate"),
        broker_user=broker_user or _account("mosquitto"),
    )
    if database_url is not None:
        text = place.settings.read_text(encoding="utf-8")
        place.settings.write_text(
            text.replace(json.dumps(place.database_url), json.dumps(database_url)), encoding="utf-8"
        )
    first = create_first_organization(Settings.load(place.settings), organization)
    _give_to_owner(place, first.key_file)
    if as_json:
        print_json(
            {
                "directory": str(place.directory),
                "settings": str(place.settings),
                "mosquitto_conf": str(place.configuration),
                "broker_ca": str(place.broker_ca),
                "organization": first.organization,
                "key_file": str(first.key_file),
                "device_port": place.device_port,
                "gateway_port": place.gateway_port,
                "http_port": place.http_port,
                "download_port": place.download_port,
            }
        )
    _say_next(place, first)


def create_first_organization(settings: Settings, name: str) -> FirstKey:
    """Makes the tables, the organization, and one admin key, of which the database keeps only the hash.

    Args:
        settings: of the new installation; the key goes into `http.key_file`, mode 0600.
        name: of the organization.

    Raises:
        ConflictError: the organization exists already.
        SetupError: the key file exists already or cannot be written.
        StoreError: the database refuses.
    """
    parse_name(name, "organization")
    key = new_key(secrets.token_bytes(KEY_BYTES))
    now = datetime.now(UTC)
    id = OrganizationId(new_id())
    umask = os.umask(0o077)  # SQLite makes its files with what the umask leaves
    try:
        database = Database(settings.database.url)
        try:
            migrate.upgrade(database)
            with database.write() as tx:
                organizations.create(tx, id=id, name=name, at=now)
                organizations.create_key(
                    tx,
                    id=new_id(),
                    organization_id=id,
                    name=KEY_NAME,
                    role=Role.ADMIN,
                    sha256=hash_key(key),
                    at=now,
                )
                audit.append(
                    tx,
                    at=now,
                    organization_id=id,
                    actor="init",
                    action="organization.create",
                    object_type="organization",
                    object_id=id,
                    after={"name": name, "key": KEY_NAME},
                )
                _write_key(settings.http.key_file, key)  # before the commit: a key never exists unseen
        finally:
            database.close()
    finally:
        os.umask(umask)
    return FirstKey(organization=name, key_file=settings.http.key_file)


def _write_key(file: Path, key: str) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="ascii") as output:
            output.write(f"{key}\n")
    except OSError as error:
        raise SetupError(f"API key file {file} cannot be written: {error}") from error


def _refuse_used(url: str) -> None:
    """Looks at a database before anything is made: it must answer and be empty."""
    database = Database(url)
    try:
        if migrate.current(database) is not None:
            raise SetupError(f"database {database} is in use already: an installation is never overwritten")
    finally:
        database.close()


def _account(name: str) -> str | None:
    """For root, the account `name` where there is one; else None, which is who runs this."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam(name).pw_name
    except KeyError:
        return None


def _give_to_owner(place: Installation, key_file: Path) -> None:
    owner = place.settings.stat()
    for file in (key_file, *place.directory.glob("fleetgate.db*")):
        found = file.stat()
        if (found.st_uid, found.st_gid) != (owner.st_uid, owner.st_gid):
            os.chown(file, owner.st_uid, owner.st_gid)
        file.chmod(0o600)


def _say_next(place: Installation, first: FirstKey) -> None:
    say(f"""\
Installation made in {place.directory}
  settings       {place.settings}
  broker         {place.configuration}
  admin key      {first.key_file} (organization {first.organization}; the database has only its hash)
  devices need   {place.broker_ca}, and the address {place.device_host}:{place.device_port}
Next:
  mosquitto -c {place.configuration}
  fleetgate serve --config {place.settings}
  export FLEETGATE_CONFIG={place.settings}
  fleetgate doctor
  fleetgate product create NAME""")
