"""The one way through: parse → verify → lock → load → decide → apply → commit, for a batch of messages.

Cryptography happens before the transaction, so nobody waits for it; decisions are `provisioning`'s, rows
are `store`'s. What comes back says what to publish; the caller publishes, then acknowledges. A batch that
breaks is done again message by message, and one that still fails is set aside with its cause.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from typing import Final, Protocol

import structlog
from cryptography import x509

from gateway.faults import reach
from gateway.held import MOST_IN_ALL, HeldMessages
from provisioning.certificates import parse_chain, read_facts
from provisioning.devices import Credential
from provisioning.enrollment import list_claims
from provisioning.envelope import Envelope, PublicKey, load_spki, parse_envelope, verify_envelope
from provisioning.errors import FleetgateError, MessageError, RejectReason, VerificationError
from provisioning.freshness import is_clock_off, make_challenge
from provisioning.greeting import Terms, Verdict, decide_message
from provisioning.ids import KeyId, TopicName
from provisioning.messages import Hello, Message, Reply, Result, decode_chain, parse_message
from provisioning.topics import Up, UpTopic, parse_up
from provisioning.verification import TrustAnchors, VerifiedIdentity, check_validity, verify_chain
from provisioning.working import Registry, WorkingSet
from store import facts as store_facts
from store import registry as store_registry
from store import set_aside, writer
from store.database import Database, StoreUnavailableError

log: Final = structlog.get_logger()
_KEPT_KEYS: Final = 8192  # a public key object measures about 2 KiB


class Delivered(Protocol):
    """A message as the transport hands it over."""

    @property
    def topic(self) -> str: ...
    @property
    def payload(self) -> bytes: ...
    @property
    def received_at(self) -> datetime: ...


@dataclass(slots=True, kw_only=True)
class _Work:
    """One message on its way; `reply` is set as soon as it is known."""

    delivered: Delivered | None
    now: datetime
    topic: UpTopic | None = None
    envelope: Envelope | None = None
    message: Message | None = None
    identity: VerifiedIdentity | None = None
    reply: Reply | None = None
    done: bool = False


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was worked, for metrics; refusals of what was never proven are counted here and nowhere else."""

    messages: Counter[str] = field(default_factory=Counter)
    replies: Counter[tuple[str, str]] = field(default_factory=Counter)
    unproven: Counter[str] = field(default_factory=Counter)
    set_aside: int = 0
    batches: int = 0


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
        self._prefix = prefix
        self._new_id = new_id
        self._registry: Registry | None = None
        self._anchors = TrustAnchors(())
        self._held = HeldMessages(most_held)
        self.tally: Final = Tally()

    def work(self, batch: Sequence[Delivered]) -> list[Reply | None]:
        """Works a batch to its commit.

        Returns:
            For each message, in order, what to publish to its sender, if anything.

        Raises:
            StoreUnavailableError: the database is away; the same batch may be worked again.
        """
        self.tally.batches += 1
        works = [_Work(delivered=message, now=message.received_at) for message in batch]
        for work in works:
            self._attempt(work, self._parse)
        for _ in range(3):
            self._verify(works)
            try:
                self._decide_all(works)
                break
            except _RegistryChangedError:
                continue
        else:
            self._one_by_one([work for work in works if not work.done])
        for work in works:
            if work.reply is not None:
                self.tally.replies[work.reply.result, work.reply.reason or ""] += 1
        return [work.reply for work in works]

    def _parse(self, work: _Work) -> None:
        assert work.delivered is not None
        topic = parse_up(work.delivered.topic, self._prefix)
        if topic is None:
            self._drop(work, "foreign_topic")
            return
        work.topic = topic
        self.tally.messages[topic.verb] += 1
        terms = self._terms()
        try:
            envelope = parse_envelope(work.delivered.payload)
            message = parse_message(envelope, topic, full_topic=work.delivered.topic, audience=terms.audience)
        except MessageError as error:
            self._refuse_unproven(work, error.reason, error.detail)
            return
        work.envelope, work.message = envelope, message
        now_ms = int(work.now.timestamp() * 1000)
        if isinstance(message, Hello) and is_clock_off(message.ts, message.challenge, now_ms):
            self._challenge(work, RejectReason.CLOCK_OFF)

    def _verify(self, works: Sequence[_Work]) -> None:
        open_works = [work for work in works if not work.done]
        keys = {work.envelope.key_id for work in open_works if work.envelope is not None}
        with self._database.read() as tx:
            if self._registry is None or store_registry.load_revision(tx) != self._registry.revision:
                self._registry, self._anchors = store_registry.load_registry(tx)
            known = store_facts.load_credentials(tx, keys)
        for work in open_works:
            self._attempt(work, lambda one: self._verify_one(one, known))

    def _attempt(self, work: _Work, step: Callable[[_Work], None]) -> None:
        """Takes one message through a step; whatever it does, the others of its batch go on."""
        try:
            step(work)
        except (MessageError, VerificationError) as error:
            self._refuse_unproven(work, error.reason, error.detail)
        except Exception as error:  # a fault of ours: kept with its cause, and seen
            self._set_aside(work, error)

    def _verify_one(self, work: _Work, known: dict[KeyId, Credential]) -> None:
        assert work.envelope is not None
        assert work.message is not None
        assert work.topic is not None
        envelope, message = work.envelope, work.message
        chain = decode_chain(message) if isinstance(message, Hello) else ()
        if chain:
            identity = verify_chain(parse_chain(chain), self._anchors, work.now)
            if identity.key_id != envelope.key_id:
                raise VerificationError(
                    RejectReason.KEY_MISMATCH, f"keyid is not that of the certificate, {identity.key_id}"
                )
        else:
            credential = known.get(envelope.key_id)
            if credential is None or not credential.certificate:
                if isinstance(message, Hello):
                    self._challenge(work, RejectReason.CHAIN_REQUIRED)
                else:  # nothing is known of the sender, so nothing can be answered; its hello comes first
                    self._drop(work, "unknown_key")
                return
            identity = self._known_identity(credential, work.now)
        if identity.topic_name != work.topic.name:
            raise VerificationError(
                RejectReason.WRONG_TOPIC,
                f"the certificate is {identity.topic_name!r}, the topic is {work.topic.name!r}",
            )
        verify_envelope(envelope, _public_key(identity.spki))
        work.identity = identity

    def _known_identity(self, credential: Credential, now: datetime) -> VerifiedIdentity:
        facts = read_facts(_certificate(credential.certificate))
        anchor = self._anchors.by_id(credential.authority_id)
        if anchor is None:
            raise VerificationError(
                RejectReason.UNKNOWN_CA, f"CA {credential.authority_id} is not registered"
            )
        check_validity(facts, anchor, now)
        return VerifiedIdentity(
            key_id=credential.key_id,
            spki=credential.spki,
            topic_name=credential.topic_name,
            authority_id=credential.authority_id,
            product_id=anchor.product_id,
            certificate=facts,
        )

    def _decide_all(self, works: Sequence[_Work]) -> None:
        proven = [work for work in works if not work.done]
        if not proven:
            return
        proven += self._released(proven)
        proven.sort(key=_order)
        try:
            self._transact(proven)
        except (StoreUnavailableError, _RegistryChangedError):
            raise
        except Exception as error:  # whatever it is, one message must not take its batch down
            log.warning("batch_redone", action="one_by_one", messages=len(proven), cause=str(error))
            self._one_by_one(proven)

    def _one_by_one(self, works: Sequence[_Work]) -> None:
        for work in works:
            try:
                self._transact([work], any_revision=True)
            except StoreUnavailableError:
                raise
            except Exception as error:
                self._set_aside(work, error)

    def _transact(self, works: Sequence[_Work], *, any_revision: bool = False) -> None:
        registry = self._registry
        assert registry is not None
        keys, names, identifiers = set(), set(), set()
        for work in works:
            assert work.identity is not None
            keys.add(work.identity.key_id)
            names.add(work.identity.topic_name)
            identifiers |= list_claims(work.identity)
        locks = [*keys, *(f"{self._broker}/{name}" for name in names), *(f"{p}/{i}" for p, i in identifiers)]
        terms = self._terms()
        verdicts: list[tuple[_Work, Verdict]] = []
        reach("before_lock")
        with self._database.write(locks) as tx:
            if not any_revision and store_registry.load_revision(tx) != registry.revision:
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
            for work in works:
                assert work.message is not None
                assert work.identity is not None
                verdict = decide_message(
                    work.message, work.identity, working, terms=terms, now=work.now, new_id=self._new_id
                )
                verdicts.append((work, verdict))
            writer.apply(tx, working, works[-1].now)
            reach("after_apply")
        reach("after_commit")
        _log_changes(working)
        for work, verdict in verdicts:
            work.done = True
            work.reply = verdict.reply
            if verdict.held and work.message is not None and work.identity is not None:
                self._held.hold(work.message, work.identity, work.now)

    def _released(self, proven: Sequence[_Work]) -> list[_Work]:
        """Held messages of the sessions that this batch's hellos may open."""
        return [
            _Work(delivered=None, now=held.at, message=held.message, identity=held.identity)
            for work in proven
            if isinstance(work.message, Hello) and work.identity is not None
            for held in self._held.release(work.identity.key_id, work.message.conn, work.now)
        ]

    def _set_aside(self, work: _Work, error: Exception) -> None:
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
            work.reply = self._reply(work, Result.BUSY, RejectReason.INTERNAL_ERROR, retry_after_seconds=60)

    def _challenge(self, work: _Work, reason: RejectReason) -> None:
        work.done = True
        assert work.topic is not None
        self.tally.unproven[reason] += 1
        now_ms = int(work.now.timestamp() * 1000)
        challenge = make_challenge(self._terms().challenge_key, work.topic.name, now_ms)
        work.reply = self._reply(work, Result.CHALLENGE, reason, challenge=challenge)

    def _refuse_unproven(self, work: _Work, reason: RejectReason, detail: str) -> None:
        work.done = True
        self.tally.unproven[reason] += 1
        log.debug("refused_unproven", reason=reason, detail=detail)
        if work.topic is not None and work.topic.verb is Up.HELLO:
            work.reply = self._reply(work, Result.REJECTED, reason, retry_after_seconds=600)

    def _reply(
        self,
        work: _Work,
        result: Result,
        reason: RejectReason,
        *,
        challenge: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> Reply:
        assert work.topic is not None
        nonce = work.message.nonce if isinstance(work.message, Hello) else None
        return Reply(
            topic_name=work.topic.name,
            result=result,
            for_nonce=nonce,
            reason=reason,
            challenge=challenge,
            retry_after_seconds=retry_after_seconds,
        )

    def _drop(self, work: _Work, why: str) -> None:
        work.done = True
        self.tally.unproven[why] += 1


class _RegistryChangedError(FleetgateError):
    """Products, cohorts or CAs changed between verification and the transaction."""


def _log_changes(working: WorkingSet) -> None:
    for product_id, count in working.new_enrollments.items():
        log.info("devices_enrolled", product=working.registry.products[product_id].name, count=count)
    for reason, count in Counter(refusal.reason for refusal in working.refusals).items():
        log.info("devices_refused", reason=reason, count=count)


def _order(work: _Work) -> tuple[TopicName, str, int]:
    assert work.identity is not None
    assert work.message is not None
    hello_first = -1 if isinstance(work.message, Hello) else work.message.seq or 1 << 62
    return work.identity.topic_name, work.message.conn, hello_first


@lru_cache(maxsize=_KEPT_KEYS)
def _public_key(spki: bytes) -> PublicKey:
    return load_spki(spki)


@lru_cache(maxsize=_KEPT_KEYS)
def _certificate(der: bytes) -> x509.Certificate:
    return x509.load_der_x509_certificate(der)
