"""The service: wires transport, pipeline, housekeeping and API together, and runs until it is told to stop.

On SIGTERM it stops reading, works what it has, commits, publishes, acknowledges, and ends with 0.
"""

import contextlib
import fcntl
import os
import signal
import socket
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

import structlog

from gateway import logs, secrets
from gateway.faults import reach
from gateway.housekeeping import Housekeeping
from gateway.http.server import HttpServer, make_links
from gateway.mqtt.client import Transport, TransportSettings
from gateway.mqtt.intake import Incoming
from gateway.offering import Offering, ReadyOffer
from gateway.pipeline import Pipeline, Worked
from gateway.retention import Retention
from gateway.scheduler import Scheduler
from gateway.settings import Settings
from gateway.watching import WatchTerms
from provisioning.errors import SetupError
from provisioning.greeting import Terms
from provisioning.messages import Reply
from provisioning.sessions import heartbeat_seconds
from provisioning.topics import Down, topic_of
from store import identity, migrate
from store.blobs import Blobs
from store.database import Database, StoreUnavailableError
from store.ids import new_id
from store.times import now_utc

log: Final = structlog.get_logger()
ROOM_SECONDS: Final = 0.02
RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)


def run(settings: Settings) -> int:
    """Runs a gateway until SIGTERM or SIGINT.

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
            own = stack.enter_context(identity.held(database, settings.broker.client_id))
            migrate.upgrade(database)
        except StoreUnavailableError as error:
            reason = str(error).partition(";")[0]
            raise SetupError(
                f"not started: {reason}; start the database or set database.url, then start again "
                "(systemd does so by itself)"
            ) from error
        gateway = Gateway(settings, database, own)
        gateway.start()
        _notify("READY=1")
        log.info("gateway_ready", worker=settings.worker, broker=settings.broker.name, database=str(database))
        while not stopping.wait(1.0):
            if not gateway.alive:
                log.error("worker_died", action="exit")
                return 1
            if not _still_ours(own):
                return 1
        _notify("STOPPING=1")
        gateway.stop()
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
    """One worker's parts, started and stopped together."""

    def __init__(
        self, settings: Settings, database: Database, own: identity.HeldIdentity | None = None
    ) -> None:
        self._settings = settings
        self._own = own or identity.HeldIdentity(database, settings.broker.client_id)
        self._database = database
        challenge_key = secrets.derive(secrets.load_root_secret(settings.root_secret_file), "challenge v1")
        broker = settings.broker
        way = TransportSettings(
            host=broker.host,
            port=broker.port,
            cafile=broker.cafile,
            certfile=broker.certfile,
            keyfile=broker.keyfile,
            client_id=broker.client_id,
            group=broker.group,
            prefix=settings.prefix,
            session_expiry_seconds=broker.session_expiry_seconds,
            protocol=broker.protocol,
            queue_limit=settings.limits.queue_messages,
            keepalive_seconds=broker.keepalive_seconds,
            rate_per_minute=settings.limits.hello_rate_per_minute,
            rate_burst=settings.limits.hello_burst,
        )
        self.transport: Final = Transport(way)
        self._challenge_key = challenge_key
        self.housekeeping: Final = Housekeeping(
            database, broker=broker.name, worker=settings.worker, clock=now_utc
        )
        self.pipeline: Final = Pipeline(
            database,
            terms=self._terms,
            broker=broker.name,
            worker=settings.worker,
            prefix=settings.prefix,
            new_id=new_id,
            most_held=settings.limits.held_messages,
        )
        self.transport.on_uptime(self.housekeeping.note_uptime)
        self.offering: Final = Offering(
            database,
            self.transport,
            broker=broker.name,
            worker=settings.worker,
            prefix=settings.prefix,
            links=make_links(settings),
        )
        self.scheduler: Final = Scheduler(database, worker=settings.worker, wake=self.offering.wake)
        blobs = Blobs(settings.blobs.url, settings.state_directory / "uploads")
        blobs.clean()
        self.retention: Final = Retention(
            database, blobs, settings.retention, is_holder=lambda: self.scheduler.holds
        )
        self.http: Final = HttpServer(
            settings,
            database,
            blobs,
            self.transport,
            self.pipeline,
            self.offering.wake,
            WatchTerms(transport=way, terms=self._terms),
        )
        self._stopping = threading.Event()
        self._room = threading.Event()
        self._thread = threading.Thread(target=self._work, name="ingest", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether messages are being worked."""
        return self._thread.is_alive()

    def _terms(self) -> Terms:
        return Terms(
            audience=self._settings.audience,
            challenge_key=self._challenge_key,
            heartbeat_seconds=heartbeat_seconds(self.housekeeping.connected),
        )

    def start(self) -> None:
        """Starts every part."""
        self.http.start()
        self.housekeeping.start()
        self.transport.start()
        self.offering.start()
        self.scheduler.start()
        self.retention.start()
        self._thread.start()

    def stop(self) -> None:
        """Stops reading, works what is queued, and ends every part."""
        self.transport.stop_reading()
        self._stopping.set()
        self._thread.join(timeout=60)
        self.retention.stop()
        self.scheduler.stop()
        self.offering.stop()
        self.transport.close()
        self.housekeeping.stop()
        self.http.stop()
        self._own.close()

    def _work(self) -> None:
        while True:
            batch = self.transport.drain(
                self._settings.limits.batch_messages, self._settings.limits.drain_seconds
            )
            if not batch:
                if self._stopping.is_set():
                    return
                continue
            worked = self._work_batch(batch)
            if worked is None:
                return  # stopped while the database was away: nothing was acknowledged, all comes again
            offers = self.offering.complete(worked)
            answered = [
                incoming
                for incoming, reply in zip(batch, worked.replies, strict=True)
                if reply is None or self._publish(incoming, reply, offers)
            ]
            reach("after_publish")
            for incoming in answered:
                self.transport.acknowledge(incoming)
            reach("after_acknowledge")

    def _work_batch(self, batch: Sequence[Incoming]) -> Worked | None:
        attempt = 0
        while True:
            try:
                self._own.keep()  # without its lock, another may be working under this name
                return self.pipeline.work(batch)
            except SetupError as error:
                log.error("identity_lost", action="exit", cause=str(error))
                return None
            except StoreUnavailableError as error:
                log.warning("database_away", action="batch_waits", cause=str(error))
            if self._stopping.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]):
                return None
            attempt += 1

    def _publish(self, incoming: Incoming, reply: Reply, offers: Mapping[str, ReadyOffer]) -> bool:
        """Publishes a reply. False: its connection is gone; the message comes again and is answered again."""
        topic = topic_of(reply.topic_name, Down.REPLY, self._settings.prefix)
        correlation = incoming.correlation if incoming.response_topic == topic else None
        ready = offers.get(reply.device_id) if reply.device_id is not None else None
        if ready is not None:
            reply = replace(reply, offer=ready.document)
        payload, token = reply.encode(now_utc()), None if ready is None else ready.outgoing
        while not self.transport.publish(topic, payload, correlation=correlation, token=token):
            stats = self.transport.stats()
            if not stats.connected or stats.generation != incoming.generation:
                return False
            self._room.wait(ROOM_SECONDS)  # the broker is behind; it will take more in a moment
        return True


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


def _notify(state: str) -> None:
    """Tells systemd (sd_notify(3)); nothing where it did not start us."""
    address = os.environ.get("NOTIFY_SOCKET")
    if address:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notifier:
            notifier.connect(f"\0{address[1:]}" if address.startswith("@") else address)
            notifier.sendall(state.encode())
