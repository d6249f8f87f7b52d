"""Where third-party vectors are read from, and how many ran of those and of our own."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

PROJECT = Path(__file__).resolve().parents[1]
VECTORS = Path(os.environ.get("FLEETGATE_VECTORS", PROJECT.parent / "shared" / "vectors"))

_ran: pytest.StashKey[Counter[str]] = pytest.StashKey()


class Vectors:
    """Loads vector files and counts what was run of each."""

    def __init__(self, ran: "Counter[str]") -> None:
        self._ran = ran

    def load(self, name: str) -> Any:
        """The content of one file; the test is skipped, with the reason printed, where it is absent."""
        path = VECTORS / name
        if not path.is_file():
            self._ran[f"absent {name}"] += 1
            pytest.skip(f"no vectors: {path} is absent (set FLEETGATE_VECTORS)")
        return json.loads(path.read_text("utf-8"))

    def ran(self, name: str, count: int) -> None:
        """Remembers that `count` vectors of one kind were run."""
        self._ran[name] += count


def pytest_configure(config: pytest.Config) -> None:
    """Makes the counter; with pytest-xdist each worker has its own, and hands it over at its end."""
    config.stash[_ran] = Counter()


@pytest.fixture
def vectors(pytestconfig: pytest.Config) -> Vectors:
    """The vectors and their counter."""
    return Vectors(pytestconfig.stash[_ran])


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    """Takes a worker's counts over (pytest-xdist)."""
    node.config.stash.setdefault(_ran, Counter()).update(node.workeroutput.get("vectors", {}))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In a worker: gives the counts to the controller."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output["vectors"] = dict(session.config.stash.get(_ran, Counter()))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Prints how many vectors ran, and which files were absent; nothing where none were asked for."""
    ran = config.stash.get(_ran, Counter())
    if ran:
        parts = ", ".join(f"{count} {name}" for name, count in sorted(ran.items()))
        terminalreporter.write_line(f"vectors run: {parts} (others' from {VECTORS})")
