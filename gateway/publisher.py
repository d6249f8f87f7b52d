"""Offers on their way out: rendered as committed a moment ago or as read again, forgotten once the broker has them.

The worker that opened an attempt publishes it; what is left in the outbox for some seconds, because a worker
died or the broker was away, is adopted by any worker on that broker.
"""

import json
import queue
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any, Final

import structlog

from gateway.faults import reach
from gateway.mqtt.client import Transport
from provisioning.attempts import Attempt
from provisioning.bundles import Bundle
from provisioning.ids import BundleId, DeviceId
from provisioning.offers import render_offer
from provisioning.topics import Down, topic_of
from store import attempts, bundles, outbox
from store.attempts import LatestAttempt
from store.database import Database
from store.outbox import Outgoing
from store.times import to_ms

log: Final = structlog.get_logger()
ADOPT_AFTER: Final = timedelta(seconds=5)
CHUNK: Final = 500
_ENCODER: Final = json.JSONEncoder(separators=(",", ":"))
Links = Callable[[DeviceId, str, str, datetime], str]
"""The address of an artifact for a device: (device, SHA-256, name, now) → URL."""


class Publisher:
    """Publishes offers on one broker.

    Args:
        transport: the connection to that broker; takes over its `on_published`.
        links: makes addresses of artifacts.
        clock: aware UTC.
    """

    def __init__(
        self,
        database: Database,
        transport: Transport,
        *,
        broker: str,
        prefix: str,
        links: Links,
        clock: Callable[[], datetime],
    ) -> None:
        self._database = database
        self._transport = transport
        self._broker = broker
        self._prefix = prefix
        self._links = links
        self._clock = clock
        self._sent: queue.SimpleQueue[Outgoing] = queue.SimpleQueue()
        self._bundle = lru_cache(maxsize=256)(self._load_bundle)
        self.attach(transport)

    def attach(self, transport: Transport) -> None:
        """Hears from a transport which offers the broker has: of this connection's own, and of one taken over."""
        transport.on_published(self._published)

    def render(self, found: Iterable[Attempt]) -> dict[DeviceId, Mapping[str, Any]]:
        """Offers, or cancellations, as devices read them."""
        now = self._clock()
        return {
            attempt.device_id: render_offer(
                attempt, self._bundle(attempt.bundle_id), self._links_of(attempt, now)
            )
            for attempt in found
        }

    def publish(self, offers: Iterable[Outgoing]) -> int:
        """Publishes what the outbox holds for these devices. Returns how many the transport took."""
        wanted = {offer.device_id: offer for offer in offers}
        if not wanted:
            return 0
        with self._database.read() as tx:
            found = attempts.load_latest(tx, wanted)
        return self.send(found.values())

    def send(self, found: Iterable[LatestAttempt]) -> int:
        """Publishes offers as they are given: committed a moment ago, or just read. Returns as `publish`.

        What changes one meanwhile has a higher revision and is published, too; devices go by that.
        """
        taken = 0
        for latest in found:
            attempt = latest.attempt
            outgoing = Outgoing(device_id=attempt.device_id, revision=attempt.revision)
            payload = self.encode(attempt)
            if not self._transport.publish(
                topic_of(latest.topic_name, Down.OFFER, self._prefix), payload, token=outgoing
            ):
                break  # no connection, or the broker is behind: the outbox keeps the rest
            taken += 1
        if taken:
            reach("after_offer_publish")
        return taken

    def encode(self, attempt: Attempt) -> bytes:
        """One offer as bytes."""
        return _ENCODER.encode(self.render([attempt])[attempt.device_id]).encode()

    def sweep(self) -> None:
        """Forgets what the broker has acknowledged, and publishes what was left lying."""
        sent: list[Outgoing] = []
        while not self._sent.empty():
            sent.append(self._sent.get())
        before = to_ms(self._clock() - ADOPT_AFTER)
        with self._database.read() as tx:
            if not sent and not outbox.has_left(tx, self._broker, before):
                return
        with self._database.write() as tx:
            outbox.delete(tx, sent)
            left = outbox.adopt(tx, self._broker, before, CHUNK)
        if left:
            log.info("offers_adopted", count=len(left))
            self.publish(left)

    def _published(self, token: object) -> None:
        if isinstance(token, Outgoing):
            self._sent.put(token)

    def _links_of(self, attempt: Attempt, now: datetime) -> Callable[[str, str], str]:
        return lambda sha256, name: self._links(attempt.device_id, sha256, name, now)

    def _load_bundle(self, number: BundleId) -> Bundle:
        with self._database.read() as tx:
            return bundles.load_by_ids(tx, [number])[number]
