"""What each safeguard of the hello path costs: the pipeline in this process, with one of them taken away at a time.

Known devices' hellos in full batches, on SQLite, without a broker. What is taken away is put back at once; the
differences are small and a machine is never quite quiet: each is the least of several turns, held against as many with
everything, in between.
"""

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final
from unittest import mock

from fleets import Fleet, Said, hello, make_fleet
from sqlalchemy import event

from gateway.device.messages import Voice
from store import migrate
from store.database import Database

TURNS: Final = 8
BATCH: Final = 200
Patches = Callable[[Database], contextlib.AbstractContextManager[Any]]


def _patch(target: str, new: object) -> Patches:
    return lambda _: mock.patch(target, new)


@contextlib.contextmanager
def _plain_json() -> Iterator[None]:
    def read(data: bytes, _most: int = 0) -> object:
        return json.loads(data)

    with (
        mock.patch("provisioning.envelope.parse_json", read),
        mock.patch("provisioning.messages.parse_json", read),
    ):
        yield


@contextlib.contextmanager
def _fast_commits(database: Database) -> Iterator[None]:
    """SQLite as most programs run it: the last commits before a power cut are lost."""
    database.engine.dispose()

    def relax(connection: Any, _record: object) -> None:
        connection.execute("PRAGMA synchronous = NORMAL")

    event.listen(database.engine, "connect", relax)
    try:
        yield
    finally:
        event.remove(database.engine, "connect", relax)
        database.engine.dispose()


SAFEGUARDS: Final[dict[str, Patches]] = {
    "the signature of every message": _patch("gateway.prover.verify_envelope", lambda *_: None),
    "CA, certificate and dates on every message": _patch("gateway.prover.check_validity", lambda *_: None),
    "strict JSON, of envelope and payload": lambda _: _plain_json(),
    "events, and counters that change with their cause": _patch(
        "store.writer.counters.record", lambda *_: None
    ),
    "a commit that outlives a power cut": _fast_commits,
}


def measure_safeguards(directory: Path, devices: int) -> dict[str, dict[str, float]]:
    """Microseconds of one known device's hello: with everything, and what each safeguard is of it."""
    database = Database(f"sqlite:///{directory / 'safeguards.db'}")
    migrate.upgrade(database)
    try:
        fleet = make_fleet(database, directory)
        fleet.product("bench")
        voices: list[Voice] = []
        for start in range(0, devices, BATCH):
            names = [f"dev-{number}" for number in range(start, min(start + BATCH, devices))]
            voices += fleet.enroll("bench", *names)
        whole: dict[str, list[tuple[float, float]]] = {name: [] for name in SAFEGUARDS}
        without: dict[str, list[tuple[float, float]]] = {name: [] for name in SAFEGUARDS}
        for _ in range(TURNS):
            for name, patches in SAFEGUARDS.items():
                whole[name].append(_cost(fleet, voices))
                with patches(database):
                    without[name].append(_cost(fleet, voices))
    finally:
        database.close()
    least = {name: _least(costs) for name, costs in whole.items()}
    found = {"everything": _least([*least.values()])}
    for name, (cpu, wall) in least.items():
        without_cpu, without_wall = _least(without[name])
        found[name] = cpu - without_cpu, wall - without_wall
    return {name: {"CPU, µs": cpu, "time, µs": wall} for name, (cpu, wall) in found.items()}


def _least(costs: list[tuple[float, float]]) -> tuple[float, float]:
    return min(cpu for cpu, _ in costs), min(wall for _, wall in costs)


def _cost(fleet: Fleet, voices: list[Voice]) -> tuple[float, float]:
    """CPU and wall-clock microseconds of a hello; everybody speaks twice, and the second time counts."""
    _say(fleet, voices)
    return _say(fleet, voices)


def _say(fleet: Fleet, voices: list[Voice]) -> tuple[float, float]:
    said: list[Said] = []
    for voice in voices:
        voice.begin_connection()
        said.append(hello(voice, with_chain=False))
    cpu, wall = time.process_time(), time.perf_counter()
    for start in range(0, len(said), BATCH):
        fleet.hear(*said[start : start + BATCH])
    return (
        (time.process_time() - cpu) / len(said) * 1e6,
        (time.perf_counter() - wall) / len(said) * 1e6,
    )
