"""One HTTP listener: uvicorn in a thread of the service, started and stopped like its other parts."""

import threading
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

from provisioning.errors import SetupError

STOP_SECONDS: Final = 10.0


class Listener:
    """Serves one application on one address.

    Args:
        name: of the thread, and in messages.
        certfile, keyfile: for HTTPS; none: plain HTTP.
    """

    def __init__(
        self,
        app: FastAPI,
        *,
        name: str,
        host: str,
        port: int,
        certfile: Path | None = None,
        keyfile: Path | None = None,
    ) -> None:
        self._name = name
        self._address = f"{host}:{port}"
        self._server = uvicorn.Server(
            uvicorn.Config(
                app,
                host=host,
                port=port,
                log_level="warning",
                lifespan="off",
                access_log=False,
                ssl_certfile=certfile,
                ssl_keyfile=keyfile,
                timeout_graceful_shutdown=int(STOP_SECONDS / 2),
            )
        )
        self._server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._ended = threading.Event()

    def start(self) -> None:
        """Starts listening.

        Raises:
            SetupError: the address is taken.
        """
        self._thread.start()
        while not self._server.started:
            if self._ended.wait(0.02):
                raise SetupError(
                    f"{self._name} listener {self._address} could not be opened; is the port taken?"
                )

    def stop(self) -> None:
        """Ends the listener."""
        self._server.should_exit = True
        if self._thread.ident is not None:
            self._thread.join(timeout=STOP_SECONDS)

    def _run(self) -> None:
        try:
            self._server.run()
        except SystemExit:  # how uvicorn says that it cannot listen; `start` turns it into words
            pass
        finally:
            self._ended.set()
