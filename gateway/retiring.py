"""Sessions at this worker's broker whose workers left them for good: they are emptied, and then ended.

What waits there is worked by this worker, through the same pipeline, and nothing of it is lost. The client id's lock in
the database says that nobody works under it meanwhile; a crash on the way leaves the rest for the next who looks.
"""

import contextlib
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Final

import structlog

from gateway import secrets
from gateway.ingest import Ingest
from gateway.mqtt.client import Transport, TransportSettings
from gateway.mqtt.leaving import LeavingTransport, end_session
from gateway.mqtt.listening import BrokerAwayError
from provisioning.errors import SetupError
from store import identity, workers
from store.database import Database, StoreUnavailableError
from store.workers import Leaving

log: Final = structlog.get_logger()
LOOK_SECONDS: Final = 2.0
_QUIET_SECONDS: Final = 0.2


class Retiring:
    """The thread that looks for them.

    Args:
        way: this worker's own way to the broker.
        broker: its name.
        root: the root secret, under which client ids are sealed.
        make_ingest: what works a transport's messages, while the given `keep` does not raise.
        stopping: set when this worker stops.
    """

    def __init__(
        self,
        database: Database,
        *,
        way: TransportSettings,
        broker: str,
        root: bytes,
        make_ingest: Callable[[Transport, Callable[[], None]], Ingest],
        stopping: threading.Event,
    ) -> None:
        self._database = database
        self._way = way
        self._broker = broker
        self._root = root
        self._make_ingest = make_ingest
        self._stopping = stopping
        self._thread = threading.Thread(target=self._run, name="retiring", daemon=True)

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def join(self) -> None:
        """Waits for its end, once `stopping` is set."""
        if self._thread.ident is not None:
            self._thread.join(timeout=30)

    def work(self) -> int:
        """One look. Returns how many sessions have ended."""
        with self._database.read() as tx:
            found = workers.list_leaving(tx, self._broker)
        return sum(self._retire(leaving) for leaving in found)

    def _retire(self, leaving: Leaving) -> bool:
        try:
            client_id = secrets.unseal(self._root, leaving.client_sealed)
            with contextlib.ExitStack() as stack:
                keep: Callable[[], None] = lambda: None  # noqa: E731 - on SQLite there is no other process
                if not self._database.is_sqlite:
                    keep = stack.enter_context(identity.held(self._database, client_id)).keep
                if client_id != self._way.client_id and not self._empty(leaving, client_id, keep):
                    return False
                with self._database.write() as tx:
                    ended = workers.finish(tx, leaving)
        except (SetupError, BrokerAwayError) as error:
            log.warning("session_not_ended", action="tried_again", worker=leaving.name, cause=str(error))
            return False
        if ended:
            log.info("session_ended", worker=leaving.name, broker=leaving.broker)
        return ended

    def _empty(self, leaving: Leaving, client_id: str, keep: Callable[[], None]) -> bool:
        """Works what waits in a session, and ends it. False where this worker stops before."""
        way = replace(self._way, client_id=client_id)
        transport = LeavingTransport(way)
        transport.start()
        try:
            whole = self._make_ingest(transport, keep).run(
                lambda: transport.drained or self._stopping.is_set(), _QUIET_SECONDS
            )
            drained, worked = whole and transport.drained, transport.stats().received
        finally:
            transport.close()
        if not drained:
            return False
        log.info("session_emptied", worker=leaving.name, messages=worked)
        end_session(way)
        return True

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.work()
            except StoreUnavailableError as error:
                log.warning("database_away", action="retiring_waits", cause=str(error))
            except Exception as error:  # the next look may do better; a dead thread would not be noticed
                log.error("retiring_failed", cause=str(error), exc_info=error)
