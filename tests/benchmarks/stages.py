"""Where the microseconds of one hello go: the service in a process of this benchmark, with a watch on each stage.

Only here is anything of the product replaced: its functions are wrapped, and call through. What is counted is the
CPU time of the thread, so that waiting for other threads counts nowhere, and the stages add up to the process.
"""

import contextlib
import functools
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, Final

from benchmarks.helpers import Helper, Side
from benchmarks.world import World
from gateway.mqtt.broker import free_ports

STAGES: Final = (
    "receive", "parse", "verify", "lock", "load", "decide", "apply", "commit", "offers", "publish", "acknowledge",
    "send", "between", "other threads",
)  # fmt: skip
"""`send` writes replies and acknowledgements to the socket; `between` is the rest of the worker's thread."""

_WRAPPED: Final = (
    ("gateway.mqtt.session", "Session", "read", "receive"),
    ("gateway.prover", "Prover", "parse", "parse"),
    ("gateway.prover", "Prover", "verify", "verify"),
    ("store.facts", "", "load_working_set", "load"),
    ("gateway.pipeline", "Pipeline", "_decide", "decide"),
    ("store.writer", "", "apply", "apply"),
    ("gateway.offering", "Offering", "complete", "offers"),
    ("gateway.ingest", "Ingest", "_publish", "publish"),
    ("gateway.mqtt.client", "Transport", "acknowledge", "acknowledge"),
)
"""Module, class, function, stage."""


class Watch:
    """CPU seconds by stage; a stage within another is taken out of it."""

    def __init__(self) -> None:
        self.spent: defaultdict[tuple[str, str], float] = defaultdict(float)  # thread's name, stage
        self._inner = threading.local()

    def wrap(self, function: Callable[..., Any], stage: str) -> Callable[..., Any]:
        """The function, watched."""

        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with self.measure(stage):
                return function(*args, **kwargs)

        return watched

    @contextlib.contextmanager
    def measure(self, stage: str) -> Iterator[None]:
        """Counts the block as `stage`."""
        outer = getattr(self._inner, "seconds", 0.0)
        self._inner.seconds = 0.0
        started = time.thread_time()
        try:
            yield
        finally:
            took = time.thread_time() - started
            self.spent[threading.current_thread().name, stage] += took - self._inner.seconds
            self._inner.seconds = outer + took

    def wrap_database(self, database: type) -> None:
        """Splits `Database.write` into its begin, with the locks, and its commit."""
        write = database.write  # type: ignore[attr-defined]

        @contextlib.contextmanager
        def watched(one: Any, *args: Any, **kwargs: Any) -> Iterator[Any]:
            with contextlib.ExitStack() as stack:
                opened = write(one, *args, **kwargs)
                with self.measure("lock"):
                    tx = opened.__enter__()
                stack.push(functools.partial(self._close, opened))
                yield tx

        database.write = watched  # type: ignore[attr-defined]

    def _close(self, opened: Any, *error: Any) -> Any:
        with self.measure("commit"):
            return opened.__exit__(*error)


def list_wrapped() -> list[tuple[Any, str, str]]:
    """What is watched: the module or class, the function's name there, the stage.

    Raises:
        AttributeError: the product has no such function any more.
    """
    found = []
    for module, owner, name, stage in _WRAPPED:
        place: Any = import_module(module)
        place = getattr(place, owner) if owner else place
        getattr(place, name)
        found.append((place, name, stage))
    return found


def measure_stages(
    world: World, url: str, loads: dict[str, Callable[[], int]]
) -> dict[str, dict[str, float]]:
    """Microseconds of CPU time per hello, by stage, for each load.

    Args:
        loads: by name, what drives hellos through the broker and returns how many.
    """
    ports = free_ports(2)
    found = {}
    settings, environment = str(world.installation.settings), world.environment(url, 1, *ports)
    with Helper(_serve, settings, environment, str(world.directory / "gateway.log")) as helper:
        helper.wait_ready()
        for name, drive in loads.items():
            before = helper.ask("snapshot")
            hellos = drive()
            after = helper.ask("snapshot")
            found[name] = {key: (after[key] - before[key]) / hellos * 1e6 for key in after}
        helper.ask("end")
        helper.result()
    return found


def _serve(side: Side, settings_file: str, environment: dict[str, str], log: str) -> bool:
    """Runs the service, watched, until it is told to end."""
    os.environ.update(environment)
    os.dup2(os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT), 2)
    from gateway import logs
    from gateway.service import Gateway, spare_collections
    from gateway.settings import Settings
    from store.database import Database

    watch = Watch()
    for place, name, stage in list_wrapped():
        setattr(place, name, watch.wrap(getattr(place, name), stage))
    watch.wrap_database(Database)
    settings = Settings.load(Path(settings_file))
    settings.state_directory.mkdir(parents=True, exist_ok=True)
    logs.configure(settings.log)
    database = Database(settings.database.url)
    gateway = Gateway(settings, database)
    gateway.start()
    spare_collections()
    assert gateway.transport.wait_ready(30)
    side.say_ready()
    while side.asked() == "snapshot":
        side.answer(_snapshot(watch))
    side.answer(True)
    gateway.stop()
    database.close()
    return True


def _snapshot(watch: Watch) -> dict[str, float]:
    threads = {thread.name: _thread_seconds(thread.native_id) for thread in threading.enumerate()}
    spent = dict.fromkeys(STAGES, 0.0)
    for (thread, stage), seconds in watch.spent.items():
        if thread in ("mqtt", "ingest"):
            spent[stage] += seconds
    of_mqtt = sum(seconds for (thread, _), seconds in watch.spent.items() if thread == "mqtt")
    of_ingest = sum(seconds for (thread, _), seconds in watch.spent.items() if thread == "ingest")
    spent["send"] += threads["mqtt"] - of_mqtt
    spent["between"] += threads["ingest"] - of_ingest
    spent["other threads"] += time.process_time() - threads["mqtt"] - threads["ingest"]
    return spent


def _thread_seconds(native_id: int | None) -> float:
    """CPU time of a thread of this process (Linux: nanoseconds in schedstat)."""
    return int(Path(f"/proc/self/task/{native_id}/schedstat").read_text().split()[0]) / 1e9
