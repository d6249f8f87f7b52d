"""A herd: thousands of devices that come back at once after a broker's restart, and that are gone at once.

`make herd DEVICES=10000` prints the figures; `test_soak.py` runs a smaller one. Meanwhile ten other
devices go on saying hello, and how long any of them waits is the measure of whether others are served.
"""

import argparse
import contextlib
import pickle
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Empty
from typing import Final

import httpx
import sqlalchemy as sa
from broker_fixtures import RefusedError
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from databases import PostgresServer, new_postgresql
from faults.soak import Report, expect_clean, show
from running import Running, TestDevice, running_gateway
from workers import Workers

from gateway.device.factory import DeviceCertificate
from gateway.device.fleet import Broker, Fleet
from gateway.device.messages import Profile, Result, new_nonce, parse_reply
from gateway.device.plans import Plan
from provisioning.topics import Up
from store.times import now_utc, to_ms

DEVICES: Final = 2000
WORKERS: Final = 2
OTHERS: Final = 10
PROCESSES: Final = 2
_DEADLINE_SECONDS: Final = 900.0
_ANSWER_SECONDS: Final = 5.0
_OTHERS_EVERY_SECONDS: Final = 0.25
"""Each of ten says hello every 2.5 s, below the rate that one topic may have."""


def herd(directory: Path, *, devices: int = DEVICES, say: Callable[[str], None] = print) -> Report:
    """Runs it in `directory`."""
    server = PostgresServer()
    url = new_postgresql(server_url=server.url)
    report = Report()
    try:
        with running_gateway(directory / "fleetgate", url) as running:
            running.product("sensor")
            running.product("other")
            running.gateway.stop()
            with (
                Workers(running, url, WORKERS, directory, FLEETGATE_LIMITS__HELLO_BURST="100") as workers,
                Watch(workers) as watch,
                Others(running, directory) as others,
            ):
                _run(running, directory, devices, report, watch, others, say)
            expect_clean(report, running, workers)
    finally:
        server.end()
    return report


def _run(
    running: Running,
    directory: Path,
    devices: int,
    report: Report,
    watch: "Watch",
    others: "Others",
    say: Callable[[str], None],
) -> None:
    def until(what: str, query: str, count: int, **values: int) -> float:
        """Waits for a count in the database, saying how far it is; returns how long that took."""
        began = said = time.monotonic()
        while True:
            with running.database.read() as tx:
                found = int(tx.connection.execute(sa.text(query), values).scalar_one())
            now = time.monotonic()
            if found == count:
                return now - began
            if now - began > _DEADLINE_SECONDS:
                report.expect(f"{what}: of {count}", found, count)
                return now - began
            if now - said > 5:
                said = now
                say(f"  {what}: {found} of {count} after {now - began:.0f} s, {watch.queued} queued")
            threading.Event().wait(0.1)

    online = (
        "SELECT count(*) FROM connections c JOIN devices d ON d.id = c.device_id "
        "JOIN products p ON p.id = d.product_id "
        "WHERE c.state = 'online' AND p.name = 'sensor' AND c.opened_at >= :since"
    )
    report.figures |= {"devices": devices, "workers": WORKERS}
    with herd_of(running, devices, directory) as processes:
        first = until("first hellos", online, devices, since=0)
        report.figures["first connects, s"] = f"{first:.1f}"
        base = watch.begin()
        others.begin()
        since = to_ms(now_utc())
        began = time.monotonic()
        running.installed.broker.restart(timeout_seconds=60)
        down = time.monotonic() - began
        back = until("back after the restart", online, devices, since=since)
        report.figures |= {
            "broker's restart, s": f"{down:.1f}",
            "until all are welcomed again, s": f"{back:.1f}",
            "most queued in a worker": watch.most_queued,
            "RSS of a worker before, MiB": base,
            "RSS growth at most, MiB": watch.most_rss - base,
            "others: hellos answered meanwhile": others.answered,
            "others: longest without an answer, s": f"{others.longest():.1f}",
        }
        report.expect("others refused", others.refused, 0)
        if others.longest() > down + back / 2 + 10:
            report.wrong.append("hellos of others did not flow")
        growth = watch.most_rss - base
        base = watch.begin()
        others.begin()
        for process in processes:
            process.send_signal(signal.SIGKILL)  # every connection breaks at once, and every will is said
    gone = until("gone at once", online, 0, since=0)
    report.figures |= {
        "until all are known to be gone, s": f"{gone:.1f}",
        "most queued in a worker, then": watch.most_queued,
        "RSS growth at most, then, MiB": watch.most_rss - base,
        "others: hellos answered then": others.answered,
        "others: longest without an answer then, s": f"{others.longest():.1f}",
    }
    growth = max(growth, watch.most_rss - base)
    # A registry, caches that are bounded, and messages up to the queue's limit: not what each device costs.
    if growth > 64 + devices * 4 / 1024:
        report.wrong.append(f"a worker grew by {growth} MiB")


@contextlib.contextmanager
def herd_of(running: Running, count: int, directory: Path) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Simulated devices in processes of their own, which are gone afterwards."""
    authority, now, place = running.made["sensor"], now_utc(), running.installed.installation
    made = [(f"dev-{number}", authority.issue(f"dev-{number}", now=now)) for number in range(count)]
    broker = Broker(
        host="localhost",
        port=place.device_port,
        cafile=place.broker_ca,
        audience=place.audience,
        prefix=place.prefix,
    )
    processes = []
    try:
        for number in range(PROCESSES):
            job = directory / f"herd-{number}"
            share = [(name, one.pem, one.key_pem) for name, one in made[number::PROCESSES]]
            job.write_bytes(pickle.dumps((share, broker)))
            processes.append(
                subprocess.Popen([sys.executable, "-m", "faults.herd", "--job", str(job)], cwd=_TESTS)
            )
        yield processes
    finally:
        for process in processes:
            process.kill()
            process.wait(timeout=30)


_TESTS: Final = Path(__file__).resolve().parents[1]


def be_herd(job: Path) -> None:
    """One process's share, until it is killed."""
    share, broker = pickle.loads(job.read_bytes())
    plans = []
    for name, pem, key_pem in share:
        key = serialization.load_pem_private_key(key_pem, None)
        made = DeviceCertificate(
            certificate=x509.load_pem_x509_certificate(pem),
            key=key,  # type: ignore[arg-type]
            chain=tuple(x509.load_pem_x509_certificates(pem)),
        )
        plans.append(Plan(name=name, made=made, profile=Profile()))
    Fleet(plans, broker).run(_DEADLINE_SECONDS * 4, until_done=False)


class Watch:
    """Looks at queue and memory of every worker, some times a second."""

    def __init__(self, workers: Workers) -> None:
        self._workers = workers
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch")
        self.queued = self.most_queued = self.most_rss = 0

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def begin(self) -> int:
        """Forgets what was most; returns the memory of the largest worker now, in MiB."""
        self.most_queued, self.most_rss = 0, self._rss()
        return self.most_rss

    def _rss(self) -> int:
        return max(rss_mib(self._workers.pid(number)) for number in range(WORKERS))

    def _run(self) -> None:
        with httpx.Client(trust_env=False, timeout=10) as client:
            while not self._stopping.wait(0.2):
                self.most_rss = max(self.most_rss, self._rss())
                found = []
                for number in range(WORKERS):
                    with contextlib.suppress(httpx.HTTPError):
                        text = client.get(f"http://127.0.0.1:{self._workers.ports[number]}/metrics").text
                        found.append(metric(text, "fleetgate_queue_messages"))
                self.queued = max(found, default=0)
                self.most_queued = max(self.most_queued, self.queued)


class Others:
    """Ten devices that go on saying hello, one after another, and come back when their connection is lost."""

    def __init__(self, running: Running, directory: Path) -> None:
        authority = running.made["other"]
        self._devices = [
            TestDevice(running, authority.issue(f"other-{number}", now=now_utc()), directory / "others")
            for number in range(OTHERS)
        ]
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="others")
        self.answered = self.refused = 0
        self._last = time.monotonic()
        self._longest = 0.0

    def __enter__(self) -> "Others":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        for device in self._devices:
            if device.party is not None:
                device.disconnect()

    def begin(self) -> None:
        """Counts anew."""
        self.answered, self._longest, self._last = 0, 0.0, time.monotonic()

    def longest(self) -> float:
        """The longest time in which no hello of anybody was answered, in seconds."""
        return max(self._longest, time.monotonic() - self._last)

    def _run(self) -> None:
        while True:
            for device in self._devices:
                if self._stopping.wait(_OTHERS_EVERY_SECONDS):
                    return
                try:
                    if device.party is None or not device.party.client.is_connected():
                        device.connect()
                    result = _ask(device)
                except (OSError, RefusedError, Empty, AssertionError):
                    _give_up(device)  # the broker is away, or slow: the next one tries
                    continue
                now = time.monotonic()
                self._longest, self._last = max(self._longest, now - self._last), now
                self.answered += 1
                self.refused += result == Result.REJECTED


def _ask(device: TestDevice) -> Result:
    """Says hello, and waits a while for the answer, as long as the connection stands; a hello may be lost."""
    party = device.party
    assert party is not None
    nonce = new_nonce()
    hello = device.voice.hello(nonce=nonce, ts=to_ms(now_utc()))
    party.client.publish(device.voice.topic(Up.HELLO), hello, qos=1)
    ends = time.monotonic() + _ANSWER_SECONDS
    while True:
        try:
            reply = parse_reply(party.received.get(timeout=0.2).payload)
        except Empty:
            if not party.client.is_connected() or time.monotonic() > ends:
                raise
            continue
        if reply.nonce == nonce:
            return reply.result


def _give_up(device: TestDevice) -> None:
    """Ends what there is of a connection."""
    if device.party is not None:
        device.disconnect()
        device.party = None


def rss_mib(pid: int) -> int:
    """The memory of a process now, in MiB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) // 1024
    raise AssertionError("no VmRSS")


def metric(text: str, name: str) -> int:
    """One figure of `/metrics`."""
    return next(int(float(line.split()[1])) for line in text.splitlines() if line.startswith(f"{name} "))


def main() -> int:
    """What a person runs."""
    parser = argparse.ArgumentParser(prog="python -m faults.herd", description=__doc__)
    parser.add_argument("--devices", type=int, default=DEVICES)
    parser.add_argument("--job", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.job is not None:
        be_herd(chosen.job)
        return 0
    with tempfile.TemporaryDirectory(prefix="fleetgate-herd-", ignore_cleanup_errors=True) as directory:
        return show("herd", herd(Path(directory), devices=chosen.devices))


if __name__ == "__main__":
    sys.exit(main())
