"""Offers of one worker: made within the hello that asks, and from a thread of its own for everybody else."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final

import structlog

from gateway.mqtt.client import Transport
from gateway.offerer import Offerer
from gateway.pipeline import Worked
from gateway.publisher import Links, Publisher
from provisioning.attempts import Attempt, AttemptState
from store.database import Database, StoreUnavailableError
from store.ids import new_id
from store.outbox import Outgoing
from store.times import now_utc

log: Final = structlog.get_logger()
ROUND_SECONDS: Final = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ReadyOffer:
    """An offer for a welcome; once the broker has the welcome, the outbox may forget it."""

    document: Mapping[str, Any]
    outgoing: Outgoing


class Offering:
    """Offerer and publisher of one broker, and the thread that runs them."""

    def __init__(
        self,
        database: Database,
        transport: Transport,
        *,
        broker: str,
        worker: str,
        prefix: str,
        links: Links,
    ) -> None:
        self._offerer = Offerer(database, broker=broker, worker=worker, clock=now_utc, new_id=new_id)
        self._publisher = Publisher(
            database, transport, broker=broker, prefix=prefix, links=links, clock=now_utc
        )
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="offering", daemon=True)

    @property
    def wake(self) -> Callable[[], None]:
        """To be called when devices may have become due."""
        return self._wake.set

    def attach(self, transport: Transport) -> None:
        """Hears from one more transport which offers the broker has."""
        self._publisher.attach(transport)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its transaction; what it has not published is adopted later."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def complete(self, worked: Worked) -> dict[str, ReadyOffer]:
        """Offers for the welcomes of a batch, by device: made now for those that are due, and those open.

        Where that fails, the welcomes go without: the devices stay due, and their offers follow.
        """
        found: dict[Any, Attempt] = dict(worked.attempts)
        welcomed = {reply.device_id for reply in worked.replies if reply is not None and reply.device_id}
        try:
            if worked.due:
                found |= {attempt.device_id: attempt for attempt in self._offerer.work_present(worked.due)}
            shown = [
                attempt
                for attempt in found.values()
                if str(attempt.device_id) in welcomed and attempt.state is not AttemptState.DEFERRED
            ]
            documents = self._publisher.render(shown)
        except StoreUnavailableError as error:
            log.warning("database_away", action="offers_follow", cause=str(error))
            return {}
        except Exception as error:  # a fault of ours must not keep a device from its welcome
            log.error("offers_failed", cause=str(error), exc_info=error)
            return {}
        return {
            str(attempt.device_id): ReadyOffer(
                document=documents[attempt.device_id],
                outgoing=Outgoing(device_id=attempt.device_id, revision=attempt.revision),
            )
            for attempt in shown
        }

    def work(self) -> int:
        """One round: opens what is due, publishes it, adopts what was left. Returns how many were opened."""
        opened = 0
        for chunk in self._offerer.work():
            opened += len(chunk)
            self._publisher.send(chunk)
        self._publisher.sweep()
        return opened

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.work()
            except StoreUnavailableError as error:
                log.warning("database_away", action="offering_waits", cause=str(error))
            except Exception as error:  # the next round may do better; a dead thread would not be noticed
                log.error("offering_failed", cause=str(error), exc_info=error)
            self._wake.wait(ROUND_SECONDS)
            self._wake.clear()
