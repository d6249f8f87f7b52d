"""The demo's stage: a real installation, broker and service, in one folder on free ports."""

import contextlib
import json
import os
import pwd
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import httpx

from gateway.cli.init import create_first_organization
from gateway.device.fleet import Broker
from gateway.installation import Installation, create_installation
from gateway.settings import Settings
from provisioning.errors import NotFoundError, SetupError
from store.times import now_utc

MARKER: Final = ".fleetgate-demo"
START_SECONDS: Final = 30.0
Say = Callable[[str, str], None]
"""Tells a step: a sentence, and the command that does it ('' for none)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A running installation."""

    place: Installation
    settings: Settings

    @property
    def broker(self) -> Broker:
        """Where its devices dial."""
        return Broker(
            host=self.place.device_host,
            port=self.place.device_port,
            cafile=self.place.broker_ca,
            audience=self.place.audience,
            prefix=self.place.prefix,
        )


@contextlib.contextmanager
def running_demo(directory: Path, say: Say) -> Iterator[Stage]:
    """Installs, starts broker and gateway, and ends both.

    Args:
        directory: taken over if an earlier demo made it, or it is empty or not there.
        say: is told each step.

    Raises:
        SetupError: the folder is somebody else's, or a part does not start.
    """
    _take_over(directory)
    host = "localhost"
    say(
        "Make an installation: broker PKI, secrets, settings, first admin key",
        f"fleetgate init {directory} --device-host {host}",
    )
    account = _account()
    place = create_installation(
        directory,
        device_host=host,
        now=now_utc(),
        device_port=0,
        gateway_port=0,
        http_port=0,
        download_port=0,
        owner=account,
        broker_user=account,
    )
    (directory / MARKER).write_text(
        json.dumps(
            {
                "host": place.device_host,
                "port": place.device_port,
                "cafile": str(place.broker_ca),
                "audience": place.audience,
                "prefix": place.prefix,
            }
        )
    )
    settings = Settings.load(place.settings)
    create_first_organization(settings, "demo")
    say("Start the broker on the shipped configuration", f"mosquitto -c {place.configuration}")
    with place.local_broker():
        say("Start the gateway", f"fleetgate serve --config {place.settings}")
        with _served(place, settings):
            yield Stage(place=place, settings=settings)


def find_broker(directory: Path) -> Broker:
    """Where the devices of the demo in `directory` dial.

    Raises:
        NotFoundError: no demo has been there.
    """
    marker = directory / MARKER
    if not marker.is_file():
        raise NotFoundError(f"no demo in {directory}: start `make demo` first, in another terminal")
    values = json.loads(marker.read_text())
    return Broker(**{**values, "cafile": Path(values["cafile"])})


@contextlib.contextmanager
def _served(place: Installation, settings: Settings) -> Iterator[None]:
    """The real service as a process of its own, until its `/readyz` says so; ended by SIGTERM."""
    log = place.directory / "gateway.log"
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "gateway", "serve", "--config", str(place.settings)],
            stdout=out,
            stderr=out,
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    try:
        pause = threading.Event()
        for _ in range(int(START_SECONDS / 0.1)):
            if process.poll() is not None:
                raise SetupError(f"the gateway ended with {process.returncode}; its log: {log}")
            if _is_ready(settings.http.url):
                break
            pause.wait(0.1)
        else:
            raise SetupError(f"the gateway was not ready within {START_SECONDS:.0f} s; its log: {log}")
        yield
    finally:
        process.terminate()
        process.wait(timeout=60)


def _is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.HTTPError, json.JSONDecodeError):
        return httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False).status_code == 200
    return False


def _take_over(directory: Path) -> None:
    if not directory.exists() or not any(directory.iterdir()):
        return
    if not (directory / MARKER).exists():
        raise SetupError(f"{directory} is not empty and no demo made it; give another with --directory")
    shutil.rmtree(directory)


def _account() -> str:
    return pwd.getpwuid(os.getuid()).pw_name
