"""The listener for API, metrics and health: uvicorn in a thread of the service."""

import threading
from typing import Final

import uvicorn

from gateway.http.app import create_app
from gateway.metrics import render
from gateway.mqtt.capath import CaPath
from gateway.mqtt.client import Transport
from gateway.operations.authorities import sync_capath
from gateway.operations.desk import Desk
from gateway.pipeline import Pipeline
from gateway.settings import Settings
from provisioning.errors import SetupError, StoreError
from store import migrate
from store.database import Database
from store.ids import new_id
from store.times import now_utc

START_SECONDS: Final = 10.0


class ApiServer:
    """The API of one worker."""

    def __init__(
        self, settings: Settings, database: Database, transport: Transport, pipeline: Pipeline
    ) -> None:
        self._desk = Desk(
            database=database,
            clock=now_utc,
            new_id=new_id,
            capath=CaPath(settings.broker.capath),
            broker=settings.broker.name,
            worker=settings.worker,
            audience=settings.audience,
        )
        app = create_app(
            self._desk,
            is_ready=lambda: {"broker": transport.stats().connected, "database": _is_there(database)},
            render_metrics=lambda: render(transport.stats(), pipeline.tally),
        )
        self._address = f"{settings.http.host}:{settings.http.port}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=settings.http.host,
                port=settings.http.port,
                log_level="warning",
                lifespan="off",
                access_log=False,
            )
        )
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._run, name="api", daemon=True)
        self._ended = threading.Event()

    def start(self) -> None:
        """Starts listening, and brings the broker's capath in step.

        Raises:
            SetupError: the address is taken, or the capath cannot be written.
        """
        try:
            sync_capath(self._desk)
        except OSError as error:
            raise SetupError(
                f"broker.capath cannot be written: {error}; `fleetgate doctor` checks it"
            ) from error
        self._thread.start()
        while not self._server.started:
            if self._ended.wait(0.02):
                raise SetupError(f"http listener {self._address} could not be opened; is the port taken?")

    def stop(self) -> None:
        """Ends the listener."""
        self._server.should_exit = True
        self._thread.join(timeout=START_SECONDS)

    def _run(self) -> None:
        try:
            self._server.run()
        except SystemExit:  # how uvicorn says that it cannot listen; `start` turns it into words
            pass
        finally:
            self._ended.set()


def _is_there(database: Database) -> bool:
    try:
        migrate.check(database)
    except (SetupError, StoreError):
        return False
    return True
