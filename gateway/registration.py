"""How a worker says that it is there: a row of its own, and a heartbeat by the database's clock."""

import threading
from collections.abc import Callable
from importlib.metadata import version
from typing import Final

import structlog

from gateway import secrets
from provisioning.workers import HEARD_EVERY_SECONDS, Worker, WorkerRole, WorkerState
from store import workers
from store.database import Database, StoreUnavailableError
from store.times import now_utc

log: Final = structlog.get_logger()


class Registration:
    """One worker's row, and the thread that keeps it.

    Args:
        name, broker, roles: what this worker is.
        client_id: its own at the broker; None where it has no connection there.
        root: the root secret, under which the client id is sealed; None where there is no client id.
        queued: how many messages it has received and not worked.
    """

    def __init__(
        self,
        database: Database,
        *,
        name: str,
        broker: str,
        roles: tuple[WorkerRole, ...],
        client_id: str | None,
        root: bytes | None,
        queued: Callable[[], int],
    ) -> None:
        self._database = database
        now = now_utc()  # the row has the database's times
        self._worker = Worker(
            name=name,
            broker=broker,
            roles=roles,
            version=version("fleetgate"),
            state=WorkerState.RUNNING,
            started_at=now,
            heard_at=now,
            queued=0,
            has_session=client_id is not None,
        )
        self._client_id = client_id
        self._sealed = None if client_id is None or root is None else secrets.seal(root, client_id)
        self._queued = queued
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="registration", daemon=True)

    def start(self) -> None:
        """Registers, then keeps the row in a thread of its own.

        Raises:
            StoreUnavailableError: the database is away.
        """
        self._register()
        self._thread.start()

    def stop(self, to: WorkerState = WorkerState.STOPPED) -> None:
        """Ends the thread, and says that the worker has ended. Repeating changes nothing.

        Args:
            to: `retiring` where it will not come back.
        """
        if self._stopping.is_set() or self._thread.ident is None:
            return
        self._stopping.set()
        self._thread.join(timeout=10)
        try:
            with self._database.write() as tx:
                workers.leave(tx, self._worker.name, to)
        except StoreUnavailableError as error:
            log.warning("database_away", action="worker_counts_as_gone_by_itself", cause=str(error))

    def _register(self) -> None:
        with self._database.write() as tx:
            workers.register(tx, self._worker, client_id=self._client_id, client_sealed=self._sealed)

    def _run(self) -> None:
        while not self._stopping.wait(HEARD_EVERY_SECONDS):
            try:
                with self._database.write() as tx:
                    known = workers.beat(tx, self._worker.name, self._queued())
                if not known:
                    self._register()
                    log.warning("worker_registered_again", worker=self._worker.name)
            except StoreUnavailableError as error:
                log.warning("database_away", action="heartbeat_waits", cause=str(error))
            except Exception as error:  # the next one may do better; a dead thread would not be noticed
                log.error("heartbeat_failed", cause=str(error), exc_info=error)
