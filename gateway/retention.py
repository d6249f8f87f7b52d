"""What is deleted by age, so that a gateway can run for years; `store.pruning` says how, the settings say when.

The worker that holds the scheduler's lease deletes rows, and every worker with a blob store the artifacts that no
bundle uses, each in a thread of its own: one short transaction after the other, with a pause after each, so that
nobody waits long for it. Every one of them leaves a store in which all invariants hold, wherever the process ends.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Final

import structlog

from gateway.faults import reach
from gateway.settings import RetentionSettings
from provisioning.errors import StoreError
from store import artifacts, pruning
from store.blobs import Blobs
from store.database import Database, StoreUnavailableError
from store.pruning import FIRST_SERIES, Series
from store.times import from_ms

log: Final = structlog.get_logger()
CHUNK: Final = 1000
"""Rows that go in one transaction; events take 50 to 80 ms (measured), and on SQLite others wait for so long."""
UPLOADS_CHUNK: Final = 20
PAUSE_SECONDS: Final = 0.2
"""After each transaction while there is more: some 3,500 rows a second at most, and most of the time for others."""
REST_SECONDS: Final = 600.0
REPORT_SECONDS: Final = 60.0
FIRST_SECONDS: Final = 60.0
"""After the start, when devices come back and there is enough to do."""


class Retention:
    """The thread that deletes what is older than the settings keep.

    Args:
        database: where everything is kept; its clock decides.
        blobs: None: this worker has none, and deletes no artifacts.
        is_holder: whether this worker holds the scheduler's lease.
        chunk: rows in one transaction, about.
    """

    def __init__(
        self,
        database: Database,
        blobs: Blobs | None,
        settings: RetentionSettings,
        *,
        is_holder: Callable[[], bool],
        chunk: int = CHUNK,
    ) -> None:
        self._database = database
        self._blobs = blobs
        self._settings = settings
        self._is_holder = is_holder
        self._chunk = chunk
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="retention", daemon=True)
        self._away = False
        self._left: deque[_Job] = deque()
        self._pruned: Counter[str] = Counter()
        self._report_at = 0.0
        self._table = 0
        self._series: Series = FIRST_SERIES
        self._inbox_row = 0

    def start(self) -> None:
        """Starts the thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread after its transaction."""
        self._stopping.set()
        if self._thread.ident is not None:
            self._thread.join(timeout=10)

    def _run(self) -> None:
        wait = FIRST_SECONDS
        while not self._stopping.wait(wait):
            try:
                wait = PAUSE_SECONDS if self.work() else REST_SECONDS
                self._away = False
            except StoreUnavailableError as error:
                if not self._away:
                    log.warning("database_away", action="retention_waits", cause=str(error))
                self._away, wait = True, FIRST_SECONDS

    def work(self) -> bool:
        """One piece of one kind, the kinds in turn. Returns whether there is more to do now.

        Raises:
            StoreUnavailableError: the database is away; what was done stays done.
        """
        if not self._left:
            self._begin()
        if not self._left:
            return False
        job = self._left.popleft()
        more = False
        try:
            with self._database.read() as tx:
                now = from_ms(tx.now_ms())
            if job is Retention._remove_uploads or self._is_holder():
                more = job(self, now)
        except StoreUnavailableError:
            self._left.appendleft(job)
            raise
        except Exception as error:  # the other kinds go on, and the next round may do better
            known = isinstance(error, StoreError)
            log.error(
                "pruning_failed", kind=job.__name__, cause=str(error), exc_info=None if known else error
            )
        if more:
            self._left.append(job)
        if self._pruned and (not self._left or time.monotonic() >= self._report_at):
            log.info("pruned", **self._pruned)
            self._pruned.clear()
            self._report_at = time.monotonic() + REPORT_SECONDS
        return bool(self._left)

    def _begin(self) -> None:
        kept = self._settings
        jobs: list[tuple[int, _Job]] = []
        if self._is_holder():
            jobs += [
                (kept.events_days, Retention._prune_events),
                (kept.minutes_days, Retention._prune_minutes),
                (kept.sessions_days, Retention._prune_sessions),
                (kept.inbox_days, Retention._prune_inbox),
            ]
        if self._blobs is not None:
            jobs.append((kept.refused_uploads_hours, Retention._remove_uploads))
        self._left.extend(job for age, job in jobs if age)
        self._table, self._series, self._inbox_row = 0, FIRST_SERIES, 0
        self._report_at = time.monotonic() + REPORT_SECONDS

    def _prune_events(self, now: datetime) -> bool:
        before = now - timedelta(days=self._settings.events_days)
        with self._database.write([pruning.LOCK]) as tx:
            count = pruning.fold_events(tx, before, now, self._chunk)
            reach("in_prune")
        return self._count(events=count)

    def _prune_minutes(self, now: datetime) -> bool:
        """Goes through the series of one table after the other."""
        before = now - timedelta(days=self._settings.minutes_days)
        table = pruning.PRUNED_MINUTES[self._table]
        with self._database.write([pruning.LOCK]) as tx:
            count, series = pruning.prune_minutes(tx, table, before, self._series, self._chunk)
            reach("in_prune")
        self._count(minutes=count)
        if series is None:
            self._table += 1
        self._series = series or FIRST_SERIES
        return self._table < len(pruning.PRUNED_MINUTES)

    def _prune_sessions(self, now: datetime) -> bool:
        before = now - timedelta(days=self._settings.sessions_days)
        with self._database.write([pruning.LOCK]) as tx:
            count = pruning.prune_sessions(tx, before, now, self._chunk)
        return self._count(sessions=count)

    def _prune_inbox(self, now: datetime) -> bool:
        before = now - timedelta(days=self._settings.inbox_days)
        with self._database.write([pruning.LOCK]) as tx:
            count, row = pruning.prune_inbox(tx, before, self._inbox_row, self._chunk)
        self._count(inbox=count)
        self._inbox_row = row or 0
        return row is not None

    def _remove_uploads(self, now: datetime) -> bool:
        """Deletes artifacts that no bundle uses: first the row says so, then the blob goes, then the row."""
        assert self._blobs is not None
        before = now - timedelta(hours=self._settings.refused_uploads_hours)
        with self._database.read() as tx:
            found = artifacts.list_unused(tx, before, UPLOADS_CHUNK)
        for unused in found:
            if self._stopping.is_set():
                break
            lock = artifacts.lock(unused.sha256)
            pushes = [artifacts.push_lock(product_id) for product_id in unused.product_ids]
            with self._database.write([lock, *pushes]) as tx:
                is_last = artifacts.condemn(tx, unused, before)
            if is_last:
                reach("before_blob_removed")
                self._blobs.remove(unused.sha256)
                reach("after_blob_removed")
                with self._database.write([lock]) as tx:
                    artifacts.forget(tx, unused.sha256)
            self._count(uploads=1)
        return len(found) > 0

    def _count(self, **counts: int) -> bool:
        """Adds to what was pruned. Returns whether that was anything."""
        self._pruned.update({kind: count for kind, count in counts.items() if count})
        return any(counts.values())


_Job = Callable[[Retention, datetime], bool]
"""Deletes a piece of one kind that is old at a time. Returns whether there may be more."""
