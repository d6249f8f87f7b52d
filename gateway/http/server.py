"""What a worker serves over HTTP: the API with metrics and health, and the downloads of devices."""

from collections.abc import Callable
from datetime import datetime, timedelta

from gateway import secrets
from gateway.http.app import create_app
from gateway.http.downloads import DownloadTally, DownloadTerms, create_downloads_app
from gateway.http.health import create_health_app
from gateway.http.listener import Listener
from gateway.metrics import render
from gateway.mqtt.client import Transport
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
from store.times import now_utc


class HttpServer:
    """The listeners of one worker: both with the role `api`, else one with health and metrics alone.

    Args:
        desk: where commands happen; None without the role.
        blobs: the artifacts; None without the role.
        watched: how devices are watched; None without the role.
        transport: the connection; None without the role `ingest`, and the same for the pipeline.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        desk: Desk | None,
        blobs: Blobs | None,
        watched: WatchTerms | None,
        transport: Transport | None,
        pipeline: Pipeline | None,
    ) -> None:
        def is_ready() -> dict[str, bool]:
            broker = {} if transport is None else {"broker": transport.stats().connected}
            return broker | {"database": _is_there(database)}

        def render_metrics() -> bytes:
            return render(
                None if transport is None else transport.stats(),
                None if pipeline is None else pipeline.tally,
                self.downloads,
            )

        self.downloads = None if blobs is None else DownloadTally()
        self._listeners = [
            Listener(
                create_health_app(is_ready=is_ready, render_metrics=render_metrics)
                if desk is None
                else create_app(
                    desk,
                    watches=None if watched is None else Watches(database, watched),
                    is_ready=is_ready,
                    render_metrics=render_metrics,
                    most_artifact_bytes=settings.blobs.most_bytes,
                ),
                name="http",
                host=settings.http.host,
                port=settings.http.port,
            )
        ]
        if blobs is not None and self.downloads is not None:
            self._listeners.append(_make_downloads(settings, database, blobs, self.downloads))

    def start(self) -> None:
        """Starts listening.

        Raises:
            SetupError: an address is taken.
        """
        for listener in self._listeners:
            listener.start()

    def stop(self) -> None:
        """Ends the listeners."""
        for listener in self._listeners:
            listener.stop()


def _make_downloads(settings: Settings, database: Database, blobs: Blobs, tally: DownloadTally) -> Listener:
    terms = DownloadTerms(
        blobs=blobs,
        keys=[download_key(settings)],
        is_open=lambda device_id, sha256: _is_open(database, device_id, sha256),
        clock=now_utc,
        most_concurrent=settings.downloads.most_concurrent,
    )
    return Listener(
        create_downloads_app(terms, tally),
        name="downloads",
        host=settings.downloads.host,
        port=settings.downloads.port,
        certfile=settings.downloads.certfile,
        keyfile=settings.downloads.keyfile,
    )


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
