"""The service: wires the parts of a worker together, by its roles, and runs until it is told to stop.

On SIGTERM it stops reading, works what it has, commits, publishes, acknowledges, and ends with 0.
"""

import contextlib
import fcntl
import gc
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import structlog

from gateway import logs, secrets
from gateway.connected import Connected
from gateway.housekeeping import Housekeeping
from gateway.http.server import HttpServer
from gateway.mqtt.capath import CaPath
from gateway.mqtt.client import Transport, TransportSettings
from gateway.operations.authorities import sync_capath
from gateway.operations.desk import Desk
from gateway.pipeline import Pipeline
from gateway.registration import Registration
from gateway.retention import Retention
from gateway.scheduler import Scheduler
from gateway.settings import Settings
from gateway.trusting import Trusting
from gateway.watching import WatchTerms
from provisioning.errors import SetupError
from provisioning.greeting import Terms
from provisioning.sessions import heartbeat_seconds
from provisioning.workers import WorkerRole, WorkerState
from store import identity, migrate
from store.blobs import Blobs
from store.database import Database, StoreUnavailableError
from store.ids import new_id
from store.times import now_utc

log: Final = structlog.get_logger()
_COLLECT_AFTER: Final = 50_000  # objects that were made and have not ended


def run(settings: Settings, *, retire_on_exit: bool = False) -> int:
    """Runs a gateway until SIGTERM or SIGINT.

    Args:
        retire_on_exit: whether it leaves for good when it is told to stop.

    Returns:
        The exit code: 0 after a clean end.

    Raises:
        SetupError: something it needs is missing, away or in use; nothing was changed.
    """
    logs.configure(settings.log)
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    with contextlib.ExitStack() as stack:
        stack.enter_context(_locked(settings.state_directory))
        database = Database(settings.database.url, pool_size=settings.database.pool_size)
        stack.callback(database.close)
        try:
            own = own_identity(settings, database)
            stack.callback(own.close)
            own.keep()
            migrate.upgrade(database)
        except StoreUnavailableError as error:
            reason = str(error).partition(";")[0]
            raise SetupError(
                f"not started: {reason}; start the database or set database.url, then start again "
                "(systemd does so by itself)"
            ) from error
        gateway = Gateway(settings, database, own)
        gateway.start()
        spare_collections()
        _notify("READY=1")
        log.info(
            "gateway_ready",
            worker=settings.worker,
            roles=",".join(settings.roles),
            broker=settings.broker.name,
            database=str(database),
        )
        while not stopping.wait(1.0):
            if not gateway.alive:
                log.error("worker_died", action="exit")
                return 1
            if not _still_ours(own):
                return 1
        _notify("STOPPING=1")
        gateway.stop(for_good=retire_on_exit)
        log.info("gateway_stopped", worker=settings.worker)
    return 0


def _still_ours(own: identity.HeldIdentity) -> bool:
    """Whether no other process has taken this identity, which can happen while the database restarts."""
    try:
        own.keep()
    except StoreUnavailableError:
        pass  # the batch waits too; nobody can take the lock of a database that is away
    except SetupError as error:
        log.error("identity_lost", action="exit", cause=str(error))
        return False
    return True


class Gateway:
    """One worker's parts, by its roles; started and stopped together."""

    def __init__(
        self, settings: Settings, database: Database, own: identity.HeldIdentity | None = None
    ) -> None:
        self._settings = settings
        self._own = own or own_identity(settings, database)
        roles, broker = settings.roles, settings.broker
        # A worker beside a broker, for its capath alone, needs no secret.
        secret = {WorkerRole.INGEST, WorkerRole.API} & set(roles)
        self._root = secrets.load_root_secret(settings.root_secret_file) if secret else b""
        self._challenge_key = secrets.derive(self._root, "challenge v1") if secret else b""
        way = make_way(settings, self._root)
        self.scheduler: Final = (
            Scheduler(database, worker=settings.worker, wake=self._wake)
            if WorkerRole.SCHEDULER in roles
            else None
        )
        self.housekeeping: Final = (
            Housekeeping(
                database, broker=broker.name, worker=settings.worker, clock=now_utc, leads=self._leads
            )
            if {WorkerRole.SCHEDULER, WorkerRole.INGEST} & set(roles)
            else None
        )
        self.connected: Final = (
            Connected(
                settings,
                database,
                way=way,
                root=self._root,
                terms=self._terms,
                keep=self._own.keep,
                on_uptime=self._note_uptime,
            )
            if WorkerRole.INGEST in roles
            else None
        )
        desk, blobs = self._make_desk(database)
        self.retention: Final = (
            Retention(database, blobs, settings.retention, is_holder=self._leads)
            if {WorkerRole.SCHEDULER, WorkerRole.API} & set(roles)
            else None
        )
        self.http: Final = HttpServer(
            settings,
            database,
            desk=desk if WorkerRole.API in roles else None,
            blobs=blobs,
            watched=WatchTerms(transport=way, terms=self._terms) if WorkerRole.API in roles else None,
            transport=None if self.connected is None else self.connected.transport,
            pipeline=None if self.connected is None else self.connected.pipeline,
        )
        self.trusting: Final = (
            Trusting(database, lambda: sync_capath(desk)) if WorkerRole.AUTHORITIES in roles else None
        )
        self.registration: Final = Registration(
            database,
            name=settings.worker,
            broker=broker.name,
            roles=roles,
            client_id=way.client_id if WorkerRole.INGEST in roles else None,
            root=self._root,
            queued=lambda: 0 if self.connected is None else self.connected.transport.stats().queued,
        )

    @property
    def alive(self) -> bool:
        """Whether messages are being worked, if that is its role."""
        return self.connected is None or self.connected.alive

    @property
    def transport(self) -> Transport:
        """The connection of a worker that has one."""
        assert self.connected is not None
        return self.connected.transport

    @property
    def pipeline(self) -> Pipeline:
        """The pipeline of a worker that has one."""
        assert self.connected is not None
        return self.connected.pipeline

    def start(self) -> None:
        """Starts every part.

        Raises:
            SetupError: an address is taken, or the capath cannot be written.
        """
        self.registration.start()
        for part in (
            self.trusting,
            self.http,
            self.housekeeping,
            self.connected,
            self.scheduler,
            self.retention,
        ):
            if part is not None:
                part.start()

    def stop(self, *, for_good: bool = False) -> None:
        """Stops reading, works what is queued, and ends every part.

        Args:
            for_good: whether its session at the broker is left for another worker to empty and end.
        """
        if self.connected is not None:
            self.connected.stop_working()
        if self.retention is not None:
            self.retention.stop()
        if self.scheduler is not None:
            self.scheduler.stop()
        if self.connected is not None:
            self.connected.close()
        for part in (self.housekeeping, self.trusting, self.http):
            if part is not None:
                part.stop()
        self._own.close()  # before the row says so: who takes the session over needs it free
        self.registration.stop(WorkerState.RETIRING if for_good and self.connected else WorkerState.STOPPED)

    def _make_desk(self, database: Database) -> tuple[Desk, Blobs | None]:
        settings, blobs = self._settings, None
        if WorkerRole.API in settings.roles:
            blobs = Blobs(settings.blobs.url, settings.state_directory / "uploads")
            blobs.clean()
        desk = Desk(
            database=database,
            clock=now_utc,
            new_id=new_id,
            capath=CaPath(settings.broker.capath) if WorkerRole.AUTHORITIES in settings.roles else None,
            broker=settings.broker.name,
            worker=settings.worker,
            audience=settings.audience,
            blobs=blobs,
            wake=self._wake,
        )
        return desk, blobs

    def _wake(self) -> None:
        """Devices may have become due: looked at now; other workers look once a second."""
        if self.connected is not None:
            self.connected.offering.wake()

    def _leads(self) -> bool:
        return self.scheduler is not None and self.scheduler.holds

    def _note_uptime(self, seconds: int) -> None:
        assert self.housekeeping is not None
        self.housekeeping.note_uptime(seconds)

    def _terms(self) -> Terms:
        connected = 0 if self.housekeeping is None else self.housekeeping.connected
        return Terms(
            audience=self._settings.audience,
            challenge_key=self._challenge_key,
            heartbeat_seconds=heartbeat_seconds(connected),
        )


def make_way(settings: Settings, root: bytes) -> TransportSettings:
    """How this worker reaches the broker, and who it is there: as its settings say, else by its name."""
    broker = settings.broker
    return TransportSettings(
        host=broker.host,
        port=broker.port,
        cafile=broker.cafile,
        certfile=broker.certfile,
        keyfile=broker.keyfile,
        client_id=broker.client_id
        or secrets.make_client_id(root, broker=broker.name, worker=settings.worker),
        group=broker.group,
        prefix=settings.prefix,
        session_expiry_seconds=broker.session_expiry_seconds,
        protocol=broker.protocol,
        queue_limit=settings.limits.queue_messages,
        keepalive_seconds=broker.keepalive_seconds,
        rate_per_minute=settings.limits.hello_rate_per_minute,
        rate_burst=settings.limits.hello_burst,
    )


def own_identity(settings: Settings, database: Database) -> identity.HeldIdentity:
    """What no other process may have meanwhile: the worker's name, and its client id where it has one."""
    client_id = None
    if WorkerRole.INGEST in settings.roles:
        client_id = make_way(settings, secrets.load_root_secret(settings.root_secret_file)).client_id
    return identity.HeldIdentity(database, client_id, settings.worker)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with (directory / "lock").open("a") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise SetupError(
                    f"another gateway already runs on state directory {directory}; stop it first, or give "
                    "this one a state_directory of its own"
                ) from None
            yield
    except OSError as error:
        raise SetupError(f"state directory {directory} cannot be used: {error}") from error


def spare_collections() -> None:
    """Has the garbage collector leave alone what stays, and look less often at what comes and goes.

    A batch holds some 10,000 objects, which end without it. By Python's own thresholds it looked at them twenty times
    a batch, and now and then at the libraries' 150,000 as well, which takes 50 ms while devices wait (measured).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_COLLECT_AFTER, 20, 50)


def _notify(state: str) -> None:
    """Tells systemd (sd_notify(3)); nothing where it did not start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            notifier.sendall(state.encode())
