"""Events and the counters they change, written together, in key order.

Counter rows are keyed by worker too, so that workers never wait for one another's; readers sum.
"""

from collections import defaultdict
from collections.abc import Sequence

import sqlalchemy as sa

from provisioning.statistics import NO_COHORT, Event, list_deltas
from store.database import Transaction
from store.schema import counters, events
from store.times import to_ms


def record(tx: Transaction, worker: str, happened: Sequence[Event]) -> None:
    """Appends events and changes their counters, in the caller's transaction.

    Args:
        worker: whose counter rows change.
        happened: in order.
    """
    if not happened:
        return
    tx.connection.execute(
        sa.insert(events),
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
    sums: defaultdict[tuple[int, int, str, str, int], int] = defaultdict(int)
    for event in happened:
        for delta in list_deltas(event):
            key = (delta.product_id, delta.cohort_id, delta.name, delta.word, delta.bucket)
            sums[key] += delta.change
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
        for (product, cohort, name, word, bucket), change in sorted(sums.items())
        if change
    ]
    if rows:
        insert = tx.insert(counters)
        tx.connection.execute(
            insert.on_conflict_do_update(
                index_elements=list(counters.primary_key.columns),
                set_={"value": counters.c.value + insert.excluded.value},
            ),
            rows,
        )
