"""Who may write now: a fair lock within a process, and numbers for PostgreSQL's advisory locks."""

import hashlib
import threading
from collections import deque
from collections.abc import Iterable
from types import TracebackType


class FairLock:
    """A lock that goes to whoever has waited longest.

    `threading.Lock` gives no such promise: a worker that writes back to back starved a second writer to its
    time limit. SQLite has one writer anyway, so fairness in front of it costs nothing.
    """

    def __init__(self) -> None:
        self._mutex = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Event] = deque()

    def __enter__(self) -> None:
        with self._mutex:
            if not self._held:
                self._held = True
                return
            turn = threading.Event()
            self._waiting.append(turn)
        turn.wait()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().set()
            else:
                self._held = False


def advisory_keys(names: Iterable[str]) -> list[int]:
    """The advisory lock numbers (signed 64 bits) of `names`, sorted, each once, so that nobody deadlocks."""
    return sorted(
        {
            int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big", signed=True)
            for name in names
        }
    )


def device_lock(broker: str, topic_name: str) -> str:
    """The name under which everybody who decides over a device locks it."""
    return f"{broker}/{topic_name}"
