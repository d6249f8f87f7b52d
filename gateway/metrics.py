"""Metrics in Prometheus' text format, read from what the parts count anyway; no label holds a device."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gateway.http.downloads import DownloadTally
from gateway.mqtt.client import TransportStats
from gateway.prover import Tally


class _Snapshot(Collector):
    def __init__(
        self, transport: TransportStats | None, tally: Tally | None, downloads: DownloadTally | None
    ) -> None:
        self._transport = transport
        self._tally = tally
        self._downloads = downloads

    def collect(self) -> Iterator[Metric]:
        """The families, from one look at the parts."""
        if self._transport is not None and self._tally is not None:
            yield from self._collect_messages(self._transport, self._tally)
        if self._downloads is not None:
            yield from self._collect_downloads(self._downloads)

    def _collect_messages(self, stats: TransportStats, tally: Tally) -> Iterator[Metric]:
        yield GaugeMetricFamily("fleetgate_broker_connected", "1 while connected", float(stats.connected))
        yield GaugeMetricFamily("fleetgate_queue_messages", "Messages waiting for a worker", stats.queued)
        yield CounterMetricFamily("fleetgate_queue_pauses", "Times that reading stopped", stats.pauses)
        yield CounterMetricFamily(
            "fleetgate_rate_limited", "Messages over the rate limit", stats.rate_limited
        )
        yield CounterMetricFamily("fleetgate_batches", "Batches worked", tally.batches)
        yield CounterMetricFamily("fleetgate_set_aside", "Messages set aside", tally.set_aside)
        messages = CounterMetricFamily("fleetgate_messages", "Messages by verb", labels=["verb"])
        for verb, count in tally.messages.copy().items():
            messages.add_metric([verb], count)
        yield messages
        replies = CounterMetricFamily("fleetgate_replies", "Replies", labels=["result", "reason"])
        for (result, reason), count in tally.replies.copy().items():
            replies.add_metric([result, reason], count)
        yield replies
        unproven = CounterMetricFamily(
            "fleetgate_unproven", "Messages that proved nothing", labels=["reason"]
        )
        for reason, count in tally.unproven.copy().items():
            unproven.add_metric([reason], count)
        yield unproven

    def _collect_downloads(self, tally: DownloadTally) -> Iterator[Metric]:
        yield GaugeMetricFamily("fleetgate_downloads_active", "Downloads under way", tally.active)
        yield CounterMetricFamily("fleetgate_download_bytes", "Bytes sent to devices", tally.sent_bytes)
        for name, text, label, counts in (
            ("fleetgate_downloads", "Downloads by how they ended", "outcome", tally.outcomes),
            ("fleetgate_downloads_refused", "Addresses that were not served", "reason", tally.refused),
        ):
            family = CounterMetricFamily(name, text, labels=[label])
            for word, count in counts.copy().items():
                family.add_metric([word], count)
            yield family


def render(transport: TransportStats | None, tally: Tally | None, downloads: DownloadTally | None) -> bytes:
    """Everything, as text; None for what this worker's roles leave out."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(transport, tally, downloads))
    return generate_latest(registry)
