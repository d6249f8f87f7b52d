"""The first half of the one way through: parse and verify, before any transaction and without any lock.

Takes messages as the transport hands them over and says of each what it proves: whose key signed it, or how
it is answered at once. What was not proven is counted here, in memory, and reaches no row.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache, partial
from typing import Final, Protocol

import structlog
from cryptography import x509

from provisioning.anchors import TrustAnchors
from provisioning.certificates import CertificateFacts, parse_chain, read_facts, signing_key_of
from provisioning.devices import Credential
from provisioning.envelope import Envelope, PublicKey, load_spki, parse_envelope, verify_envelope
from provisioning.errors import MessageError, RejectReason, VerificationError
from provisioning.freshness import is_clock_off, make_challenge
from provisioning.greeting import Terms
from provisioning.ids import KeyId
from provisioning.messages import Hello, Message, Reply, Result, decode_chain, parse_message
from provisioning.topics import UpTopic, parse_up
from provisioning.verification import (
    EndedIdentityError,
    VerifiedIdentity,
    check_sender,
    check_validity,
    verify_chain,
)
from provisioning.working import Registry
from store import facts, registry
from store.database import Database
from store.revision import load_revision

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
class Work:
    """One message on its way. Once `done`, `reply` is its answer (None: nothing is answered).

    Attributes:
        identity: whose key signed it, once verified.
        known: whether that key was known when it was verified.
        ended: what ended that identity (a revoked CA, an expired certificate); None while it holds.
        detail: what a refusal says to operators.
    """

    delivered: Delivered | None
    now: datetime
    topic: UpTopic | None = None
    envelope: Envelope | None = None
    message: Message | None = None
    identity: VerifiedIdentity | None = None
    known: bool = False
    ended: EndedIdentityError | None = None
    reply: Reply | None = None
    detail: str = ""
    done: bool = False

    def answer(
        self,
        result: Result,
        reason: RejectReason,
        *,
        challenge: str | None = None,
        retry_after_seconds: int | None = None,
    ) -> None:
        """Answers on the topic that the broker's ACL proved, and ends the work."""
        assert self.topic is not None
        self.done = True
        self.reply = Reply(
            topic_name=self.topic.name,
            result=result,
            for_nonce=self.message.nonce if isinstance(self.message, Hello) else None,
            reason=reason,
            challenge=challenge,
            retry_after_seconds=retry_after_seconds,
        )


@dataclass(slots=True, kw_only=True)
class Tally:
    """What was worked, for metrics; refusals of what was never proven are counted here and nowhere else."""

    messages: Counter[str] = field(default_factory=Counter)
    replies: Counter[tuple[str, str]] = field(default_factory=Counter)
    unproven: Counter[str] = field(default_factory=Counter)
    set_aside: int = 0
    batches: int = 0


class Prover:
    """Parses and verifies for one broker.

    Args:
        database: where registered CAs and known keys are read.
        terms: what this gateway says of itself.
        prefix: of topics.
        on_fault: is given a message that broke our own code; the others of its batch go on.
    """

    def __init__(
        self,
        database: Database,
        *,
        terms: Callable[[], Terms],
        prefix: str,
        tally: Tally,
        on_fault: Callable[[Work, Exception], None],
    ) -> None:
        self._database = database
        self._terms = terms
        self._prefix = prefix
        self._tally = tally
        self._on_fault = on_fault
        self._anchors = TrustAnchors(())
        self.registry: Registry | None = None
        """Products, cohorts and CAs as of the latest `verify`."""

    def parse(self, works: Sequence[Work]) -> None:
        """Reads every message as what its topic promises; a clock that is far off is challenged here."""
        for work in works:
            self._attempt(work, self._parse_one)

    def verify(self, works: Sequence[Work]) -> None:
        """Finds and proves the sender of every message that is not done.

        Raises:
            StoreUnavailableError: the database is away.
        """
        open_works = [work for work in works if not work.done]
        keys = {work.envelope.key_id for work in open_works if work.envelope is not None}
        with self._database.read() as tx:
            if self.registry is None or load_revision(tx) != self.registry.revision:
                self.registry, self._anchors = registry.load_registry(tx)
            known = facts.load_credentials(tx, keys)
        for work in open_works:
            work.identity = work.ended = None
            self._attempt(work, lambda one: self._verify_one(one, known))

    def _attempt(self, work: Work, step: Callable[[Work], None]) -> None:
        try:
            step(work)
        except (MessageError, VerificationError) as error:
            self._refuse(work, error.reason, error.detail)
        except Exception as error:  # a fault of ours: kept with its cause, and seen
            self._on_fault(work, error)

    def _parse_one(self, work: Work) -> None:
        assert work.delivered is not None
        topic = parse_up(work.delivered.topic, self._prefix)
        if topic is None:
            self._drop(work, "foreign_topic")
            return
        work.topic = topic
        self._tally.messages[topic.verb] += 1
        envelope = parse_envelope(work.delivered.payload)
        message = parse_message(
            envelope, topic, full_topic=work.delivered.topic, audience=self._terms().audience
        )
        work.envelope, work.message = envelope, message
        now_ms = int(work.now.timestamp() * 1000)
        if isinstance(message, Hello) and is_clock_off(message.ts, message.challenge, now_ms):
            self._challenge(work, RejectReason.CLOCK_OFF)

    def _verify_one(self, work: Work, known: dict[KeyId, Credential]) -> None:
        assert work.envelope is not None
        assert work.message is not None
        assert work.topic is not None
        ders = decode_chain(work.message) if isinstance(work.message, Hello) else ()
        credential = known.get(work.envelope.key_id)
        ended = None
        chain: tuple[x509.Certificate, ...] = ()
        try:
            if ders and not self._holds(credential, ders[0], work.now):
                chain = parse_chain(ders)
                identity = verify_chain(chain, self._anchors, work.now)
            elif credential is not None and credential.certificate:
                identity = self._known_identity(credential, work.now)
            elif isinstance(work.message, Hello):
                self._challenge(work, RejectReason.CHAIN_REQUIRED)
                return
            else:  # nothing is known of the sender, so nothing can be answered; its hello comes first
                self._drop(work, "unknown_key")
                return
        except EndedIdentityError as error:
            identity, ended = error.identity, error
        check_sender(identity, work.envelope.key_id, work.topic.name)
        key = signing_key_of(chain[0]) if chain else _public_key(identity.spki)
        verify_envelope(work.envelope, key)
        if ended is not None and not isinstance(work.message, Hello):
            self._drop(work, ended.reason)
            return
        work.identity, work.ended, work.known = identity, ended, credential is not None

    def _holds(self, credential: Credential | None, der: bytes, now: datetime) -> bool:
        """Whether a key was welcomed with this very certificate, and nothing above that has ended since.

        Then its chain says nothing new, as if it had been left out, and half the cost of a hello is spared.
        """
        if credential is None or credential.certificate != der:
            return False
        try:
            self._known_identity(credential, now)
        except VerificationError:
            return False
        return True

    def _known_identity(self, credential: Credential, now: datetime) -> VerifiedIdentity:
        anchor = self._anchors.by_id(credential.authority_id)
        if anchor is None:
            raise VerificationError(
                RejectReason.UNKNOWN_CA, f"CA {credential.authority_id} is not registered"
            )
        identity = VerifiedIdentity(
            key_id=credential.key_id,
            spki=credential.spki,
            topic_name=credential.topic_name,
            authority_id=credential.authority_id,
            product_id=anchor.product_id,
            fingerprint=credential.fingerprint,
            valid_from=credential.not_before,
            valid_until=credential.not_after,
            read_certificate=partial(_read_certificate, credential.certificate),
        )
        check_validity(identity, anchor, now)
        return identity

    def _challenge(self, work: Work, reason: RejectReason) -> None:
        assert work.topic is not None
        self._tally.unproven[reason] += 1
        now_ms = int(work.now.timestamp() * 1000)
        challenge = make_challenge(self._terms().challenge_key, work.topic.name, now_ms)
        work.answer(Result.CHALLENGE, reason, challenge=challenge)

    def _refuse(self, work: Work, reason: RejectReason, detail: str) -> None:
        work.done, work.detail = True, detail
        self._tally.unproven[reason] += 1
        log.debug("refused_unproven", reason=reason, detail=detail)
        if work.topic is not None:
            work.answer(Result.REJECTED, reason, retry_after_seconds=600)

    def _drop(self, work: Work, why: str) -> None:
        work.done = True
        self._tally.unproven[why] += 1


@lru_cache(maxsize=_KEPT_KEYS)
def _public_key(spki: bytes) -> PublicKey:
    return load_spki(spki)


@lru_cache(maxsize=_KEPT_KEYS)
def _read_certificate(der: bytes) -> CertificateFacts:
    return read_facts(x509.load_der_x509_certificate(der))
