"""What happens by time alone: silent devices are ended, a restarted broker's devices become unknown.

Runs every few seconds in one thread of its own, in short transactions of at most `CHUNK` devices, so the
hello path never waits long for it. What one worker does for all is done by the one that leads; two that both
think so for a moment do no harm, since every step is decided anew under the devices' locks.
"""

import queue
import threading
from collections.abc import Callable
from datetime import datetime
from typing import Final

import structlog

from provisioning.devices import Connection, ConnectionState
from provisioning.sessions import end_connection
from store import answers, audit, brokers, connections, facts, reports, writer
from store.connections import OpenConnection
from store.database import Database, StoreUnavailableError
from store.locks import device_lock
from store.times import to_ms

log: Final = structlog.get_logger()
CHUNK: Final = 200


class Housekeeping:
    """The thread that keeps the present true.

    Args:
        database: where everything is kept.
        broker: whose uptime this worker hears.
        worker: whose counters change.
        clock: aware UTC.
        leads: whether this is the worker that works for all.
        interval_seconds: between two rounds.
    """

    def __init__(
        self,
        database: Database,
        *,
        broker: str,
        worker: str,
        clock: Callable[[], datetime],
        leads: Callable[[], bool] = lambda: True,
        interval_seconds: float = 5.0,
    ) -> None:
        self._leads = leads
        self._database = database
        self._broker = broker
        self._worker = worker
        self._clock = clock
        self._interval = interval_seconds
        self._uptimes: queue.SimpleQueue[tuple[int, datetime]] = queue.SimpleQueue()
        self._stopping = threading.Event()
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="housekeeping", daemon=True)
        self.connected = 0
        """Connected devices of all products at the last round; the heartbeat interval follows it."""

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its transaction."""
        self._stopping.set()
        self._wake.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def note_uptime(self, seconds: int) -> None:
        """Takes the broker's uptime from the network thread."""
        self._uptimes.put((seconds, self._clock()))
        self._wake.set()

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self.work()
            except StoreUnavailableError as error:
                log.warning("database_away", action="housekeeping_waits", cause=str(error))
            except Exception as error:  # the next round may do better; a dead thread would not be noticed
                log.error("housekeeping_failed", cause=str(error), exc_info=error)
            self._wake.wait(self._interval)
            self._wake.clear()

    def work(self) -> int:
        """One round. Returns how many connections it ended."""
        while not self._uptimes.empty():
            uptime, heard_at = self._uptimes.get()
            with self._database.write([f"broker/{self._broker}"]) as tx:
                restarted = brokers.note_uptime(tx, self._broker, uptime, to_ms(heard_at))
            if restarted:
                log.warning("broker_restarted", action="devices_unknown_until_heard", broker=self._broker)
        with self._database.read() as tx:
            self.connected = reports.count_connected(tx)
            names = sorted({self._broker, *brokers.list_names(tx)})
        if not self._leads():
            return 0
        with self._database.write(["audit"]) as tx:
            audit.seal(tx)
            answers.prune(tx, self._clock())
        return sum(self._end_earlier_epochs(name) + self._end_silent(name) for name in names)

    def _end_silent(self, broker: str) -> int:
        now = self._clock()
        with self._database.read() as tx:
            found = connections.list_silent(tx, broker, now, CHUNK)
        return self._end(
            broker,
            found,
            "timeout",
            ConnectionState.OFFLINE,
            lambda connection, _: connection.heard_by < now,
        )

    def _end_earlier_epochs(self, broker: str) -> int:
        with self._database.read() as tx:
            epoch = facts.load_epoch(tx, broker)
            found = connections.list_of_earlier_epochs(tx, broker, epoch, CHUNK)
        return self._end(
            broker,
            found,
            "broker_restart",
            ConnectionState.UNKNOWN,
            lambda connection, current: connection.epoch < current,
        )

    def _end(
        self,
        broker: str,
        found: list[OpenConnection],
        reason: str,
        state: ConnectionState,
        still: Callable[[Connection, int], bool],
    ) -> int:
        if not found:
            return 0
        locks = [device_lock(broker, connection.topic_name) for connection in found]
        now = self._clock()
        with self._database.write(locks) as tx:
            numbers = [connection.device_id for connection in found]
            working = facts.load_devices(tx, numbers, broker=broker, worker=self._worker)
            ended = 0
            for connection in found:
                current = working.connections.get(connection.device_id)
                if current is not None and still(current, working.epoch):
                    end_connection(working, working.devices[connection.device_id], reason, state, now)
                    ended += 1
            writer.apply(tx, working, now)
        log.info("connections_ended", reason=reason, count=ended)
        if len(found) == CHUNK:
            self._wake.set()  # there is more; no need to wait for the next round
        return ended
