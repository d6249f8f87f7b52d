"""The devices of a run: made once, signed shortly before they speak, in as many processes as there are cores.

Each process keeps the keys of its share, so that only finished packets cross over. A signature is good for
300 s (protocol, section 9): `hellos` is called right before a measurement.
"""

import multiprocessing
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import serialization

from benchmarks.wire import publish_packet
from gateway.device.factory import Authority, DeviceCertificate
from gateway.device.messages import Identity, Profile, Voice, new_nonce
from provisioning.ids import TopicName
from provisioning.topics import Up
from store.times import now_utc

DIGITS: Final = 8
"""Of the number that ends each device's name: topics are then of one length, and an answer's index is cheap."""
FIRMWARE: Final = "1.0.0"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where the devices of a run belong."""

    audience: str
    prefix: str
    authority_pem: bytes
    authority_key_pem: bytes

    @property
    def authority(self) -> Authority:
        """The CA that signs them."""
        key: Any = serialization.load_pem_private_key(self.authority_key_pem, None)
        return Authority(cert=x509.load_pem_x509_certificate(self.authority_pem), key=key)

    def index_of(self, body: bytes) -> int:
        """Which device's topic the body of a PUBLISH is for."""
        start = len(self.prefix) + 1 + 2 + 2  # the length of the topic, "<prefix>/", "d-"
        return int(body[start : start + DIGITS])


def name_of(number: int) -> str:
    """A device's topic name."""
    return f"d-{number:0{DIGITS}}"


class Fleet:
    """Processes that hold the devices; made by `fleet_of`."""

    def __init__(self, lines: Sequence[Connection]) -> None:
        self._lines = lines
        self.size = 0

    def grow(self, size: int) -> None:
        """Makes devices up to that many: keys and certificates."""
        if size > self.size:
            self._ask("make", range(self.size, size))
            self.size = size

    def hellos(self, numbers: range, *, with_chain: bool) -> list[bytes]:
        """A signed hello of each on a new connection of its own, as PUBLISH packets."""
        return self._ask("hello", numbers, with_chain)

    def pairs(self, numbers: range) -> list[tuple[bytes, bytes]]:
        """Certificate and key of each, in PEM."""
        return self._ask("pair", numbers)

    def _ask(self, what: str, numbers: range, *more: object) -> list[Any]:
        """Has each process answer for its share, and puts the answers in order."""
        shares = [[n for n in numbers if n % len(self._lines) == at] for at in range(len(self._lines))]
        for line, share in zip(self._lines, shares, strict=True):
            line.send((what, share, more))
        found: dict[int, Any] = {}
        for line, share in zip(self._lines, shares, strict=True):
            found |= zip(share, line.recv(), strict=True)
        return [found[number] for number in numbers]


@contextmanager
def fleet_of(place: Place) -> Iterator[Fleet]:
    """Starts the processes, and ends them with the block."""
    context = multiprocessing.get_context("spawn")
    lines: list[Connection] = []
    processes = []
    for _ in range(os.cpu_count() or 1):
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, place), daemon=True)
        process.start()
        lines.append(ours)
        processes.append(process)
    try:
        yield Fleet(lines)
    finally:
        for line, process in zip(lines, processes, strict=True):
            line.send(("end", [], ()))
            process.join(5)
            if process.is_alive():
                process.kill()


class _Share:
    """One process's devices."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._authority = place.authority
        self._made: dict[int, tuple[DeviceCertificate, Voice]] = {}

    def make(self, number: int) -> None:
        now = now_utc()
        made = self._authority.issue(name_of(number), now=now)
        identity = Identity(topic_name=TopicName(name_of(number)), key=made.key, chain=made.der_chain)
        profile = Profile(model="bench", revision="b", version=FIRMWARE)
        voice = Voice(identity, audience=self._place.audience, prefix=self._place.prefix, profile=profile)
        self._made[number] = (made, voice)

    def hello(self, number: int, with_chain: bool) -> bytes:
        _, voice = self._made[number]
        voice.begin_connection()
        payload = voice.hello(nonce=new_nonce(), ts=int(time.time() * 1000), with_chain=with_chain)
        return publish_packet(voice.topic(Up.HELLO), payload, number)

    def pair(self, number: int) -> tuple[bytes, bytes]:
        made, _ = self._made[number]
        return made.pem, made.key_pem


def _serve(line: Connection, place: Place) -> None:
    share = _Share(place)
    while True:
        what, numbers, more = line.recv()
        if what == "end":
            return
        line.send([getattr(share, what)(number, *more) for number in numbers])
