"""A simulated fleet: thousands of devices in one thread, each with its own key and mutual-TLS connection.

One selector serves every connection, woken by what happens and never by going round: sockets that can be
read, devices that have something to write, timers, and downloads that are done in a few background threads.
"""

import contextlib
import hashlib
import heapq
import itertools
import queue
import resource
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Final

import httpx

from gateway.device.messages import Result, full_jitter, spread
from gateway.device.plans import Broker, Outcome, Plan
from gateway.device.simulated import SimulatedDevice
from gateway.device.updates import Offer

__all__ = ["Broker", "Fleet", "FleetReport", "Outcome", "Plan"]

MISC_SECONDS: Final = 5.0
SELECT_SECONDS: Final = 0.05
DOWNLOADERS: Final = 4
TRIES: Final = 8


@dataclass(slots=True, kw_only=True)
class FleetReport:
    """What a fleet saw."""

    outcomes: list[Outcome] = field(default_factory=list)

    @property
    def welcomed(self) -> list[Outcome]:
        """Those that were welcomed."""
        return [outcome for outcome in self.outcomes if outcome.result == Result.WELCOME]

    @property
    def refused(self) -> Counter[str]:
        """Refusals by reason."""
        return Counter(outcome.reason or "" for outcome in self.outcomes if outcome.result == Result.REJECTED)

    @property
    def by_product(self) -> Counter[str]:
        """Welcomes by product."""
        return Counter(outcome.product or "" for outcome in self.welcomed)

    @property
    def updates(self) -> Counter[str]:
        """Offers by how they ended."""
        return Counter(result for outcome in self.outcomes for result in outcome.updates.values())

    def latency_ms(self, share: float) -> float | None:
        """The latency below which `share` (0–1) of the welcomes lie, hello published → reply received."""
        times = sorted(outcome.latency_ms for outcome in self.welcomed if outcome.latency_ms is not None)
        return round(times[min(len(times) - 1, int(len(times) * share))], 3) if times else None


class Fleet:
    """Runs many devices in this thread.

    Args:
        plans: the devices.
        broker: where they dial.
        connects_per_second: pace of the first connects; 0: as fast as they go.
    """

    def __init__(self, plans: Sequence[Plan], broker: Broker, *, connects_per_second: float = 0.0) -> None:
        self._selector = selectors.DefaultSelector()
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._touched: dict[int, SimulatedDevice] = {}
        self._dialling: deque[SimulatedDevice] = deque()
        self._lines: dict[int, tuple[Any, SimulatedDevice]] = {}
        self._done: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._waker, self._wakes = socket.socketpair()
        for end in (self._waker, self._wakes):
            end.setblocking(False)
        self._selector.register(self._wakes, selectors.EVENT_READ, None)
        self._downloads = ThreadPoolExecutor(DOWNLOADERS, thread_name_prefix="download")
        self._http = httpx.Client(timeout=30.0, trust_env=False)
        self._next_misc = 0.0
        self._pause = 1.0 / connects_per_second if connects_per_second else 0.0
        self._next_dial = 0.0
        self._closing = False
        self._stopping = threading.Event()
        _allow_files(len(plans) + 100)
        self.devices = [SimulatedDevice(plan, broker, self) for plan in plans]

    def run(
        self,
        seconds: float,
        *,
        on_change: Callable[["Fleet"], None] = lambda _: None,
        until_done: bool = True,
        until: Callable[["Fleet"], bool] = lambda _: True,
    ) -> FleetReport:
        """Connects all, and serves them until each is answered, or the time is over.

        Args:
            seconds: time limit.
            on_change: called some twenty times a second, for a view.
            until_done: end as soon as every device has its answer, and `until` says so too.
        """
        ends = time.monotonic() + seconds
        self._dialling.extend(self.devices)
        while time.monotonic() < ends:
            self.serve(SELECT_SECONDS)
            on_change(self)
            if until_done and all(device.outcome.done for device in self.devices) and until(self):
                break
        return self.report()

    def report(self) -> FleetReport:
        """What the devices have seen so far."""
        return FleetReport(outcomes=[device.outcome for device in self.devices])

    def serve(self, wait_seconds: float) -> None:
        """One round: whatever is ready, or `wait_seconds` of waiting for it."""
        self._dial_next()
        self._write()
        if self._timers:
            wait_seconds = min(wait_seconds, max(0.0, self._timers[0][0] - time.monotonic()))
        if self._dialling:
            wait_seconds = min(wait_seconds, max(0.0, self._next_dial - time.monotonic()))
        for key, _ in self._selector.select(wait_seconds):
            if key.data is None:
                with contextlib.suppress(BlockingIOError):
                    self._wakes.recv(4096)
                continue
            self._read(key.data)
        while not self._done.empty():
            self._done.get()()
        now = time.monotonic()
        while self._timers and self._timers[0][0] <= now:
            heapq.heappop(self._timers)[2]()
        if now >= self._next_misc:
            self._next_misc = now + MISC_SECONDS
            for _, device in list(self._lines.values()):
                if device.client is not None:
                    device.client.loop_misc()
                    self.touched(device)
        self._write()

    def close(self) -> None:
        """Every device says goodbye."""
        self._closing = True
        self._stopping.set()
        for device in self.devices:
            device.leave()
        self._write()
        self._selector.close()
        self._downloads.shutdown(wait=True, cancel_futures=True)
        self._http.close()
        for end in (self._waker, self._wakes):
            end.close()

    # --- What devices ask for

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        """Calls `act` once, after so long."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._numbers), act))

    def dial(self, device: SimulatedDevice) -> None:
        """Connects a device when its turn comes."""
        if device.client is None and not self._closing:
            self._dialling.append(device)

    def touched(self, device: SimulatedDevice) -> None:
        """Says that a device has something to write."""
        self._touched[id(device)] = device

    def download(self, offer: Offer, then: Callable[[bool], None]) -> None:
        """Gets and checks every artifact of an offer in the background."""

        def work() -> None:
            ok = all(self._fetch(one.url, one.sha256) for one in offer.artifacts)
            self._done.put(lambda: then(ok))
            with contextlib.suppress(OSError):
                self._waker.send(b"x")

        self._downloads.submit(work)

    def _fetch(self, url: str, sha256: str) -> bool:
        """Downloads and digests; tries again for a while, since gateways restart, and asks when to come back."""
        for tries in range(1, TRIES + 1):
            found = hashlib.sha256()
            wait = full_jitter(tries, first=0.5)
            try:
                with self._http.stream("GET", url) as response:
                    if response.is_success:
                        for chunk in response.iter_bytes():
                            found.update(chunk)
                        return found.hexdigest() == sha256
                    wait = spread(float(response.headers.get("retry-after", wait)))
            except httpx.HTTPError:
                pass  # broken, or nobody there at the moment
            if self._stopping.wait(wait):
                return False
        return False

    # --- Connections

    def _dial_next(self) -> None:
        now = time.monotonic()
        if not self._dialling or now < self._next_dial:
            return
        self._next_dial = max(self._next_dial, now - 1.0) + self._pause
        device = self._dialling.popleft()
        if device.client is not None:
            return
        try:
            device.connect()
        except OSError:
            device.lost()
            return
        line = None if device.client is None else device.client.socket()
        if line is None:  # closed by the broker while the CONNECT was written
            device.lost()
            return
        self._selector.register(line, selectors.EVENT_READ, device)
        self._lines[id(device)] = (line, device)
        self.touched(device)

    def _read(self, device: SimulatedDevice) -> None:
        client = device.client
        if client is None:
            return
        while client.loop_read() == 0 and client.socket() is not None:
            pending = getattr(client.socket(), "pending", None)
            if pending is None or pending() == 0:
                break
        self.touched(device)

    def _write(self) -> None:
        while self._touched:
            _, device = self._touched.popitem()
            client = device.client
            if client is None:
                continue
            while client.socket() is not None and client.want_write():
                if client.loop_write() != 0:
                    break
            line = client.socket()
            if line is None or line.fileno() < 0:
                self._forget(device)

    def _forget(self, device: SimulatedDevice) -> None:
        line, _ = self._lines.pop(id(device), (None, None))
        if line is not None:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(line)
        device.lost()


def _allow_files(count: int) -> None:
    """Raises the limit of open files as far as this account may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < count + 256:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 256)), hard))
