"""What a worker serves over HTTP: the API with metrics and health, and the downloads of devices."""

from collections.abc import Callable
from datetime import datetime, timedelta

from gateway import secrets
from gateway.http.app import create_app
from gateway.http.downloads import DownloadTally, DownloadTerms, create_downloads_app
from gateway.http.listener import Listener
from gateway.metrics import render
from gateway.mqtt.capath import CaPath
from gateway.mqtt.client import Transport
from gateway.operations.authorities import sync_capath
from gateway.operations.desk import Desk
from gateway.pipeline import Pipeline
from gateway.settings import Settings
from gateway.watching import Watches, WatchTerms
from provisioning.downloads import make_token
from provisioning.errors import SetupError, StoreError
from provisioning.ids import DeviceId
from store import attempts, migrate
from store.blobs import Blobs
from store.database import Database
from store.ids import new_id
from store.times import now_utc


class HttpServer:
    """The two listeners of one worker."""

    def __init__(
        self,
        settings: Settings,
        database: Database,
        blobs: Blobs,
        transport: Transport,
        pipeline: Pipeline,
        wake: Callable[[], None],
        watched: WatchTerms,
    ) -> None:
        self._desk = Desk(
            database=database,
            clock=now_utc,
            new_id=new_id,
            capath=CaPath(settings.broker.capath),
            broker=settings.broker.name,
            worker=settings.worker,
            audience=settings.audience,
            blobs=blobs,
            wake=wake,
        )
        self.downloads = DownloadTally()
        self._listeners = (
            Listener(
                create_app(
                    self._desk,
                    watches=Watches(database, watched),
                    is_ready=lambda: {"broker": transport.stats().connected, "database": _is_there(database)},
                    render_metrics=lambda: render(transport.stats(), pipeline.tally, self.downloads),
                    most_artifact_bytes=settings.blobs.most_bytes,
                ),
                name="http",
                host=settings.http.host,
                port=settings.http.port,
            ),
            Listener(
                create_downloads_app(
                    DownloadTerms(
                        blobs=blobs,
                        keys=[download_key(settings)],
                        is_open=lambda device_id, sha256: _is_open(database, device_id, sha256),
                        clock=now_utc,
                        most_concurrent=settings.downloads.most_concurrent,
                    ),
                    self.downloads,
                ),
                name="downloads",
                host=settings.downloads.host,
                port=settings.downloads.port,
                certfile=settings.downloads.certfile,
                keyfile=settings.downloads.keyfile,
            ),
        )

    def start(self) -> None:
        """Starts listening, and brings the broker's capath in step.

        Raises:
            SetupError: an address is taken, or the capath cannot be written.
        """
        try:
            sync_capath(self._desk)
        except OSError as error:
            raise SetupError(
                f"broker.capath cannot be written: {error}; `fleetgate doctor` checks it"
            ) from error
        for listener in self._listeners:
            listener.start()

    def stop(self) -> None:
        """Ends the listeners."""
        for listener in self._listeners:
            listener.stop()


def download_key(settings: Settings) -> bytes:
    """The key that addresses of artifacts are signed with."""
    return secrets.derive(secrets.load_root_secret(settings.root_secret_file), "download v1")


def make_links(settings: Settings) -> Callable[[DeviceId, str, str, datetime], str]:
    """Makes the address of an artifact for a device."""
    key, base = download_key(settings), settings.downloads.public_url.rstrip("/")
    life = timedelta(seconds=settings.downloads.url_seconds)

    def link(device_id: DeviceId, sha256: str, name: str, now: datetime) -> str:
        return f"{base}/d/{make_token(key, device_id, sha256, now + life)}/{sha256}/{name}"

    return link


def _is_open(database: Database, device_id: DeviceId, sha256: str) -> bool:
    with database.read() as tx:
        return attempts.is_offered(tx, device_id, sha256)


def _is_there(database: Database) -> bool:
    try:
        migrate.check(database)
    except (SetupError, StoreError):
        return False
    return True
