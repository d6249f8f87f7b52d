"""The bounds: nothing but our own errors comes out, and no input costs more than 50 ms or 10 MB.

Time is the thread's own CPU time, so a busy machine does not lengthen it; what exceeds it once is measured again,
with every cache of ours emptied, because a collection of garbage is no message's fault. Memory is what Python
allocates (tracemalloc), in runs of their own: tracing makes everything several times slower. What the
cryptographic library allocates by itself is not seen by it; `run.py` bounds the whole process.
"""

import contextlib
import time
import tracemalloc
from typing import Final

from fuzz_targets import Target

from gateway import prover
from provisioning import certificates, envelope
from provisioning.errors import FleetgateError

MOST_CPU_SECONDS: Final = 0.050
MOST_BYTES: Final = 10_000_000


class TooCostlyError(Exception):
    """An input that costs more than it may."""


def run(target: Target, data: bytes) -> float:
    """Runs an input and gives the seconds of CPU it took; what is not our own error goes through."""
    began = time.thread_time()
    with contextlib.suppress(FleetgateError):
        target.run(data)
    return time.thread_time() - began


def measure_seconds(target: Target, data: bytes, *, most: float = MOST_CPU_SECONDS) -> float:
    """The least of several runs, where the first exceeds the bound; each with empty caches."""
    seconds = run(target, data)
    for _ in range(4):
        if seconds <= most:
            break
        forget()
        seconds = min(seconds, run(target, data))
    return seconds


def measure_bytes(target: Target, data: bytes) -> int:
    """The most that Python held at once for an input, beyond what it held before."""
    forget()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        run(target, data)
        return tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


def check(target: Target, data: bytes, *, most: float = MOST_CPU_SECONDS) -> float:
    """Runs an input within the bound of time; gives the seconds.

    Raises:
        TooCostlyError: above it.
    """
    seconds = measure_seconds(target, data, most=most)
    if seconds > most:
        raise TooCostlyError(f"{target.name}: {seconds * 1000:.1f} ms for {len(data)} bytes, at most 50 ms")
    return seconds


def check_memory(target: Target, data: bytes) -> int:
    """Runs an input within the bound of memory; gives the bytes.

    Raises:
        TooCostlyError: above it.
    """
    held = measure_bytes(target, data)
    if held > MOST_BYTES:
        raise TooCostlyError(f"{target.name}: {held / 1e6:.1f} MB for {len(data)} bytes, at most 10 MB")
    return held


def forget() -> None:
    """Empties what is kept between messages: a stranger's message may always be the first of its kind."""
    envelope.load_spki.cache_clear()
    certificates._issuer_string.cache_clear()
    prover._public_key.cache_clear()
    prover._read_certificate.cache_clear()
