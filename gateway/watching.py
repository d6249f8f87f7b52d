"""What one device says and is told, live: each message decoded, with what it proves and why it was answered so.

It looks on beside the work, through a subscription of its own, and so sees what any worker does. Messages
are proven here a second time, by the same code, and nothing of it is counted or written.
"""

import json
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

from gateway.mqtt.connection import TransportSettings
from gateway.mqtt.listening import Heard, Listening
from gateway.operations import devices
from gateway.operations.desk import Desk
from gateway.prover import Prover, Tally, Work
from provisioning.access import Principal
from provisioning.decision import first_failed
from provisioning.diagnosis import diagnose
from provisioning.envelope import parse_envelope
from provisioning.errors import InvalidError, MessageError, NotFoundError, TooManyError
from provisioning.greeting import Terms
from provisioning.ids import TopicName
from provisioning.messages import Hello, decode_chain
from provisioning.strictjson import parse_json
from provisioning.topics import Down, Up, is_topic_name, topic_of
from store import devices as store_devices
from store.database import Database, StoreUnavailableError

MOST_WATCHES: Final = 8
"""Each holds a thread while it waits."""
_TICK_SECONDS: Final = 2.0
"""How soon the end of a reader is seen."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchTerms:
    """How the worker reaches the broker, and what it says of itself."""

    transport: TransportSettings
    terms: Callable[[], Terms]


class Watches:
    """The watches of one worker, a bounded number at a time."""

    def __init__(self, database: Database, terms: WatchTerms) -> None:
        self._database = database
        self._terms = terms
        self._free = threading.BoundedSemaphore(MOST_WATCHES)

    def open(self, desk: Desk, principal: Principal, name: str) -> "Watch":
        """Begins to watch.

        Args:
            name: a device by identifier, topic name or id; or the topic name of one that is not known yet.

        Raises:
            NotFoundError: the name is another organization's.
            InvalidError: it is no topic name.
            TooManyError: too many are open.
            BrokerAwayError: the broker cannot be reached.
        """
        topic_name = self._resolve(desk, principal, name)
        if not self._free.acquire(blocking=False):
            raise TooManyError(f"{MOST_WATCHES} watches are open on this worker; end one")
        try:
            return Watch(self._database, self._terms, desk, principal, topic_name, self._free.release)
        except BaseException:
            self._free.release()
            raise

    def _resolve(self, desk: Desk, principal: Principal, name: str) -> TopicName:
        try:
            found = devices.find(desk, principal, name).device.topic_name
        except NotFoundError:
            found = None
        if found is not None:
            return found
        if not is_topic_name(name):
            raise InvalidError(f"{name!r} is neither a device nor a topic name", field="name")
        with self._database.read() as tx:
            if store_devices.has_topic_name(tx, desk.broker, TopicName(name)):
                raise NotFoundError(f"no device {name!r}")
        return TopicName(name)


class Watch:
    """One device under watch; `close` it."""

    def __init__(
        self,
        database: Database,
        terms: WatchTerms,
        desk: Desk,
        principal: Principal,
        topic_name: TopicName,
        on_close: Callable[[], None],
    ) -> None:
        self.topic_name: Final = topic_name
        self._desk = desk
        self._principal = principal
        self._terms = terms
        prefix = terms.transport.prefix
        self._verbs = {topic_of(topic_name, verb, prefix): verb for verb in (*Up, *Down)}
        self._prover = Prover(database, terms=terms.terms, prefix=prefix, tally=Tally(), on_fault=_note_fault)
        self._last: Work | None = None
        self._foreign = False
        self._listening = Listening(terms.transport, list(self._verbs))
        self._on_close: Callable[[], None] | None = on_close

    def lines(self) -> Iterator[dict[str, Any] | None]:
        """What passes, for ever; None every two seconds in which nothing did."""
        while True:
            heard = self._listening.next(_TICK_SECONDS)
            yield None if heard is None else self._describe(heard)

    def close(self) -> None:
        """Ends it."""
        self._listening.close()
        on_close, self._on_close = self._on_close, None
        if on_close is not None:
            on_close()

    def _describe(self, heard: Heard) -> dict[str, Any] | None:
        verb = self._verbs.get(heard.topic)
        if verb is None:
            return None
        line = {"at": heard.received_at.isoformat(), "verb": verb.value, "bytes": len(heard.payload)}
        if isinstance(verb, Up):
            return self._describe_up(heard, line)
        if self._foreign:
            return None
        return self._describe_down(heard, line)

    def _describe_up(self, heard: Heard, line: dict[str, Any]) -> dict[str, Any] | None:
        work = self._last = Work(delivered=heard, now=heard.received_at)
        self._prover.parse([work])
        try:
            self._prover.verify([work])
        except StoreUnavailableError as error:  # whose it is cannot be told, and so it is not shown
            self._foreign = True
            return line | {
                "direction": "up",
                "payload": None,
                "proven": None,
                "reason": None,
                "detail": str(error),
            }
        self._foreign = self._is_foreign(work)
        if self._foreign:
            return None
        reason = None if work.reply is None else work.reply.reason
        return line | {
            "direction": "up",
            "payload": _payload_of(heard.payload),
            "proven": work.identity is not None,
            "reason": reason,
            "detail": self._detail_of(work, heard, reason),
        }

    def _is_foreign(self, work: Work) -> bool:
        """Whether another organization's CA signed the sender: then it is nothing of the watcher's."""
        registry = self._prover.registry
        if work.identity is None or registry is None:
            return False
        owner = registry.products[work.identity.product_id].organization_id
        return owner != self._principal.organization_id

    def _detail_of(self, work: Work, heard: Heard, reason: str | None) -> str:
        if reason is None:
            return ""
        found = diagnose(
            heard.payload,
            topic=heard.topic,
            prefix=self._terms.transport.prefix,
            now=heard.received_at,
            audience=self._terms.terms().audience,
        )
        rule = first_failed(found.rules)
        return rule.detail if rule is not None and rule.reason == reason else work.detail

    def _describe_down(self, heard: Heard, line: dict[str, Any]) -> dict[str, Any]:
        try:
            payload = json.loads(heard.payload)
        except ValueError:
            payload = None
        reason = payload.get("reason") if isinstance(payload, dict) else None
        return line | {
            "direction": "down",
            "payload": payload,
            "proven": None,
            "reason": reason,
            "detail": self._why(reason) if reason else "",
        }

    def _why(self, reason: str) -> str:
        """What a decision said, from its rules, made once more for the hello before."""
        work = self._last
        if work is None or work.identity is None or not isinstance(work.message, Hello):
            return ""
        if work.ended is not None:
            return work.ended.detail
        chain = decode_chain(work.message)
        if not chain:
            return ""
        rule = first_failed(devices.explain_certificates(self._desk, self._principal, chain))
        return rule.detail if rule is not None and rule.reason == reason else ""


def _note_fault(work: Work, error: Exception) -> None:
    work.done, work.detail = True, f"a fault of ours: {type(error).__name__}"


def _payload_of(data: bytes) -> Any:
    """What an envelope carries, certificates as their size; None where it cannot be read."""
    try:
        payload = parse_json(parse_envelope(data).payload)
    except MessageError:
        return None
    if isinstance(payload, dict) and isinstance(payload.get("chain"), list):
        count = len(payload["chain"])
        payload["chain"] = "1 certificate" if count == 1 else f"{count} certificates"
    return payload
