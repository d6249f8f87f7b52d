"""Devices on connections of their own: full mutual TLS, as a fleet does it after a power cut.

Sockets and contexts as Python has them, a certificate for each device, no session resumed. Several handshakes are
under way at once, in two processes, so that the broker always has one to work on.
"""

import os
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from benchmarks.fleet import Fleet, name_of
from benchmarks.helpers import Helper, Side
from benchmarks.wire import StalledError, connect_packet, subscribe_packet
from benchmarks.world import World

CONNECTING: Final = 4
"""Devices under way at once, in each process: enough to keep the broker busy."""
ARRIVING: Final = 32
"""More, since an arriving device waits for its welcome: after a power cut, hundreds do."""
_DISCONNECT: Final = b"\xe0\x00"
Job = tuple[bytes, bytes, bytes]
"""Certificate and key in PEM, and what is written at once behind the handshake."""


def measure_connects(world: World, fleet: Fleet, numbers: range) -> tuple[float, float]:
    """Full mutual-TLS connections per second, up to the broker's CONNACK.

    Returns:
        The rate, and how much of one core the broker used meanwhile. Devices' side of a handshake costs nearly as
        much as the broker's, on the same cores: B1 is the first divided by the second, so that it is the broker's.
    """
    jobs = [
        (pem, key, connect_packet(name_of(number)))
        for number, (pem, key) in zip(numbers, fleet.pairs(numbers), strict=True)
    ]
    return _run(world, jobs, CONNECTING, b"\x20\x02\x00\x00", b"")


def measure_arrivals(world: World, fleet: Fleet, numbers: range) -> tuple[float, float]:
    """Devices per second that come out of nothing: handshake, CONNECT, SUBSCRIBE, first hello, welcome.

    The three packets leave together: the broker works them in their order.

    Returns:
        The rate, and how much of one core the broker used meanwhile.
    """
    hellos = fleet.hellos(numbers, with_chain=True)
    jobs = []
    for number, (pem, key), hello in zip(numbers, fleet.pairs(numbers), hellos, strict=True):
        name = name_of(number)
        reply = subscribe_packet(f"{world.place.prefix}/{name}/reply", 0)
        jobs.append((pem, key, connect_packet(name) + reply + hello))
    return _run(world, jobs, ARRIVING, b"", b'"result":"welcome"')


def _run(
    world: World, jobs: Sequence[Job], threads: int, answer: bytes, within: bytes
) -> tuple[float, float]:
    place = world.installation
    processes = os.cpu_count() or 1
    helpers = [
        Helper(
            _connect_all,
            place.device_port,
            str(place.broker_ca),
            jobs[at::processes],
            threads,
            answer,
            within,
        )
        for at in range(processes)
    ]
    try:
        for helper in helpers:
            helper.__enter__()
        for helper in helpers:
            helper.wait_ready()
        before, started = world.broker_usage(), time.perf_counter()
        for helper in helpers:
            helper.go()
        failures = [fault for helper in helpers for fault in helper.result()]
        took = time.perf_counter() - started
        busy = (world.broker_usage().cpu_seconds - before.cpu_seconds) / took
    finally:
        for helper in helpers:
            helper.__exit__()
    if failures:
        raise StalledError(f"{len(failures)} of {len(jobs)} devices failed, the first: {failures[0]}")
    return len(jobs) / took, busy


def _connect_all(
    side: Side, port: int, cafile: str, jobs: Sequence[Job], at_once: int, answer: bytes, within: bytes
) -> list[str]:
    """Makes every context beforehand; then connects them all. Returns what went wrong."""
    os.nice(10)  # broker and gateway go first: it is they who are measured
    made = [(_context(cafile, pem, key), written) for pem, key, written in jobs]
    failures: list[str] = []

    def work(share: Sequence[tuple[ssl.SSLContext, bytes]]) -> None:
        for context, written in share:
            try:
                _connect(context, port, written, answer, within)
            except (OSError, StalledError) as error:
                failures.append(f"{type(error).__name__}: {error}")

    threads = [threading.Thread(target=work, args=(made[at::at_once],)) for at in range(at_once)]
    side.say_ready()
    side.wait_go()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return failures


def _context(cafile: str, pem: bytes, key: bytes) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(cafile)
    with tempfile.TemporaryDirectory() as folder:  # ssl takes certificates from files alone
        cert_file, key_file = Path(folder) / "cert", Path(folder) / "key"
        cert_file.write_bytes(pem)
        key_file.write_bytes(key)
        context.load_cert_chain(cert_file, key_file)
    return context


def _connect(context: ssl.SSLContext, port: int, written: bytes, answer: bytes, within: bytes) -> None:
    with (
        socket.create_connection(("localhost", port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as line,
    ):
        line.sendall(written)
        heard = b""
        while not (heard.startswith(answer) and len(heard) >= 4 if answer else within in heard):
            piece = line.recv(16384)
            if not piece:
                raise StalledError(f"the broker closed the connection after {heard!r}")
            heard += piece
        line.sendall(_DISCONNECT)
