"""The loop that works what a connection brings: a batch to its commit, the replies published, then acknowledged."""

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

import structlog

from gateway.faults import reach
from gateway.mqtt.client import Transport
from gateway.mqtt.intake import Incoming
from gateway.offering import Offering, ReadyOffer
from gateway.pipeline import Pipeline, Worked
from provisioning.errors import SetupError
from provisioning.messages import Reply
from provisioning.topics import Down, topic_of
from store.database import StoreUnavailableError
from store.times import now_utc

log: Final = structlog.get_logger()
ROOM_SECONDS: Final = 0.02
RETRY_SECONDS: Final = (0.1, 0.2, 0.5, 1.0, 2.0)


class Ingest:
    """Works one transport's messages, in the thread that calls `run`.

    Args:
        keep: raises `SetupError` where another process has taken this identity: it may then be working, too.
        batch_messages: most messages in one transaction.
        stopping: set: nothing is waited for any more.
    """

    def __init__(
        self,
        transport: Transport,
        pipeline: Pipeline,
        offering: Offering,
        *,
        prefix: str,
        keep: Callable[[], None],
        batch_messages: int,
        stopping: threading.Event,
    ) -> None:
        self._transport = transport
        self._pipeline = pipeline
        self._offering = offering
        self._prefix = prefix
        self._keep = keep
        self._batch_messages = batch_messages
        self._stopping = stopping
        self._room = threading.Event()

    def run(self, done: Callable[[], bool], wait_seconds: float) -> bool:
        """Works until there is nothing left and `done` says so.

        Args:
            wait_seconds: how long to wait for a message before `done` is asked.

        Returns: False where it gave up before: what was not acknowledged comes again.
        """
        while True:
            batch = self._transport.drain(self._batch_messages, wait_seconds)
            if not batch:
                if done():
                    return True
                continue
            worked = self._work_batch(batch)
            if worked is None:
                return False  # stopped while the database was away: nothing was acknowledged, all comes again
            offers = self._offering.complete(worked)
            answered = [
                incoming
                for incoming, reply in zip(batch, worked.replies, strict=True)
                if reply is None or self._publish(incoming, reply, offers)
            ]
            reach("after_publish")
            for incoming in answered:
                self._transport.acknowledge(incoming)
            reach("after_acknowledge")

    def _work_batch(self, batch: Sequence[Incoming]) -> Worked | None:
        attempt = 0
        while True:
            try:
                self._keep()  # without its lock, another may be working under this name
                return self._pipeline.work(batch)
            except SetupError as error:
                log.error("identity_lost", action="exit", cause=str(error))
                return None
            except StoreUnavailableError as error:
                log.warning("database_away", action="batch_waits", cause=str(error))
            if self._stopping.wait(RETRY_SECONDS[min(attempt, len(RETRY_SECONDS) - 1)]):
                return None
            attempt += 1

    def _publish(self, incoming: Incoming, reply: Reply, offers: Mapping[str, ReadyOffer]) -> bool:
        """Publishes a reply. False: its connection is gone; the message comes again and is answered again."""
        topic = topic_of(reply.topic_name, Down.REPLY, self._prefix)
        correlation = incoming.correlation if incoming.response_topic == topic else None
        ready = offers.get(reply.device_id) if reply.device_id is not None else None
        if ready is not None:
            reply = replace(reply, offer=ready.document)
        payload, token = reply.encode(now_utc()), None if ready is None else ready.outgoing
        while not self._transport.publish(topic, payload, correlation=correlation, token=token):
            stats = self._transport.stats()
            if not stats.connected or stats.generation != incoming.generation:
                return False
            self._room.wait(ROOM_SECONDS)  # the broker is behind; it will take more in a moment
        return True
