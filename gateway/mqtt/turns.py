"""Whose turn it is to read and write: one thread at a time, and one that waits for messages before all others.

The one that waits reads and works what it has read; two threads that take turns at one interpreter for every message
cost a hello twice its time (docs/decisions/0009-two-packets-of-our-own.md). A keeper has the turn where nobody has
waited for a while.
"""

import contextlib
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Final

from store.locks import FairLock

_PATIENCE_SECONDS: Final = 0.25  # how long the connection may be left alone between two waits for messages
_TICK_MILLISECONDS: Final = 500  # keepalive and deadlines are looked at this often


class Turns:
    """The turn, and the waking of who has it and waits at the socket."""

    def __init__(self) -> None:
        self._waker: Final = Waker()
        # Fair: the keeper takes it again at once, and must not be faster than who waits.
        self._turn: Final = FairLock()
        self._worker_waits = False
        self._worked_at = 0.0
        self._attention = threading.Event()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """The turn for who waits for messages; the keeper gives it up at once."""
        self._worker_waits = True
        self._waker.wake()
        with self._turn:
            self._waker.own()
            try:
                yield
            finally:
                self._worker_waits, self._worked_at = False, time.monotonic()

    @contextlib.contextmanager
    def keep(self, *, alone: bool) -> Iterator[bool]:
        """The turn for the keeper: False where somebody else looks after the connection, after a moment's wait.

        Args:
            alone: whether nobody else will.
        """
        if not alone and self._is_looked_after():
            self._attention.wait(_PATIENCE_SECONDS)
            self._attention.clear()
            yield False
            return
        with self._turn:
            self._waker.own()
            if self._worker_waits:
                # It came before that, when the waker was still its own, and could not wake us.
                self._waker.wake(myself=True)
            yield alone or not self._worker_waits

    @contextlib.contextmanager
    def stop(self) -> Iterator[None]:
        """The turn, with nothing to be read or written: what belongs to a connection can be put away."""
        with self._turn:
            yield

    def notice(self) -> None:
        """Has the keeper look what there is to do, wherever it waits."""
        self._attention.set()
        self._waker.wake()

    def wake(self) -> None:
        """There is something to be written."""
        self._waker.wake()

    def wait(self, sock: socket.socket, *, reading: bool, writing: bool, timeout_seconds: float) -> bool:
        """As `Waker.wait`, for who has the turn."""
        return self._waker.wait(sock, reading=reading, writing=writing, timeout_seconds=timeout_seconds)

    def close(self) -> None:
        """Gives its sockets back; nobody has the turn any more."""
        self._waker.close()

    def _is_looked_after(self) -> bool:
        return self._worker_waits or time.monotonic() - self._worked_at < _PATIENCE_SECONDS


class Waker:
    """Wakes the thread that has the turn out of `poll`, when another has work for it."""

    def __init__(self) -> None:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._woken = False
        self._owner: int | None = None

    def own(self) -> None:
        """Says that the calling thread is the one to be woken, which need not wake itself."""
        self._owner = threading.get_ident()

    def wake(self, *, myself: bool = False) -> None:
        """Wakes it; again before it has woken up costs nothing.

        Args:
            myself: also where it is the calling thread, whose next wait then ends at once.
        """
        if self._woken or (not myself and threading.get_ident() == self._owner):
            return
        self._woken = True
        with contextlib.suppress(OSError):  # full: it wakes anyway; closed: nobody to wake
            self._writer.send(b"\0")

    def wait(self, sock: socket.socket, *, reading: bool, writing: bool, timeout_seconds: float) -> bool:
        """Waits for `sock` or a wake-up, for as long, and a tick at most.

        Returns: whether there is something to be read of `sock`, or it has ended.
        """
        # Not select(): file descriptors of 1024 and above are common in tests and fleets.
        poll = select.poll()
        poll.register(self._reader, select.POLLIN)
        poll.register(sock, (select.POLLIN if reading else 0) | (select.POLLOUT if writing else 0))
        ready = dict(poll.poll(max(0, min(timeout_seconds * 1000, _TICK_MILLISECONDS))))
        if ready.pop(self._reader.fileno(), 0):
            self._woken = False  # before the pipe is emptied and work is looked for: no call is lost
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(4096)
        return bool(ready.get(sock.fileno(), 0) & (select.POLLIN | select.POLLHUP | select.POLLERR))

    def close(self) -> None:
        """Gives its sockets back; the thread has ended."""
        self._reader.close()
        self._writer.close()
