"""The one way through: parse → verify → lock → load → decide → apply → commit, for a batch of messages.

Cryptography happens before the transaction (`prover`), so nobody waits for it; decisions are `provisioning`'s,
rows are `store`'s. What comes back says what to publish; the caller publishes, then acknowledges. A batch that
breaks is done again message by message, and one that still fails is set aside with its cause.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import structlog

from gateway.faults import reach
from gateway.held import MOST_IN_ALL, HeldMessages
from gateway.prover import Delivered, Prover, Tally, Work
from provisioning.attempts import Attempt
from provisioning.enrollment import list_claims
from provisioning.errors import FleetgateError, RejectReason
from provisioning.greeting import Terms, Verdict, decide_ended, decide_message
from provisioning.ids import DeviceId, KeyId, TopicName
from provisioning.messages import Hello, Reply, Result
from provisioning.topics import Up
from provisioning.working import WorkingSet
from store import facts as store_facts
from store import set_aside, writer
from store.database import Database, StoreUnavailableError
from store.locks import device_lock
from store.revision import load_revision

log: Final = structlog.get_logger()


@dataclass(slots=True, kw_only=True)
class Worked:
    """What came of a batch.

    Attributes:
        replies: for each message, in order, what to publish to its sender, if anything.
        due: devices for the offerer, with their candidates; they wait for their reply.
        attempts: the open attempts of devices that said hello.
    """

    replies: list[Reply | None] = field(default_factory=list)
    due: dict[DeviceId, int] = field(default_factory=dict)
    attempts: dict[DeviceId, Attempt] = field(default_factory=dict)


class Pipeline:
    """Works batches for one broker.

    Args:
        database: where everything is kept.
        terms: what this gateway says of itself.
        broker: the broker's name; topic names are unique on it.
        worker: this worker's name; its counters are its own.
        prefix: of topics.
        new_id: makes numbers for new rows.
        most_held: messages kept for a hello that has not come yet.
    """

    def __init__(
        self,
        database: Database,
        *,
        terms: Callable[[], Terms],
        broker: str,
        worker: str,
        prefix: str,
        new_id: Callable[[], int],
        most_held: int = MOST_IN_ALL,
    ) -> None:
        self._database = database
        self._terms = terms
        self._broker = broker
        self._worker = worker
        self._new_id = new_id
        self._held = HeldMessages(most_held)
        self.tally: Final = Tally()
        self._prover = Prover(
            database, terms=terms, prefix=prefix, tally=self.tally, on_fault=self._set_aside
        )

    def work(self, batch: Sequence[Delivered]) -> Worked:
        """Works a batch to its commit.

        Raises:
            StoreUnavailableError: the database is away; the same batch may be worked again.
        """
        self.tally.batches += 1
        worked = Worked()
        works = [Work(delivered=message, now=message.received_at) for message in batch]
        self._prover.parse(works)
        for _ in range(3):
            self._prover.verify(works)
            try:
                self._decide_all(works, worked)
                break
            except _RegistryChangedError:
                continue
        else:
            self._one_by_one([work for work in works if not work.done], worked)
        for work in works:
            if work.reply is not None:
                self.tally.replies[work.reply.result, work.reply.reason or ""] += 1
        worked.replies = [work.reply for work in works]
        return worked

    def _decide_all(self, works: Sequence[Work], worked: Worked) -> None:
        proven = [work for work in works if not work.done]
        if not proven:
            return
        proven += self._released(proven)
        proven.sort(key=_order)
        try:
            self._transact(proven, worked)
        except (StoreUnavailableError, _RegistryChangedError):
            raise
        except Exception as error:  # whatever it is, one message must not take its batch down
            log.warning("batch_redone", action="one_by_one", messages=len(proven), cause=str(error))
            self._one_by_one(proven, worked)

    def _one_by_one(self, works: Sequence[Work], worked: Worked) -> None:
        for work in works:
            try:
                self._transact([work], worked, any_revision=True)
            except StoreUnavailableError:
                raise
            except Exception as error:
                self._set_aside(work, error)

    def _transact(self, works: Sequence[Work], worked: Worked, *, any_revision: bool = False) -> None:
        registry = self._prover.registry
        assert registry is not None
        keys, names, identifiers = set(), set(), set()
        for work in works:
            assert work.identity is not None
            keys.add(work.identity.key_id)
            names.add(work.identity.topic_name)
            if any_revision or not work.known:  # a known key is its device's, whatever its certificate claims
                identifiers |= list_claims(work.identity)
        locks = [
            *keys,
            *(device_lock(self._broker, name) for name in names),
            *(f"{p}/{i}" for p, i in identifiers),
        ]
        terms = self._terms()
        verdicts: list[tuple[Work, Verdict]] = []
        reach("before_lock")
        with self._database.write(locks) as tx:
            if not any_revision and load_revision(tx) != registry.revision:
                raise _RegistryChangedError
            working = store_facts.load_working_set(
                tx,
                registry,
                broker=self._broker,
                worker=self._worker,
                keys=keys,
                identifiers=identifiers,
                topic_names=names,
            )
            if not any_revision and any(
                work.known and _key_of(work) not in working.credentials for work in works
            ):
                raise _RegistryChangedError  # a key was forgotten between the two
            for work in works:
                verdicts.append((work, self._decide(work, working, terms)))
            writer.apply(tx, working, works[-1].now)
            reach("after_apply")
        reach("after_commit")
        _log_changes(working)
        worked.due |= working.due
        worked.attempts |= {key: one for key, one in working.attempts.items() if one.is_open}
        for work, verdict in verdicts:
            work.done = True
            work.reply = verdict.reply
            if verdict.held and work.message is not None and work.identity is not None:
                self._held.hold(work.message, work.identity, work.now)

    def _decide(self, work: Work, working: WorkingSet, terms: Terms) -> Verdict:
        message, identity = work.message, work.identity
        assert message is not None
        assert identity is not None
        if work.ended is not None and isinstance(message, Hello):
            return decide_ended(
                message,
                identity,
                working,
                reason=work.ended.reason,
                detail=work.ended.detail,
                terms=terms,
                now=work.now,
            )
        return decide_message(message, identity, working, terms=terms, now=work.now, new_id=self._new_id)

    def _released(self, proven: Sequence[Work]) -> list[Work]:
        """Held messages of the sessions that this batch's hellos may open."""
        return [
            Work(delivered=None, now=held.at, message=held.message, identity=held.identity)
            for work in proven
            if isinstance(work.message, Hello) and work.identity is not None
            for held in self._held.release(work.identity.key_id, work.message.conn, work.now)
        ]

    def _set_aside(self, work: Work, error: Exception) -> None:
        work.done = True
        self.tally.set_aside += 1
        topic = work.topic
        log.error("message_set_aside", cause=str(error), verb=topic.verb if topic else "", exc_info=error)
        if topic is None or work.delivered is None:
            return
        with self._database.write() as tx:
            set_aside.append(
                tx,
                at=work.now,
                topic_name=topic.name,
                verb=topic.verb,
                payload=work.delivered.payload,
                cause=f"{type(error).__name__}: {error}",
            )
        if topic.verb is Up.HELLO:
            work.answer(Result.BUSY, RejectReason.INTERNAL_ERROR, retry_after_seconds=60)


class _RegistryChangedError(FleetgateError):
    """Products, cohorts or CAs changed between verification and the transaction."""


def _key_of(work: Work) -> KeyId:
    assert work.identity is not None
    return work.identity.key_id


def _log_changes(working: WorkingSet) -> None:
    for product_id, count in working.new_enrollments.items():
        log.info("devices_enrolled", product=working.registry.products[product_id].name, count=count)
    for reason, count in Counter(refusal.reason for refusal in working.refusals).items():
        log.info("devices_refused", reason=reason, count=count)


def _order(work: Work) -> tuple[TopicName, str, int]:
    assert work.identity is not None
    assert work.message is not None
    hello_first = -1 if isinstance(work.message, Hello) else work.message.seq or 1 << 62
    return work.identity.topic_name, work.message.conn, hello_first
