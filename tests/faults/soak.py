"""A soak: four workers on one PostgreSQL and one broker, devices that come and go, rollouts, and a worker killed.

`make soak` runs ten minutes of it, `make soak SECONDS=120` two; `test_soak.py` a little over one. Every 20 s one
worker is killed with -9 and started again at once. It prints what it sees, ends by itself, and ends with 1 if
anything was lost, counted twice, left open, or locked out of order.
"""

import argparse
import itertools
import random
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from broker_fixtures import wait_until
from databases import PostgresServer, new_postgresql
from firmware import KEYS, make_product, push
from running import Running, running_gateway
from workers import Workers

from gateway.device.fleet import Broker, Fleet
from gateway.device.messages import Profile
from gateway.device.plans import Churn, Plan
from gateway.operations import rollouts
from provisioning import rollouts as core
from store.times import now_utc
from store.verify import verify

WORKERS: Final = 4
DEVICES: Final = 60
KILL_EVERY_SECONDS: Final = 20.0
SETTLE_SECONDS: Final = 120.0
_SAY_EVERY_SECONDS: Final = 10.0

_COUNTS: Final = {
    "devices": "SELECT count(*) FROM devices",
    "online": "SELECT count(*) FROM connections WHERE state = 'online'",
    "sessions": "SELECT count(*) FROM sessions",
    "sessions twice": "SELECT count(*) FROM (SELECT 1 FROM sessions GROUP BY device_id, conn HAVING count(*) > 1) AS t",
    "sessions twice, one open": "SELECT count(*) FROM sessions s JOIN connections c ON c.device_id = s.device_id "
    "AND c.conn = s.conn WHERE c.state = 'online'",
    "connects": "SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'connects' AND bucket = 0",
    "disconnects": "SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'disconnects' AND bucket = 0",
    "enrollments": "SELECT coalesce(sum(value), 0) FROM counters WHERE name = 'enrollments' AND bucket = 0",
    "attempts": "SELECT count(*) FROM attempts",
    "succeeded": "SELECT count(*) FROM attempts WHERE state = 'succeeded'",
    "set aside": "SELECT count(*) FROM set_aside",
    "outbox": "SELECT count(*) FROM outbox",
    "deadlocks": "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()",
}


@dataclass(slots=True, kw_only=True)
class Report:
    """What came of it: figures in the order they are shown, and what is wrong."""

    figures: dict[str, object] = field(default_factory=dict)
    wrong: list[str] = field(default_factory=list)

    def expect(self, what: str, got: object, expected: object) -> None:
        """Notes a figure, and whether it is as it should be."""
        self.figures[what] = got
        if got != expected:
            self.wrong.append(f"{what}: expected {expected}, got {got}")


class Killer:
    """Kills one worker after another and starts it again at once, as systemd does; also one that ended by itself."""

    def __init__(self, workers: Workers, every_seconds: float, say: Callable[[str], None]) -> None:
        self._workers = workers
        self._every = every_seconds
        self._say = say
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="killer")
        self.kills = 0
        self.refused_starts = 0

    def __enter__(self) -> "Killer":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _run(self) -> None:
        order = itertools.cycle(random.Random(7).sample(range(WORKERS), WORKERS))
        next_kill = time.monotonic() + self._every
        while not self._stopping.wait(0.2):
            for number in range(WORKERS):
                # A start may find the dead one's locks still held, for as long as its last statement takes.
                if self._workers.ended(number) is not None:
                    self.refused_starts += 1
                    self._say(
                        f"{self._workers.names[number]} starts again: {self._workers.log_end(number, 1)}"
                    )
                    self._workers.forget(number)
                    self._workers.start(number)
            if time.monotonic() >= next_kill:
                next_kill += self._every
                number = next(order)
                self._workers.kill(number)
                self._workers.start(number)
                self.kills += 1


def soak(
    seconds: float,
    directory: Path,
    *,
    devices: int = DEVICES,
    kill_every_seconds: float = KILL_EVERY_SECONDS,
    say: Callable[[str], None] = print,
) -> Report:
    """Runs it in `directory`."""
    server = PostgresServer()
    url = new_postgresql(server_url=server.url)
    report = Report()
    try:
        with running_gateway(directory / "fleetgate", url) as running:
            product = make_product(running, "sensor")
            # As many as can be rolled out, and some: a worker that could take a push may be dead later.
            versions = [push(running, product, size=2000).version for _ in range(int(seconds / 10) + 2)]
            running.gateway.stop()
            with Workers(running, url, WORKERS, directory) as workers:
                fleet = make_fleet(running, product, devices)
                course = Course(running, product, versions, devices, say)
                with Killer(workers, kill_every_seconds, say) as killer:
                    fleet.run(
                        seconds, on_change=lambda fleet: course.go_on(fleet, killer.kills), until_done=False
                    )
                course.settle(fleet, workers)
            report.figures |= {"seconds": round(seconds), "workers": WORKERS, "kills": killer.kills}
            examine(report, running, fleet, course, workers, devices, server)
    finally:
        server.end()
    return report


def make_fleet(running: Running, product: str, count: int) -> Fleet:
    """Devices that leave every few seconds, every other one without a goodbye, and come back."""
    place, chance = running.installed.installation, random.Random(11)
    authority, now = running.made[product], now_utc()
    plans = [
        Plan(
            name=f"{product}-{number}",
            made=authority.issue(f"{product}-{number}", now=now),
            profile=Profile(version="0.9.0"),
            keys=KEYS,
            mqtt5=number % 3 == 0,
            churn=Churn(times=1 << 30, after_seconds=chance.uniform(4, 12), goodbye=number % 2 == 0),
        )
        for number in range(count)
    ]
    broker = Broker(
        host="localhost",
        port=place.device_port,
        cafile=place.broker_ca,
        audience=place.audience,
        prefix=place.prefix,
    )
    return Fleet(plans, broker, connects_per_second=60)


class Course:
    """Rolls out one bundle after another while the fleet runs, and says how it goes."""

    def __init__(
        self, running: Running, product: str, versions: list[str], devices: int, say: Callable[[str], None]
    ) -> None:
        self._running = running
        self._product = product
        self._versions = iter(versions)
        self._devices = devices
        self._say = say
        self._began = time.monotonic()
        self._next_look = self._next_say = 0.0
        self.views: list[Any] = []

    def go_on(self, fleet: Fleet, kills: int) -> None:
        """Looks once a second: plans the next rollout where the last one is through."""
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + 1.0
        if not self.views or self._succeeded() == self._devices:
            self._roll_out()
        if now >= self._next_say:
            self._next_say = now + _SAY_EVERY_SECONDS
            found = self.counts("online", "connects", "succeeded", "deadlocks")
            self._say(
                f"{now - self._began:5.0f} s  kills {kills:3}  online {found['online']:4}  "
                f"connects {found['connects']:6}  rollouts {len(self.views):3}  updated {found['succeeded']:5}  "
                f"deadlocks {found['deadlocks']}"
            )

    def settle(self, fleet: Fleet, workers: Workers) -> None:
        """Nobody is killed and nobody leaves any more: all come to rest, and then say goodbye."""
        for number in range(WORKERS):
            workers.wait_ready(number)
        for device in fleet.devices:
            device._churned = 1 << 30
        began = time.monotonic()

        def rest() -> bool:
            return self._succeeded() == self._devices and self.counts("online")["online"] == self._devices

        while not rest() and time.monotonic() - began < SETTLE_SECONDS:
            for _ in range(10):
                fleet.serve(0.05)
        self._say(f"at rest after {time.monotonic() - began:.0f} s more")
        fleet.close()
        wait_until(lambda: self.counts("online")["online"] == 0, "everybody has left", 60)
        wait_until(lambda: self.counts("outbox")["outbox"] == 0, "nothing is to be sent", 30)

    def counts(self, *names: str) -> dict[str, int]:
        """Figures straight from the database."""
        with self._running.database.read() as tx:
            return {name: int(tx.connection.execute(sa.text(_COUNTS[name])).scalar_one()) for name in names}

    def _succeeded(self) -> int:
        view = rollouts.load(self._running.desk, self._running.principal, self.views[-1].rollout.id)
        return view.attempts.get("succeeded", 0)

    def _roll_out(self) -> None:
        version = next(self._versions, None)
        if version is None:
            return
        self.views += rollouts.create(
            self._running.desk,
            self._running.principal,
            product=self._product,
            version=version,
            cohorts=["main"],
            plan=core.Plan(most_in_flight=20),
            start_at=None,
        )


def examine(
    report: Report,
    running: Running,
    fleet: Fleet,
    course: Course,
    workers: Workers,
    devices: int,
    server: PostgresServer,
) -> None:
    """Compares what devices saw, what is counted, and what is there."""
    found = course.counts(*_COUNTS)
    outcomes = fleet.report().outcomes
    report.expect("devices welcomed", sum(bool(outcome.conns) for outcome in outcomes), devices)
    report.expect("devices known", found["devices"], devices)
    report.expect("enrollments counted", found["enrollments"], devices)
    welcomed = {(outcome.name, conn) for outcome in outcomes for conn in outcome.conns}
    report.figures["connections that devices saw welcomed"] = len(welcomed)
    with running.database.read() as tx:
        rows = tx.connection.execute(
            sa.text("SELECT d.identifier, s.conn FROM sessions s JOIN devices d ON d.id = s.device_id")
        )
        kept = {(row.identifier, row.conn) for row in rows}
    report.expect("of these lost", len(welcomed - kept), 0)
    report.expect("sessions", found["sessions"], len(kept))
    report.expect("sessions twice", found["sessions twice"] + found["sessions twice, one open"], 0)
    report.expect("connects counted", found["connects"], found["sessions"])
    report.expect("disconnects counted", found["disconnects"], found["sessions"])
    report.expect("updates", found["succeeded"], devices * len(course.views))
    report.expect("attempts that ended otherwise", found["attempts"] - found["succeeded"], 0)
    report.expect("messages set aside", found["set aside"], 0)
    report.expect("deadlocks (pg_stat_database)", found["deadlocks"], 0)
    report.expect("deadlocks (server's log)", server.log().count("deadlock detected"), 0)
    expect_clean(report, running, workers)


def expect_clean(report: Report, running: Running, workers: Workers) -> None:
    """No worker has logged an error, and every invariant holds."""
    errors = [
        line
        for log in workers.logs
        for line in log.read_text(errors="replace").splitlines()
        if is_error(line)
    ]
    report.expect("errors in workers' logs", len(errors), 0)
    report.wrong += errors[:5]
    checked = verify(running.database)
    report.expect("verify-store", "clean" if checked.ok else str(checked), "clean")


def is_error(line: str) -> bool:
    """Whether a line of a worker's log is an error."""
    return "[error" in line or line.startswith("Traceback")


def show(title: str, report: Report, say: Callable[[str], None] = print) -> int:
    """Prints the table. Returns the exit code."""
    say(f"\n{title}")
    for name, value in report.figures.items():
        say(f"  {name:<40} {value}")
    for line in report.wrong:
        say(f"  WRONG: {line}")
    say("  all is well" if not report.wrong else "  FAILED")
    return 1 if report.wrong else 0


def main() -> int:
    """What `make soak` runs."""
    parser = argparse.ArgumentParser(prog="make soak", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--devices", type=int, default=DEVICES)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="fleetgate-soak-", ignore_cleanup_errors=True) as directory:
        return show("soak", soak(chosen.seconds, Path(directory), devices=chosen.devices))


if __name__ == "__main__":
    sys.exit(main())
