"""Everything that a new installation consists of, in one directory, with the owners and modes that it needs.

| path | mode | holds |
|---|---|---|
| `.` | 0710 | the broker's group may pass through, and see nothing |
| `fleetgate.toml` | 0600 | the gateway's settings, with the secret names it uses at the broker |
| `mosquitto.conf` | 0640 | the broker's configuration |
| `broker/` | 2750 | ACL files, the broker's certificate and key, `capath/`: read by the broker's group |
| `broker-data/` | 0700 | the broker's persistence: its own |
| `private/` | 0700 | root secret, keys, the CAs' keys: the gateway's own |
| `blobs/` | 0700 | artifacts of bundles: the gateway's own |
| `state/` | 0700 | lock file and what else the gateway keeps |

Nothing that exists is overwritten, and a failure takes away what it had made. The database is made elsewhere.
"""

import grp
import json
import os
import pwd
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric import ec

from gateway.mqtt import capath, pki
from gateway.mqtt.broker import (
    BrokerAccess,
    BrokerPlace,
    LocalBroker,
    free_ports,
    render_acl,
    render_configuration,
)
from provisioning.errors import InvalidError, SetupError
from provisioning.topics import DEFAULT_PREFIX, PREFIX_PATTERN

GATEWAY_NAME: Final = "gateway"  # the user of deploy/mosquitto/gateway.acl
BROKER_NAME: Final = "main"
_HOST: Final = re.compile(r"[A-Za-z0-9._:-]{1,253}")  # what `aud` may hold
_SECRET_BYTES: Final = 16  # of the group: 128 bits
_ROOT_SECRET_BYTES: Final = 32

_PUBLIC_DIRECTORY: Final = 0o2750  # setgid: new files belong to the broker's group
_PRIVATE_DIRECTORY: Final = 0o700


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """Where everything of an installation is, and the ports that it uses."""

    directory: Path  # absolute
    device_host: str  # the host that devices dial
    device_port: int
    gateway_port: int
    http_port: int
    download_port: int
    prefix: str
    audience: str
    group: str  # secret: the gateway's shared subscription

    @property
    def settings(self) -> Path:
        """`fleetgate.toml`."""
        return self.directory / "fleetgate.toml"

    @property
    def database_url(self) -> str:
        """The SQLite database beside the settings."""
        return f"sqlite:///{self.directory / 'fleetgate.db'}"

    @property
    def state(self) -> Path:
        """The gateway's state directory."""
        return self.directory / "state"

    @property
    def blobs(self) -> Path:
        """The artifacts of bundles, by their SHA-256."""
        return self.directory / "blobs"

    @property
    def download_url(self) -> str:
        """How devices reach the downloads, unless a proxy stands before them."""
        host = f"[{self.device_host}]" if ":" in self.device_host else self.device_host
        return f"http://{host}:{self.download_port}"

    @property
    def configuration(self) -> Path:
        """`mosquitto.conf`."""
        return self.directory / "mosquitto.conf"

    @property
    def broker_files(self) -> Path:
        """What the broker reads."""
        return self.directory / "broker"

    @property
    def broker_data(self) -> Path:
        """What the broker writes."""
        return self.directory / "broker-data"

    @property
    def broker_log(self) -> Path:
        """The output of a broker started by us."""
        return self.state / "mosquitto.log"

    @property
    def capath(self) -> Path:
        """The CAs that the device listener trusts."""
        return self.broker_files / "capath"

    @property
    def broker_ca(self) -> Path:
        """The CA of the broker's certificate, in PEM: devices and gateway check the broker by it."""
        return self.broker_files / "broker-ca.pem"

    @property
    def private(self) -> Path:
        """What only the gateway reads."""
        return self.directory / "private"

    @property
    def gateway_certificate(self) -> Path:
        """The gateway's client certificate for the broker."""
        return self.private / "gateway.pem"

    @property
    def gateway_key(self) -> Path:
        """Its key."""
        return self.private / "gateway.key"

    @property
    def signing_key(self) -> Path:
        """The gateway's own P-256 key, which devices pin."""
        return self.private / "signing-key.pem"

    @property
    def root_secret(self) -> Path:
        """32 random bytes in hexadecimal and a newline; keys are derived from it per use."""
        return self.private / "root-secret"

    def local_broker(self) -> LocalBroker:
        """A mosquitto of our own on this installation's ports, not started."""
        return LocalBroker(
            BrokerAccess(
                configuration=self.configuration,
                log=self.broker_log,
                port=self.gateway_port,
                cafile=self.broker_ca,
                certfile=self.gateway_certificate,
                keyfile=self.gateway_key,
            )
        )


def create_installation(
    directory: Path,
    *,
    device_host: str,
    now: datetime,
    device_port: int = 8883,
    gateway_port: int = 8884,
    http_host: str = "127.0.0.1",
    http_port: int = 8080,
    download_port: int = 8081,
    prefix: str = DEFAULT_PREFIX,
    audience: str | None = None,
    owner: str | None = None,
    broker_user: str | None = None,
) -> Installation:
    """Makes an installation in `directory`, which may exist.

    Args:
        device_host: name or IP address that devices dial; in the broker's certificate with `localhost`.
        now: from when certificates are valid; aware.
        device_port: devices' listener; 0 takes a free port, as for the others.
        gateway_port: the gateway's listener, on the loopback address.
        http_host: where the API listens.
        http_port: its port.
        download_port: where devices download artifacts, on every address.
        prefix: what every topic starts with.
        audience: `aud` of every message; the device host if None.
        owner: account that runs the gateway; the current one if None. Another one takes root.
        broker_user: account that runs the broker; the current one if None.

    Returns: where everything is.

    Raises:
        InvalidError: a host or prefix that cannot be used.
        SetupError: something of it exists already, an account does not, or the disk refuses.
    """
    if not PREFIX_PATTERN.fullmatch(prefix):
        raise InvalidError(
            f"{prefix!r} cannot be a topic prefix: up to 4 levels of A–Z a–z 0–9 . _ -", field="prefix"
        )
    for field, name in (("device_host", device_host), ("audience", audience or device_host)):
        if not _HOST.fullmatch(name):
            raise InvalidError(f"{name!r} is no host name or IP address", field=field)
    asked = (device_port, gateway_port, http_port, download_port)
    free = iter(free_ports(asked.count(0)))
    device_port, gateway_port, http_port, download_port = (port or next(free) for port in asked)
    installation = Installation(
        directory=directory.absolute(),
        device_host=device_host,
        device_port=device_port,
        gateway_port=gateway_port,
        http_port=http_port,
        download_port=download_port,
        prefix=prefix,
        audience=audience or device_host,
        group=f"fg-{secrets.token_hex(_SECRET_BYTES)}",
    )
    broker_account = _account(broker_user)
    maker = _Maker(owner=_account(owner), broker=broker_account)
    contents = _contents(installation, broker_account.pw_name, http_host, now)
    taken = [path for path in contents if path.exists()]
    if taken:
        raise SetupError(f"{taken[0]} exists already: an installation is never overwritten")
    try:
        maker.directory(installation.directory, 0o710, shared=True)
        for path, mode in (
            (installation.broker_files, _PUBLIC_DIRECTORY),
            (installation.capath, capath.DIRECTORY_MODE),
        ):
            maker.directory(path, mode, shared=True)
        for path in (installation.private, installation.state, installation.blobs):
            maker.directory(path, _PRIVATE_DIRECTORY)
        maker.directory(installation.broker_data, _PRIVATE_DIRECTORY, brokers=True)
        for path, data in contents.items():
            shared = path.parent == installation.broker_files or path == installation.configuration
            maker.file(path, data, shared=shared)
    except OSError as error:
        maker.undo()
        raise SetupError(f"cannot make the installation in {directory}: {error}") from error
    except SetupError:
        maker.undo()
        raise
    return installation


def _contents(place: Installation, broker_user: str, http_host: str, now: datetime) -> Mapping[Path, bytes]:
    broker_ca = pki.create_authority("Fleetgate broker CA", now)
    gateway_ca = pki.create_authority("Fleetgate gateway CA", now)
    server = pki.issue_server(broker_ca, (place.device_host, "localhost", "127.0.0.1"), now)
    client = pki.issue_client(gateway_ca, GATEWAY_NAME, now)
    configuration = render_configuration(
        BrokerPlace(
            files=place.broker_files,
            data=place.broker_data,
            user=broker_user,
            device_port=place.device_port,
            gateway_port=place.gateway_port,
        )
    )
    return {
        place.broker_ca: broker_ca.pem,
        place.broker_files / "gateway-ca.pem": gateway_ca.pem,
        place.broker_files / "server.pem": server.pem,
        place.broker_files / "server.key": server.key_pem,
        place.broker_files / "gateway.acl": render_acl("gateway.acl", place.prefix).encode(),
        place.broker_files / "devices.acl": render_acl("devices.acl", place.prefix).encode(),
        place.private / "broker-ca.key": broker_ca.key_pem,
        place.private / "gateway-ca.key": gateway_ca.key_pem,
        place.gateway_certificate: client.pem,
        place.gateway_key: client.key_pem,
        place.signing_key: pki.private_pem(ec.generate_private_key(ec.SECP256R1())),
        place.root_secret: f"{secrets.token_hex(_ROOT_SECRET_BYTES)}\n".encode(),
        place.configuration: configuration.encode(),
        # Last: where there are settings, the rest is whole.
        place.settings: _settings(place, http_host).encode(),
    }


def _settings(place: Installation, http_host: str) -> str:
    # json.dumps: a JSON string of ASCII is a TOML basic string (TOML 1.0, "String").
    return f"""\
# Settings of Fleetgate. Each one, with its default, is described in docs/settings.md; the environment goes
# before this file (FLEETGATE_BROKER__HOST and so on).

# What devices sign as `aud`: the host that they dial.
audience = {json.dumps(place.audience)}
prefix = {json.dumps(place.prefix)}
state_directory = {json.dumps(str(place.state))}
root_secret_file = {json.dumps(str(place.root_secret))}
signing_key_file = {json.dumps(str(place.signing_key))}

[database]
url = {json.dumps(place.database_url)}

[broker]
name = {json.dumps(BROKER_NAME)}
host = "localhost"
port = {place.gateway_port}
cafile = {json.dumps(str(place.broker_ca))}
certfile = {json.dumps(str(place.gateway_certificate))}
keyfile = {json.dumps(str(place.gateway_key))}
capath = {json.dumps(str(place.capath))}
# Secret: a device that knew this name could take the gateway's messages away from it.
group = {json.dumps(place.group)}

[http]
host = {json.dumps(http_host)}
port = {place.http_port}

[blobs]
url = {json.dumps(str(place.blobs))}

[downloads]
port = {place.download_port}
# How devices reach it: every offer carries it. Behind a proxy that does TLS, the proxy's address.
public_url = {json.dumps(place.download_url)}
"""


def _account(name: str | None) -> pwd.struct_passwd:
    try:
        return pwd.getpwuid(os.geteuid()) if name is None else pwd.getpwnam(name)
    except KeyError as error:
        raise SetupError(f"there is no account {name or os.geteuid()!r} on this machine") from error


class _Maker:
    """Makes files and directories with owner and mode, and can take away what it made."""

    def __init__(self, *, owner: pwd.struct_passwd, broker: pwd.struct_passwd) -> None:
        self._owner = owner
        self._broker = broker
        self._made: list[Path] = []

    def directory(self, path: Path, mode: int, *, shared: bool = False, brokers: bool = False) -> None:
        if not path.exists():
            path.mkdir(parents=True)
            self._made.append(path)
        uid = self._broker.pw_uid if brokers else self._owner.pw_uid
        self._own(path, uid, shared=shared or brokers)
        path.chmod(mode)  # after chown, which clears setgid

    def file(self, path: Path, data: bytes, *, shared: bool) -> None:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        self._made.append(path)
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
        self._own(path, self._owner.pw_uid, shared=shared)
        path.chmod(0o640 if shared else 0o600)

    def undo(self) -> None:
        for path in reversed(self._made):
            if path.is_dir():
                path.rmdir()
            else:
                path.unlink()

    def _own(self, path: Path, uid: int, *, shared: bool) -> None:
        gid = self._broker.pw_gid if shared else self._owner.pw_gid
        found = path.stat()
        if (found.st_uid, found.st_gid) == (uid, gid):
            return
        try:
            os.chown(path, uid, gid)
        except PermissionError as error:
            group = grp.getgrgid(gid).gr_name
            raise SetupError(
                f"cannot give {path} to user {pwd.getpwuid(uid).pw_name} and group {group}: "
                "run this as root, or let one account run gateway and broker"
            ) from error
