"""What the gateway needs, looked at from outside: each finding says what is there, and for a fault what to do.

Nothing is changed; the broker is asked under a client id of its own, so that a running gateway is not disturbed.
"""

import contextlib
import os
import pwd
import queue
import re
import secrets as random
import socket
import ssl
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from paho.mqtt import client as paho
from paho.mqtt.enums import CallbackAPIVersion
from paho.mqtt.reasoncodes import ReasonCode

from gateway.mqtt.broker import find_mosquitto
from gateway.mqtt.connection import UPTIME_TOPIC
from gateway.secrets import load_root_secret
from gateway.settings import BrokerSettings, Settings
from provisioning.errors import FleetgateError, SetupError
from store import migrate
from store.blobs import Blobs
from store.database import Database

_BROKER_SECONDS: Final = 15.0  # mosquitto publishes $SYS every 10 s, and keeps the last for who subscribes
_CLOCK_SECONDS: Final = 2.0  # a hello from the future is refused beyond 5 s (protocol, freshness)
_EXPIRY_DAYS: Final = 30
_OLDEST: Final = (2, 0, 11)
_LOSING: Final = frozenset({(2, 0, 22)})  # loses queued messages of persistent sessions; measured


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that was looked at; `advice` is what to do about a fault."""

    name: str
    ok: bool
    detail: str
    advice: str | None = None


def examine(settings: Settings) -> Iterator[Finding]:
    """Looks at everything, one finding after the other, as soon as each is known."""
    yield examine_secret(settings)
    yield examine_state(settings.state_directory)
    yield examine_certificate(settings.broker.certfile, datetime.now(UTC))
    yield examine_broker(settings.broker)
    yield examine_version(settings.broker)
    yield examine_capath(settings.broker.capath)
    yield from examine_database(settings.database.url)
    yield examine_blobs(settings)


def examine_blobs(settings: Settings) -> Finding:
    """The blob store: a probe can be written, read and deleted."""
    try:
        Blobs(settings.blobs.url, settings.state_directory / "uploads").check()
    except FleetgateError as error:
        return Finding(
            name="blobs",
            ok=False,
            detail=str(error),
            advice="set blobs.url, make the folder writable for the service's account, or check the bucket's "
            "credentials in the environment",
        )
    return Finding(name="blobs", ok=True, detail=f"{settings.blobs.url} can be written and read")


def examine_secret(settings: Settings) -> Finding:
    """The root secret: there, whole, and nobody else's."""
    try:
        load_root_secret(settings.root_secret_file)
    except SetupError as error:
        return Finding(
            name="root secret",
            ok=False,
            detail=str(error),
            advice="restore it from the backup; a new one makes devices ask for a new challenge once",
        )
    return Finding(
        name="root secret", ok=True, detail=f"{settings.root_secret_file} can be read by its owner alone"
    )


def examine_state(directory: Path) -> Finding:
    """The state directory: writable by whoever runs this."""
    try:
        with tempfile.TemporaryFile(dir=directory):
            pass
    except OSError as error:
        return Finding(
            name="state directory",
            ok=False,
            detail=f"{directory} cannot be written: {error.strerror}",
            advice="run this as the service's account, or give the folder to it (chown)",
        )
    return Finding(name="state directory", ok=True, detail=f"{directory} can be written")


def examine_certificate(file: Path, now: datetime) -> Finding:
    """The gateway's client certificate: readable, valid now and for a while."""
    name = "gateway certificate"
    try:
        certificate = x509.load_pem_x509_certificate(file.read_bytes())
    except (OSError, ValueError) as error:
        return Finding(
            name=name,
            ok=False,
            detail=f"{file} cannot be read: {error}",
            advice="set broker.certfile, or run this as the service's account",
        )
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    detail = f"{file} is valid from {begin:%Y-%m-%d} until {end:%Y-%m-%d}"
    if now < begin:
        return Finding(
            name=name, ok=False, detail=detail, advice=f"set this machine's clock; it says {now:%Y-%m-%d}"
        )
    if now > end - timedelta(days=_EXPIRY_DAYS):
        advice = "issue a new one from the gateway CA (private/gateway-ca.pem's key) before it ends"
        return Finding(name=name, ok=False, detail=detail, advice=advice)
    return Finding(name=name, ok=True, detail=detail)


def examine_broker(broker: BrokerSettings) -> Finding:
    """The broker: reached over the gateway's listener, and its uptime readable."""
    place = f"{broker.host}:{broker.port}"

    def fault(detail: str, advice: str) -> Finding:
        return Finding(name="broker", ok=False, detail=detail, advice=advice)

    heard: queue.Queue[tuple[bool, str]] = queue.Queue()
    client = paho.Client(
        CallbackAPIVersion.VERSION2, client_id=f"doctor-{random.token_hex(8)}", protocol=paho.MQTTv5
    )

    def connected(_client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _more: Any) -> None:
        if reason.is_failure:
            heard.put((False, str(reason)))
        else:
            client.subscribe(UPTIME_TOPIC)

    def lost(_client: paho.Client, _data: Any, _flags: Any, reason: ReasonCode, _more: Any) -> None:
        heard.put((False, str(reason)))

    client.on_connect = connected
    client.on_disconnect = lost
    client.on_message = lambda _client, _data, message: heard.put(
        (True, message.payload.decode("ascii", "replace"))
    )
    try:
        context = _tls(broker)
        # First without MQTT: a failed handshake says more here, and closes its socket.
        with (
            socket.create_connection((broker.host, broker.port), timeout=5.0) as plain,
            context.wrap_socket(plain, server_hostname=broker.host),
        ):
            pass
        client.tls_set_context(context)
        client.connect(broker.host, broker.port, keepalive=30)
    except ssl.SSLCertVerificationError as error:
        return fault(
            f"{place} shows a certificate that does not fit: {error.verify_message}",
            "broker.cafile must hold the CA of the broker's certificate, and broker.host a name that is in it; "
            "check this machine's clock",
        )
    except ssl.SSLError as error:
        return fault(
            f"the TLS handshake with {place} failed: {error.reason or error}",
            "broker.certfile and broker.keyfile must be a pair that the CA of the gateway's listener signed",
        )
    except ConnectionRefusedError:
        return fault(f"nobody listens on {place}", "start the broker: mosquitto -c mosquitto.conf")
    except OSError as error:
        return fault(
            f"{place} cannot be reached: {error}", "check broker.host, broker.port and the files named there"
        )
    client.loop_start()
    try:
        ok, text = heard.get(timeout=_BROKER_SECONDS)
    except queue.Empty:
        return fault(
            f"{place} accepts the connection but does not tell its uptime",
            f"the ACL file of the gateway's listener needs `topic read {UPTIME_TOPIC}`",
        )
    finally:
        client.disconnect()
        client.loop_stop()
    if not ok:
        return fault(
            f"{place} refuses the connection: {text}",
            "is the certificate's CN the user of the ACL file, and the listener's CA the one that signed it?",
        )
    return Finding(name="broker", ok=True, detail=f"{place} answers, up for {text}")


def examine_version(broker: BrokerSettings) -> Finding:
    """The broker's version, by the program on this machine: over MQTT, the gateway may not read it."""
    name = "broker version"
    if broker.host not in ("localhost", "127.0.0.1", "::1"):
        return Finding(name=name, ok=True, detail=f"not looked at: {broker.host} is another machine")
    try:
        # -h prints the version and ends with 1 or 3, by version.
        output = subprocess.run(
            [find_mosquitto(), "-h"], capture_output=True, text=True, timeout=10, check=False
        ).stdout
    except SetupError as error:
        return Finding(name=name, ok=False, detail="mosquitto is not on this machine", advice=str(error))
    except (OSError, subprocess.TimeoutExpired) as error:
        return Finding(
            name=name, ok=False, detail=f"cannot be asked: {error}", advice="install mosquitto again"
        )
    found = re.search(r"version (\d+)\.(\d+)\.(\d+)", output)
    if found is None:
        return Finding(
            name=name, ok=False, detail="mosquitto does not tell it", advice="install mosquitto again"
        )
    version = (int(found[1]), int(found[2]), int(found[3]))
    detail = f"mosquitto {'.'.join(map(str, version))}"
    if version < _OLDEST or version in _LOSING:
        return Finding(name=name, ok=False, detail=detail, advice="use 2.0.11, or 2.0.23 and later")
    return Finding(name=name, ok=True, detail=detail)


def examine_capath(capath: Path) -> Finding:
    """The CA folder, as the broker's account sees it: every folder above it, it, and each file in it."""
    account = _broker_account(capath)
    who = account.pw_name
    groups = frozenset(os.getgrouplist(who, account.pw_gid))

    def fault(detail: str, advice: str) -> Finding:
        return Finding(name="capath", ok=False, detail=detail, advice=advice)

    try:
        for folder in reversed(capath.absolute().parents):
            if not _may(folder, account, groups, 0o1):
                return fault(
                    f"the broker's account {who} cannot pass through {folder}, so that every handshake fails",
                    f"chmod o+x {folder}, or give it to a group of {who} with chmod g+x",
                )
        if not _may(capath, account, groups, 0o5):
            return fault(
                f"the broker's account {who} cannot read {capath}",
                f"chgrp {_group(account)} {capath} && chmod 2750 {capath}",
            )
        if capath.stat().st_mode & 0o022:
            return fault(
                f"{capath} can be written by more than its owner: they could have any CA trusted",
                f"chmod 2750 {capath}",
            )
        links = 0
        for file in sorted(capath.iterdir()):
            if not _may(file, account, groups, 0o4):
                return fault(
                    f"the broker's account {who} cannot read {file}",
                    f"chgrp {_group(account)} {file} && chmod 640 {file}",
                )
            links += file.is_symlink()
        if not os.access(capath, os.W_OK):
            return fault(
                f"{capath} cannot be written", "run this as the service's account, which must own it"
            )
    except OSError as error:
        return fault(
            f"{error.filename} cannot be looked at: {error.strerror}",
            "set broker.capath, or run as its owner",
        )
    return Finding(name="capath", ok=True, detail=f"{capath} can be read by {who}; CAs in it: {links}")


def examine_database(url: str) -> Iterator[Finding]:
    """The database: reachable, of our schema, and its clock against this machine's."""
    try:
        database = Database(url)
    except FleetgateError as error:
        yield Finding(name="database", ok=False, detail=str(error), advice="correct database.url")
        return
    with contextlib.closing(database):
        try:
            if database.is_sqlite and not Path(database.url.database or "").exists():
                raise SetupError(f"{database} is not there")
            migrate.check(database)
            with database.read() as tx:
                before = datetime.now(UTC).timestamp()
                theirs = tx.now_ms() / 1000
                off = theirs - (before + datetime.now(UTC).timestamp()) / 2
        except FleetgateError as error:
            advice = "start it, or correct database.url; an empty one gets its tables by `fleetgate serve`"
            yield Finding(name="database", ok=False, detail=str(error), advice=advice)
            return
        yield Finding(name="database", ok=True, detail=f"{database}, schema {migrate.head()}")
        ok = abs(off) <= _CLOCK_SECONDS
        yield Finding(
            name="clock",
            ok=ok,
            detail=f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC, the database's is {off:+.1f} s off",
            advice=None if ok else "have both machines set by NTP (timedatectl set-ntp true)",
        )


def _tls(broker: BrokerSettings) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(broker.cafile))
    context.load_cert_chain(broker.certfile, broker.keyfile)
    return context


def _broker_account(capath: Path) -> pwd.struct_passwd:
    """The account in the installation's mosquitto.conf, else `mosquitto`, else the folder's owner."""
    names = []
    with contextlib.suppress(OSError):
        text = (capath.parent.parent / "mosquitto.conf").read_text(encoding="utf-8")
        names = re.findall(r"^user (\S+)$", text, flags=re.M)
    for name in (*names, "mosquitto"):
        with contextlib.suppress(KeyError):
            return pwd.getpwnam(name)
    return pwd.getpwuid(os.geteuid())


def _group(account: pwd.struct_passwd) -> str:
    return str(account.pw_gid) if account.pw_name == str(account.pw_uid) else account.pw_name


def _may(path: Path, account: pwd.struct_passwd, groups: frozenset[int], bits: int) -> bool:
    """Whether the account has rights `bits` (4 read, 1 pass) on `path`, by its owner, group and mode."""
    found = path.stat()
    if account.pw_uid == 0:
        return True
    if found.st_uid == account.pw_uid:
        shift = 6
    elif found.st_gid in groups:
        shift = 3
    else:
        shift = 0
    return (found.st_mode >> shift) & bits == bits
