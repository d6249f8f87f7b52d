"""What happens to rollouts by time: they start, their devices are considered, attempts time out, they complete.

One APScheduler in whichever worker holds the lease, by the database's clock. What is due is in our tables, and
every trigger is a conditional `UPDATE` of a locked row: a crash around it neither loses nor doubles it.
"""

import time
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Final

import structlog
from apscheduler.executors.pool import ThreadPoolExecutor
from apscheduler.schedulers.background import BackgroundScheduler

from gateway.faults import reach
from provisioning.attempts import Attempt
from provisioning.ids import OrganizationId, RolloutId
from provisioning.offers import fits
from provisioning.rollouts import Rollout, RolloutState
from provisioning.statistics import Event, EventKind
from provisioning.updates import apply_timeout
from store import attempts, audit, counters, due, facts, leases, registry, rollouts, writer
from store.attempts import OpenAttempt
from store.database import Database, StoreUnavailableError, Transaction
from store.due import DeviceKind
from store.locks import device_lock
from store.times import from_ms, to_ms

log: Final = structlog.get_logger()
LEASE: Final = "scheduler"
LEASE_SECONDS: Final = 5.0
RENEW_SECONDS: Final = 2.0
TICK_SECONDS: Final = 0.5
FILL_CHUNK: Final = 500
FILL_AHEAD_MINUTES: Final = 3
CHUNK: Final = 200
REFILL_SECONDS: Final = 5.0
"""Between two passes over a cohort whose connected devices were not all offered the bundle."""


class Scheduler:
    """Advances rollouts; see the module.

    Args:
        database: where everything is kept; its clock decides.
        worker: who holds the lease, and whose counters change.
        wake: called when devices may have become due.
    """

    def __init__(self, database: Database, *, worker: str, wake: Callable[[], None]) -> None:
        self._database = database
        self._worker = worker
        self._wake = wake
        self._away = False
        self._renew_at = 0.0
        self._refill_at: dict[RolloutId, float] = {}
        self._scheduler = BackgroundScheduler(
            timezone="UTC", executors={"default": ThreadPoolExecutor(1)}, logger=_Quiet()
        )
        self.holds = False
        """Whether the last tick had the lease."""

    def start(self) -> None:
        """Starts its thread."""
        self._scheduler.add_job(
            self._tick,
            "interval",
            seconds=TICK_SECONDS,
            coalesce=True,
            max_instances=1,
            misfire_grace_time=None,
        )
        self._scheduler.start()

    def stop(self) -> None:
        """Ends after the tick it is in, and gives the lease back. Repeating changes nothing."""
        if not self._scheduler.running:
            return
        self._scheduler.shutdown(wait=True)
        try:
            with self._database.write() as tx:
                leases.release(tx, LEASE, self._worker)
        except StoreUnavailableError as error:
            log.warning("database_away", action="lease_expires_by_itself", cause=str(error))

    def _tick(self) -> None:
        try:
            self.advance()
            self._away = False
        except StoreUnavailableError as error:
            if not self._away:
                log.warning("database_away", action="scheduler_waits", cause=str(error))
            self._away = True
        except Exception as error:  # the next tick may do better; a dead job would not be noticed
            log.error("scheduler_failed", cause=str(error), exc_info=error)

    def advance(self) -> bool:
        """One tick. Returns whether this worker holds the lease."""
        now = self._hold()
        if now is None:
            return False
        with self._database.read() as tx:
            startable, running = rollouts.list_startable(tx, now), rollouts.list_running(tx)
            resumable = due.has_resumable(tx, to_ms(now))
        for number in startable:
            self._start(number, now)
        filled = self._fill_all([*running, *startable], now)
        if resumable:
            with self._database.write() as tx:
                due.mark_resumable(tx, to_ms(now))
        if startable or filled or resumable:
            self._wake()
        for number in running:
            self._complete(number, now)
        self._time_out(now)
        return True

    def _hold(self) -> datetime | None:
        """Takes or renews the lease, the latter only every other second. Returns the database's time."""
        if self.holds and time.monotonic() < self._renew_at:
            with self._database.read() as tx:
                return from_ms(tx.now_ms())
        started = time.monotonic()
        with self._database.write([LEASE]) as tx:
            now = leases.take(tx, LEASE, self._worker, LEASE_SECONDS)
        self.holds, self._renew_at = now is not None, started + RENEW_SECONDS
        return now

    def _start(self, number: RolloutId, now: datetime) -> None:
        reach("before_start")
        with self._database.write() as tx:
            rollout = rollouts.lock(tx, [number]).get(number)
            if rollout is None or rollout.state is not RolloutState.SCHEDULED:
                return  # another worker was here, or an operator
            move(tx, rollout, RolloutState.RUNNING, now, worker=self._worker, actor="scheduler")
        reach("after_start")
        log.info("rollout_started", rollout=number, version=rollout.bundle.version)

    def _fill_all(self, numbers: Sequence[RolloutId], now: datetime) -> int:
        """Fills them in turns, as far as this tick's time goes: the offerer may be faster than a chunk a tick.

        Returns:
            How many devices it looked at.
        """
        looked_at, until = 0, time.monotonic() + TICK_SECONDS / 2
        while numbers:
            counts = {number: self._fill(number, now) for number in numbers}
            looked_at += sum(counts.values())
            numbers = [number for number, count in counts.items() if count >= FILL_CHUNK]
            if time.monotonic() > until:
                break
            if numbers:
                self._wake()  # the offerer need not wait for the rest
        return looked_at

    def _fill(self, number: RolloutId, now: datetime) -> int:
        """Marks the next devices of the cohort, a few minutes of pace ahead. Returns how many it looked at."""
        with self._database.write() as tx:
            rollout = rollouts.lock(tx, [number]).get(number)
            if rollout is None or rollout.state is not RolloutState.RUNNING or rollout.filled:
                return 0
            if due.count_marked(tx, number) >= rollout.plan.most_per_minute * FILL_AHEAD_MINUTES:
                return 0
            return due.fill(tx, rollout, FILL_CHUNK, to_ms(now))

    def _complete(self, number: RolloutId, now: datetime) -> None:
        """Ends a rollout with nothing left to do, or considers devices again that nobody has marked.

        A hello that was decided while the rollout began may have seen it as scheduled, and the pass over the
        cohort may have come too early to see its device: such devices are found here.
        """
        with self._database.read() as tx:
            rollout = rollouts.load_any(tx, number)
            if rollout is None or due.has_work(tx, rollout):
                return
            left = self._untried(tx, rollout)
        refill = any(kind.connected for kind in left)
        if left and (not refill or time.monotonic() < self._refill_at.get(number, 0.0)):
            return
        with self._database.write() as tx:
            rollout = rollouts.lock(tx, [number]).get(number)
            if rollout is None or rollout.state is not RolloutState.RUNNING or due.has_work(tx, rollout):
                return
            if refill:
                self._refill_at[number] = time.monotonic() + REFILL_SECONDS
                rollouts.refill(tx, number)
                return
            if self._untried(tx, rollout):
                return
            move(tx, rollout, RolloutState.COMPLETED, now, worker=self._worker, actor="scheduler")
        self._refill_at.pop(number, None)
        log.info("rollout_completed", rollout=number, version=rollout.bundle.version)

    def _untried(self, tx: Transaction, rollout: Rollout) -> list[DeviceKind]:
        """The kinds of devices that could take the bundle and were never offered it."""
        kinds = due.list_untried_kinds(tx, rollout)
        if not kinds:
            return []
        versions = registry.load_registry(tx)[0].versions.get(rollout.product_id, {})
        return [
            kind
            for kind in kinds
            if fits(
                rollout.bundle,
                model=kind.hardware_model,
                revision=kind.hardware_revision,
                running=kind.firmware_bundle_seq
                if kind.firmware_bundle_seq is not None
                else versions.get(kind.firmware_version, 0),
            )
        ]

    def _time_out(self, now: datetime) -> None:
        with self._database.read() as tx:
            overdue = attempts.list_overdue(tx, now, CHUNK)
        for broker in sorted({one.broker for one in overdue}):
            self._end([one for one in overdue if one.broker == broker], broker, now)

    def _end(self, overdue: list[OpenAttempt], broker: str, now: datetime) -> None:
        with self._database.write([device_lock(broker, one.topic_name) for one in overdue]) as tx:
            numbers = [one.device_id for one in overdue]
            working = facts.load_devices(tx, numbers, broker=broker, worker=self._worker)
            ended: list[Attempt] = [
                attempt
                for one in overdue
                if (attempt := working.attempts.get(one.device_id)) is not None
                and apply_timeout(working, attempt, now)
            ]
            writer.apply(tx, working, now)
        if ended:
            log.info("attempts_timed_out", count=len(ended))


def move(
    tx: Transaction, rollout: Rollout, to: RolloutState, now: datetime, *, worker: str, actor: str
) -> None:
    """Changes a locked rollout's state, with its event; and its audit row where the clock was the operator.

    Args:
        actor: who did it; an operator's own audit row is the command's to write.
    """
    if not rollouts.move(tx, rollout, to, now):
        return
    counters.record(
        tx,
        worker,
        [
            Event(
                at=now,
                kind=EventKind.ROLLOUT,
                product_id=rollout.product_id,
                cohort_id=rollout.cohort_id,
                device_id=None,
                word=to,
                before=rollout.state,
                source_id=rollout.id,
            )
        ],
    )
    if actor == "scheduler":
        audit.append(
            tx,
            at=now,
            organization_id=OrganizationId(rollouts.organization_of(tx, rollout)),
            actor=actor,
            action=f"rollout.{to}",
            object_type="rollout",
            object_id=rollout.id,
            before={"state": rollout.state},
            after={"state": to},
        )


class _Quiet:
    """APScheduler's own log, at which nothing of interest happens twice a second."""

    def debug(self, *_: object, **__: object) -> None:
        """Nothing."""

    info = debug

    def warning(self, text: str, *arguments: object, **_: object) -> None:
        """A tick that took longer than its interval, or was missed."""
        log.debug("scheduler", detail=text % arguments if arguments else text)

    def error(self, text: str, *arguments: object, **_: object) -> None:
        """A fault in the scheduler itself."""
        log.error("scheduler_failed", cause=text % arguments if arguments else text)

    exception = critical = error
