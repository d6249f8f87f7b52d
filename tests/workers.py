"""Real workers as processes, on one broker and one PostgreSQL, each with an identity and ports of its own."""

import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Final

import httpx
import sqlalchemy as sa
from broker_fixtures import wait_until
from running import Running

from gateway.mqtt.broker import free_ports

START_SECONDS: Final = 60


class Workers:
    """Several `fleetgate serve`; a context manager that starts them, and ends them in order.

    The first has the name of the gateway that ran in the test itself, and takes its session over: an absent member
    would keep its share of the messages.

    Args:
        running: the installation; its own gateway has been stopped.
        url: of the database.
        count: workers.
        directory: for logs and state.
        environment: settings of all, on top of their own.
    """

    def __init__(self, running: Running, url: str, count: int, directory: Path, **environment: str) -> None:
        self._running = running
        self._environments: list[dict[str, str]] = []
        self._processes: dict[int, subprocess.Popen[bytes]] = {}
        self.logs: list[Path] = []
        settings = running.settings
        self.names = [f"worker-{number + 1}" for number in range(count)]
        self.ports = [settings.http.port, *free_ports(2 * count - 1)]
        for number, name in enumerate(self.names):
            own = {
                "FLEETGATE_DATABASE__URL": url,
                "FLEETGATE_WORKER": name,
                "FLEETGATE_BROKER__SESSION_EXPIRY_SECONDS": "60",
                "FLEETGATE_STATE_DIRECTORY": str(directory / f"state-{number}"),
                "FLEETGATE_HTTP__PORT": str(self.ports[number]),
            }
            if number:  # addresses in offers lead to the first; the blobs are the same
                own["FLEETGATE_DOWNLOADS__PORT"] = str(self.ports[count + number - 1])
            self._environments.append(os.environ | own | environment)
            self.logs.append(directory / f"worker-{number}.log")

    def __enter__(self) -> "Workers":
        for number in range(len(self.names)):
            self.start(number)
        for number in range(len(self.names)):
            self.wait_ready(number)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        ended = [self.stop(number) for number in list(self._processes)]
        assert kind is not None or all(code == 0 for code in ended), f"SIGTERM ends each with 0: {ended}"

    def start(self, number: int, *options: str) -> None:
        """Starts a worker that does not run, or tries to."""
        config = str(self._running.installed.installation.settings)
        with self.logs[number].open("ab") as log:
            self._processes[number] = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", config, *options],
                env=self._environments[number],
                stdout=log,
                stderr=log,
            )

    def kill(self, number: int) -> None:
        """`kill -9`."""
        process = self._processes.pop(number)
        process.kill()
        assert process.wait(timeout=30) == -9, self.log_end(number)

    def stop(self, number: int) -> int:
        """SIGTERM; returns the exit code."""
        process = self._processes.pop(number)
        process.terminate()
        return process.wait(timeout=90)

    def ended(self, number: int) -> int | None:
        """The exit code of a worker that has ended by itself."""
        return self._processes[number].poll()

    def forget(self, number: int) -> None:
        """A worker has ended by itself, and another is about to be started in its place."""
        assert self._processes.pop(number).poll() is not None

    def pid(self, number: int) -> int:
        """A worker's process."""
        return self._processes[number].pid

    def is_ready(self, number: int) -> bool:
        """What its `/readyz` says."""
        return is_ready(self.ports[number])

    def wait_ready(self, number: int) -> None:
        """Waits until it has broker and database."""
        wait_until(
            lambda: self.is_ready(number),
            f"{self.names[number]} is ready: {self.log_end(number)}",
            START_SECONDS,
        )

    def leader(self) -> int:
        """The worker that holds the scheduler's lease."""
        with self._running.database.read() as tx:
            holder = tx.connection.execute(sa.text("SELECT holder FROM leases WHERE name = 'scheduler'"))
            return self.names.index(str(holder.scalar_one()))

    def offered(self) -> list[int]:
        """How often each worker made offers, by its log."""
        return [log.read_text().count("offers_made") for log in self.logs]

    def log_end(self, number: int, lines: int = 3) -> str:
        """The end of a worker's log."""
        return " | ".join(self.logs[number].read_text(errors="replace").splitlines()[-lines:])


def is_ready(port: int) -> bool:
    """What `/readyz` on a port says."""
    try:
        return httpx.get(f"http://127.0.0.1:{port}/readyz", trust_env=False).status_code == 200
    except httpx.HTTPError:
        return False
