"""The broker's configuration for one installation, and a mosquitto process for demo, tests and one machine.

The shipped `mosquitto.conf` is the only configuration there is: only ports, paths and `user` are replaced,
and a line that should be replaced but is not there is an error, so that file and module cannot drift apart.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from provisioning.errors import SetupError
from provisioning.topics import DEFAULT_PREFIX

_PROJECT: Final = Path(__file__).resolve().parents[2]
_PACKAGED: Final = Path(__file__).resolve().parent / "shipped"
_SHIPPED_FILES: Final = "/etc/mosquitto/fleetgate"
_SHIPPED_DATA: Final = "/var/lib/mosquitto/"
# Below Linux's ephemeral ports (32768 and up), so that no outgoing connection takes one while nobody listens.
_PORTS: Final = range(20000, 32000)
_POLL_SECONDS: Final = 0.02


def shipped(name: str) -> str:
    """The text of a shipped file: `mosquitto.conf`, `gateway.acl` or `devices.acl`.

    Raises:
        SetupError: it is not there: the package is incomplete.
    """
    for path in (_PACKAGED / name, _PROJECT / name, _PROJECT / "deploy" / "mosquitto" / name):
        if path.is_file():
            return path.read_text(encoding="utf-8")
    raise SetupError(f"{name} is missing from this installation of fleetgate; install it again")


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerPlace:
    """What of the shipped configuration is an installation's own."""

    files: Path  # holds the ACL files, certificates and capath
    data: Path  # the broker's persistence
    user: str  # the account the broker becomes when root starts it
    device_port: int
    gateway_port: int
    gateway_address: str = "127.0.0.1"


def render_configuration(place: BrokerPlace) -> str:
    """The shipped `mosquitto.conf` with ports, paths and `user` of one installation.

    Raises:
        SetupError: the shipped file lacks a line that must be replaced, or a path has a newline in it.
    """
    if "\n" in f"{place.files}{place.data}{place.user}{place.gateway_address}":
        raise SetupError("a path in mosquitto.conf cannot hold a newline")
    text = shipped("mosquitto.conf")
    for old, new in (
        ("\nuser mosquitto\n", f"\nuser {place.user}\n"),
        (f"\npersistence_location {_SHIPPED_DATA}\n", f"\npersistence_location {place.data}/\n"),
        ("\nlistener 8884 127.0.0.1\n", f"\nlistener {place.gateway_port} {place.gateway_address}\n"),
        ("\nlistener 8883\n", f"\nlistener {place.device_port}\n"),
    ):
        if text.count(old) != 1:
            raise SetupError(f"the shipped mosquitto.conf should have one line {old.strip()!r}")
        text = text.replace(old, new)
    # Only where a setting names a file: comments stay as they are.
    return "\n".join(
        line if line.startswith("#") else line.replace(f" {_SHIPPED_FILES}/", f" {place.files}/")
        for line in text.split("\n")
    )


def render_acl(name: str, prefix: str = DEFAULT_PREFIX) -> str:
    """A shipped ACL file for the topic prefix of an installation.

    Raises:
        SetupError: the file is missing.
    """
    return "\n".join(
        line if line.startswith("#") else line.replace(f" {DEFAULT_PREFIX}/", f" {prefix}/")
        for line in shipped(name).split("\n")
    )


def find_mosquitto() -> Path:
    """The mosquitto program; Debian keeps it in /usr/sbin, which a user's PATH often lacks.

    Raises:
        SetupError: there is none; the message says how to install it.
    """
    search = os.pathsep.join(
        [os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin", "/opt/homebrew/sbin"]
    )
    found = shutil.which("mosquitto", path=search)
    if found is None:
        raise SetupError("mosquitto is not installed; on Debian: sudo apt-get install mosquitto")
    return Path(found)


def free_ports(count: int) -> tuple[int, ...]:
    """Distinct TCP ports on which nobody listens now; another process may still take one before its use."""
    ports: list[int] = []
    with contextlib.ExitStack() as stack:
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            if len(ports) == count:
                break
            sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            with contextlib.suppress(OSError):
                sock.bind(("", port))
                ports.append(port)
    if len(ports) < count:
        raise SetupError(f"no {count} free TCP ports between {_PORTS.start} and {_PORTS.stop}")
    return tuple(ports)


@dataclass(frozen=True, slots=True, kw_only=True)
class BrokerAccess:
    """How a local broker is started, and reached to see that it accepts."""

    configuration: Path
    log: Path
    port: int  # the gateway's listener, on the loopback address
    cafile: Path
    certfile: Path
    keyfile: Path


class LocalBroker:
    """A mosquitto process of our own, known by its pid; a context manager that starts and stops it.

    Not thread-safe. Its output is appended to `access.log`.
    """

    def __init__(self, access: BrokerAccess) -> None:
        self.access = access
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> "LocalBroker":
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pid(self) -> int | None:
        """The process, or None where none runs."""
        process = self._process
        return process.pid if process is not None and process.poll() is None else None

    def start(self, timeout_seconds: float = 10.0) -> None:
        """Starts mosquitto and waits until its gateway listener completes a TLS handshake.

        Raises:
            SetupError: mosquitto is missing, ended at once, or did not accept in time; its log's end is told.
        """
        if self.pid is not None:
            return
        program = find_mosquitto()
        self.access.log.parent.mkdir(parents=True, exist_ok=True)
        with self.access.log.open("ab") as log:
            # A session of its own: Ctrl-C in a terminal reaches us, and we stop it in order.
            self._process = subprocess.Popen(
                [program, "-c", self.access.configuration],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        for _ in _until(timeout_seconds):
            if self._process.poll() is not None:
                raise SetupError(f"mosquitto ended with status {self._process.returncode}: {self.log_end()}")
            if self.accepts():
                return
        self.kill()
        raise SetupError(
            f"mosquitto did not accept a connection within {timeout_seconds} s: {self.log_end()}"
        )

    def stop(self, timeout_seconds: float = 10.0) -> None:
        """Ends it in order (SIGTERM: it saves its queue), or kills it after `timeout_seconds`."""
        self._end(signal.SIGTERM, timeout_seconds)

    def kill(self) -> None:
        """Ends it as a crash would (SIGKILL): wills are lost, and what was queued since the last save."""
        self._end(signal.SIGKILL, 10.0)

    def restart(self, timeout_seconds: float = 10.0) -> None:
        """stop() and start().

        Raises:
            SetupError: as start().
        """
        self.stop()
        self.start(timeout_seconds)

    def accepts(self) -> bool:
        """Whether the gateway's listener completes a TLS handshake with the gateway's certificate now."""
        context = ssl.create_default_context(cafile=str(self.access.cafile))
        context.load_cert_chain(self.access.certfile, self.access.keyfile)
        try:
            with (
                socket.create_connection(("127.0.0.1", self.access.port), timeout=2.0) as sock,
                context.wrap_socket(sock, server_hostname="localhost"),
            ):
                return True
        except OSError:  # refused, reset, or a failed handshake (ssl.SSLError is one)
            return False

    def log_end(self, lines: int = 5) -> str:
        """The last lines of its log, in one line."""
        try:
            text = self.access.log.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return "no log"
        return " | ".join(text.splitlines()[-lines:])

    def _end(self, number: signal.Signals, timeout_seconds: float) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(number)
        try:
            process.wait(timeout_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _until(timeout_seconds: float) -> Iterator[None]:
    """Yields until the time is over, a little apart: a process being born has no event to wait for."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline:
        yield
        time.sleep(_POLL_SECONDS)
