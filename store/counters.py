"""Events and the counters they change, written together, in key order.

Counter rows are keyed by worker too, so that workers never wait for one another's; readers sum.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence

import sqlalchemy as sa

from provisioning.statistics import MINUTE_MS, NO_COHORT, Event, list_deltas
from store.database import Transaction
from store.prepared import run_many
from store.schema import counters, events
from store.times import to_ms

CounterKey = tuple[int, int, str, str, int]
"""Product, cohort, name, word, bucket."""


def record(tx: Transaction, worker: str, happened: Sequence[Event]) -> None:
    """Appends events and changes their counters, in the caller's transaction.

    Args:
        worker: whose counter rows change.
        happened: in order.
    """
    if not happened:
        return
    run_many(
        tx,
        "events.insert",
        lambda: sa.insert(events),
        [
            {
                "at": to_ms(event.at),
                "kind": event.kind,
                "product_id": event.product_id,
                "cohort_id": event.cohort_id or NO_COHORT,
                "device_id": event.device_id,
                "word": event.word,
                "before": event.before,
                "attempt_id": None if event.attempt is None else event.attempt.attempt_id,
                "source_id": event.source_id if event.attempt is None else event.attempt.source_id,
                "bundle_id": None if event.attempt is None else event.attempt.bundle_id,
                "hardware": None if event.attempt is None else event.attempt.hardware,
                "reason": None if event.attempt is None else event.attempt.reason,
            }
            for event in happened
        ],
    )
    rows = [
        {
            "product_id": product,
            "cohort_id": cohort,
            "name": name,
            "word": word,
            "bucket": bucket,
            "worker": worker,
            "value": change,
        }
        for (product, cohort, name, word, bucket), change in sorted(sum_changes(happened).items())
        if change
    ]
    run_many(tx, "counters.add", lambda: _add(tx), rows)


def sum_changes(happened: Iterable[Event]) -> dict[CounterKey, int]:
    """What events change together: for each counter the sum, which may be zero."""
    # Most events of a batch are alike but for their device: what they change is found once, and multiplied.
    alike: dict[tuple[object, ...], list[Event]] = {}
    for event in happened:
        minute = int(event.at.timestamp()) * 1000 // MINUTE_MS
        same = (
            event.kind,
            event.product_id,
            event.cohort_id,
            event.word,
            event.before,
            minute,
            event.attempt,
        )
        alike.setdefault(same, []).append(event)
    sums: defaultdict[CounterKey, int] = defaultdict(int)
    for group in alike.values():
        for delta in list_deltas(group[0]):
            key = (delta.product_id, delta.cohort_id, delta.name, delta.word, delta.bucket)
            sums[key] += delta.change * len(group)
    return sums


def _add(tx: Transaction) -> sa.Insert:
    insert = tx.insert(counters)
    return insert.on_conflict_do_update(
        index_elements=list(counters.primary_key.columns),
        set_={"value": counters.c.value + insert.excluded.value},
    )
