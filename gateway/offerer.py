"""The only place that opens attempts: takes devices that are due, decides under the rollout's lock, commits.

Any worker may run it, after its batch of hellos and from a thread of its own. A rollout that another worker
holds is left to that one. What was opened is in the outbox before anything is sent.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Final

import structlog

from gateway.faults import reach
from provisioning.attempts import Attempt, AttemptState, Ending, end, resume
from provisioning.devices import ConnectionState
from provisioning.ids import AttemptId, DeviceId
from provisioning.offers import OfferDecision, OfferFacts, Source, decide_offer, is_offering
from provisioning.pacing import Flight, count_room
from provisioning.rollouts import Override, Rollout
from provisioning.working import Registry, WorkingSet
from store import attempts, due, facts, registry, rollouts, writer
from store.attempts import LatestAttempt
from store.database import Database, Transaction
from store.due import Marked
from store.locks import device_lock
from store.revision import load_revision

log: Final = structlog.get_logger()
CHUNK: Final = 200
"""Devices decided in one transaction."""


@dataclass(slots=True)
class _Round:
    """One source and its marked devices, in one transaction."""

    source: Source
    working: WorkingSet
    present: Collection[DeviceId]
    marked: int
    flight: Flight
    opened: list[LatestAttempt]
    done: set[DeviceId]

    @property
    def has_more(self) -> bool:
        """Whether others may be marked: the chunk was full, and not all of it still waits."""
        return self.marked == CHUNK and bool(self.done)


class Offerer:
    """Opens attempts for devices on one broker.

    Args:
        database: where everything is kept.
        broker: whose devices these are.
        worker: whose counters change.
        clock: aware UTC.
        new_id: makes numbers for attempts.
    """

    def __init__(
        self,
        database: Database,
        *,
        broker: str,
        worker: str,
        clock: Callable[[], datetime],
        new_id: Callable[[], int],
    ) -> None:
        self._database = database
        self._broker = broker
        self._worker = worker
        self._clock = clock
        self._new_id = new_id
        # As of its revision, which grows with every change of a rollout, too.
        self._registry: Registry | None = None

    def work(self) -> Iterator[list[LatestAttempt]]:
        """Considers every device that is due on this broker. Gives the attempts to publish, chunk by chunk.

        What a chunk opened is committed: publish it before the next one is asked for, so that no device waits for the
        whole of a large rollout.
        """
        with self._database.read() as tx:
            sources = due.list_sources(tx, self._broker)
        for source in sources:
            while (one_round := self._work_source(source, None)) is not None:
                if one_round.opened:
                    yield one_round.opened
                if not one_round.has_more:
                    break

    def work_present(self, marks: Mapping[DeviceId, int]) -> list[Attempt]:
        """Considers devices that have just said hello and wait for the answer.

        Args:
            marks: the candidate of each, as the pipeline marked them.
        """
        opened: list[Attempt] = []
        for source in sorted(set(marks.values())):
            present = [one for one, mark in marks.items() if mark == source]
            one_round = self._work_source(source, present)
            if one_round is not None:
                opened += [one.attempt for one in one_round.opened]
        return opened

    def _work_source(self, source_id: int, present: Collection[DeviceId] | None) -> _Round | None:
        """One chunk, to its commit; None where there is nothing to be done now."""
        with self._database.read() as tx:
            marked = due.list_marked(tx, self._broker, source_id, CHUNK, present)
        if not marked:
            return None
        now = self._clock()
        reach("before_offer")
        with self._database.write([device_lock(self._broker, one.topic_name) for one in marked]) as tx:
            source = self._lock(tx, source_id, marked)
            if source is None:
                return None
            flight = attempts.load_flight(tx, source.id, now)
            if is_offering(source) and count_room(source.plan, flight) == 0:
                return None  # they stay marked until there is room
            one_round = _Round(
                source=source,
                working=self._load(tx, source, marked),
                present=present or (),
                marked=len(marked),
                flight=flight,
                opened=[],
                done=set(),
            )
            self._decide(tx, one_round, marked, now)
            due.remove(tx, one_round.done)
            writer.apply(tx, one_round.working, now)
        if one_round.opened:
            reach("after_offer")
            log.info(
                "offers_made", count=len(one_round.opened), source=source_id, version=source.bundle.version
            )
        return one_round

    def _lock(self, tx: Transaction, source_id: int, marked: list[Marked]) -> Source | None:
        """The rollout or override, locked; None where another worker holds it, or it was taken back."""
        found: Source | None = rollouts.lock(tx, [source_id], skip_locked=True).get(source_id)  # type: ignore[call-overload]
        if found is not None:
            return found
        if rollouts.is_rollout(tx, source_id):
            return None
        found = rollouts.lock_overrides(tx, [source_id]).get(source_id)  # type: ignore[call-overload]
        if found is None:
            due.remove(tx, [one.device_id for one in marked])
        return found

    def _load(self, tx: Transaction, source: Source, marked: list[Marked]) -> WorkingSet:
        known = self._registry
        if known is None or load_revision(tx) != known.revision:
            known, _ = registry.load_registry(tx)
            self._registry = known
        return facts.load_devices(
            tx,
            [one.device_id for one in marked],
            broker=self._broker,
            worker=self._worker,
            registry=_with(known, source, marked),
        )

    def _decide(self, tx: Transaction, one_round: _Round, marked: list[Marked], now: datetime) -> None:
        working = one_round.working
        numbers = [one.device_id for one in marked]
        tries, revisions = attempts.load_tries(tx, numbers), attempts.load_revisions(tx, numbers)
        for device_id in numbers:
            device = working.devices[device_id]
            connection = working.connections.get(device_id)
            online = connection is not None and connection.state is ConnectionState.ONLINE
            attempt = working.attempts.get(device_id)
            decision = decide_offer(
                OfferFacts(
                    device=device,
                    rollouts=()
                    if device.cohort_id is None
                    else working.registry.rollouts.get(device.cohort_id, ()),
                    override=working.registry.overrides.get(device_id),
                    versions=working.registry.versions.get(device.product_id, {}),
                    attempt=attempt,
                    tries=tries.get(device_id, {}),
                    connected=online or device_id in one_round.present,
                    flights={one_round.source.id: one_round.flight},
                ),
                now,
            )
            self._act(one_round, decision, device_id, revisions.get(device_id, 0) + 1, now)

    def _act(
        self, one_round: _Round, decision: OfferDecision, device_id: DeviceId, revision: int, now: datetime
    ) -> None:
        working, source = one_round.working, decision.source
        if source is not None and source.id != one_round.source.id and (decision.ready or decision.waits):
            one_round.done.add(device_id)
            working.due[device_id] = source.id  # another candidate by now: its turn comes under its own lock
            return
        if not decision.ready:
            pace_alone = decision.waits and count_room(one_round.source.plan, one_round.flight) == 0
            if not pace_alone:
                one_round.done.add(device_id)
            return
        if decision.supersedes is not None:
            ending = Ending(state=AttemptState.SUPERSEDED, reason="newer_offer")
            working.save_attempt(end(decision.supersedes, ending, now), now)
        attempt = (
            resume(decision.resumes, revision, now)
            if decision.resumes is not None
            else self._open(one_round, device_id, revision, now)
        )
        working.save_attempt(attempt, now)
        working.outgoing.add(device_id)
        topic_name = working.devices[device_id].topic_name
        assert topic_name is not None  # it is marked at this broker
        one_round.opened.append(LatestAttempt(attempt=attempt, topic_name=topic_name))
        one_round.done.add(device_id)
        flight = one_round.flight
        one_round.flight = replace(flight, in_flight=flight.in_flight + 1, last_minute=flight.last_minute + 1)

    def _open(self, one_round: _Round, device_id: DeviceId, revision: int, now: datetime) -> Attempt:
        source, device = one_round.source, one_round.working.devices[device_id]
        connection = one_round.working.connections.get(device_id)
        return Attempt(
            id=AttemptId(self._new_id()),
            device_id=device_id,
            product_id=device.product_id,
            cohort_id=device.cohort_id,
            rollout_id=source.id if isinstance(source, Rollout) else None,
            override_id=source.id if isinstance(source, Override) else None,
            bundle_id=source.bundle.id,
            bundle_version=source.bundle.version,
            bundle_seq=source.bundle.bundle_seq,
            hardware_model=device.hardware_model,
            from_version=device.firmware_version,
            from_boot="" if connection is None else connection.boot,
            state=AttemptState.OFFERED,
            revision=revision,
            timeouts=source.plan.timeouts,
            offered_at=now,
            stepped_at=now,
        )


def _with(known: Registry, source: Source, marked: list[Marked]) -> Registry:
    """The registry with `source` as its lock shows it: a pause that was committed meanwhile counts."""
    if isinstance(source, Override):
        others = {number: one for number, one in known.overrides.items() if one.id != source.id}
        named = {one.device_id: source for one in marked if known.overrides.get(one.device_id) == source}
        return replace(known, overrides={**others, **named})
    of_cohort = tuple(
        source if rollout.id == source.id else rollout for rollout in known.rollouts.get(source.cohort_id, ())
    )
    return replace(known, rollouts={**known.rollouts, source.cohort_id: of_cohort})
