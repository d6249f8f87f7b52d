"""What a worker with the role `ingest` has: the connection, the loop that works it, its offers, and who has left."""

import threading
from collections.abc import Callable
from typing import Final

from gateway.http.server import make_links
from gateway.ingest import Ingest
from gateway.mqtt.client import Transport, TransportSettings
from gateway.offering import Offering
from gateway.pipeline import Pipeline
from gateway.retiring import Retiring
from gateway.settings import Settings
from provisioning.greeting import Terms
from store.database import Database
from store.ids import new_id


class Connected:
    """The parts between one broker and the database, started and stopped together.

    Args:
        way: how to reach the broker, and who we are there.
        root: the root secret.
        keep: raises `SetupError` where another process has taken this worker's identity.
        on_uptime: called with the broker's uptime in seconds.
    """

    def __init__(
        self,
        settings: Settings,
        database: Database,
        *,
        way: TransportSettings,
        root: bytes,
        terms: Callable[[], Terms],
        keep: Callable[[], None],
        on_uptime: Callable[[int], None],
    ) -> None:
        self._settings = settings
        self._database = database
        self._terms = terms
        self._keep = keep
        self.transport: Final = Transport(way)
        self.transport.on_uptime(on_uptime)
        self.pipeline: Final = self._make_pipeline()
        self.offering: Final = Offering(
            database,
            self.transport,
            broker=settings.broker.name,
            worker=settings.worker,
            prefix=settings.prefix,
            links=make_links(settings),
        )
        self._stopping = threading.Event()
        self._ingest = self._make_ingest(self.transport, self.pipeline, keep)
        self._retiring = Retiring(
            database,
            way=way,
            broker=settings.broker.name,
            root=root,
            make_ingest=self._take_over,
            stopping=self._stopping,
        )
        self._thread = threading.Thread(target=self._work, name="ingest", daemon=True)

    @property
    def alive(self) -> bool:
        """Whether messages are being worked."""
        return self._thread.is_alive()

    def start(self) -> None:
        """Starts every part."""
        self.transport.start()
        self.offering.start()
        self._thread.start()
        self._retiring.start()

    def stop_working(self) -> None:
        """Stops reading, and works what is queued."""
        self.transport.stop_reading()
        self._stopping.set()
        self._thread.join(timeout=60)
        self._retiring.join()

    def close(self) -> None:
        """Ends offers and connection."""
        self.offering.stop()
        self.transport.close()

    def _work(self) -> None:
        self._ingest.run(self._stopping.is_set, self._settings.limits.drain_seconds)

    def _take_over(self, transport: Transport, keep_theirs: Callable[[], None]) -> Ingest:
        """What works the messages of a worker that has left: as our own, while both identities are ours."""

        def keep() -> None:
            self._keep()
            keep_theirs()

        self.offering.attach(transport)
        return self._make_ingest(transport, self._make_pipeline(), keep)

    def _make_ingest(self, transport: Transport, pipeline: Pipeline, keep: Callable[[], None]) -> Ingest:
        return Ingest(
            transport,
            pipeline,
            self.offering,
            prefix=self._settings.prefix,
            keep=keep,
            batch_messages=self._settings.limits.batch_messages,
            stopping=self._stopping,
        )

    def _make_pipeline(self) -> Pipeline:
        settings = self._settings
        return Pipeline(
            self._database,
            terms=self._terms,
            broker=settings.broker.name,
            worker=settings.worker,
            prefix=settings.prefix,
            new_id=new_id,
            most_held=settings.limits.held_messages,
        )
