"""The broker's capath, kept in step with the CAs of the database by every worker with the role `authorities`.

Which CAs are trusted changes in one transaction, wherever the command was run; here it is seen within a second, by
the revision that every such change bumps. So brokers on several hosts each need one such worker beside them.
"""

import threading
from collections.abc import Callable
from typing import Final

import structlog

from provisioning.errors import FleetgateError, SetupError
from store.database import Database, StoreUnavailableError
from store.revision import load_revision

log: Final = structlog.get_logger()
LOOK_SECONDS: Final = 1.0


class Trusting:
    """The thread that keeps one capath.

    Args:
        sync: makes it hold exactly the CAs that are trusted now.
    """

    def __init__(self, database: Database, sync: Callable[[], None]) -> None:
        self._database = database
        self._sync = sync
        self._seen = -1
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="trusting", daemon=True)

    def start(self) -> None:
        """Brings it in step, then keeps it so.

        Raises:
            SetupError: it cannot be written.
        """
        try:
            self.work()
        except SetupError as error:
            raise SetupError(
                f"broker.capath cannot be written: {error}; `fleetgate doctor` checks it"
            ) from error
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def work(self) -> bool:
        """One look. Returns whether there was something to do."""
        with self._database.read() as tx:
            revision = load_revision(tx)
        if revision == self._seen:
            return False
        self._sync()
        self._seen = revision  # read before: what changed since is seen at the next look
        return True

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_SECONDS):
            try:
                self.work()
            except StoreUnavailableError as error:
                log.warning("database_away", action="capath_waits", cause=str(error))
            except FleetgateError as error:
                log.error("capath_not_written", cause=str(error))
            except Exception as error:  # the next look may do better; a dead thread would not be noticed
                log.error("capath_failed", cause=str(error), exc_info=error)
