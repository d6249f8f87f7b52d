"""What is deleted by age: events behind a checkpoint, minutes of counters, sessions, and what the inbox has.

Every function does one bounded piece in the caller's transaction, which must hold `LOCK`. After any of them the
counters are still the checkpoint and the events since (invariant I5), minutes before `Horizon.MINUTES` left out.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Any, Final

import sqlalchemy as sa

from provisioning.attempts import ENDS, AttemptState
from provisioning.ids import AttemptId, BundleId, CohortId, DeviceId, ProductId
from provisioning.statistics import ALL_TIME, FLOWS, AttemptMark, Event, EventKind, Per
from store import horizons
from store.counters import sum_changes
from store.database import Transaction
from store.horizons import Horizon
from store.prepared import run_many
from store.schema import checkpoints, counters, events, inbox, sessions
from store.times import from_ms, to_ms

LOCK: Final = "retention"
"""The name under which the past is pruned, by one worker at a time."""
_MOST_SERIES: Final = 50
"""Series of minutes that are looked at in one transaction."""
Series = tuple[int, int, str, str]
"""Product, cohort, name, word: a counter without its bucket."""
FIRST_SERIES: Final[Series] = (-1, -1, "", "")
"""Before every other one."""


def fold_events(tx: Transaction, before: datetime, now: datetime, most: int) -> int:
    """Moves the oldest events into the checkpoint, and deletes them.

    Events go in the order of their numbers, so that what is left of a history has no gap.

    Args:
        before: those that happened earlier.
        now: the database's time; later than this is a clock that was wrong.
        most: at most so many.

    Returns:
        How many.
    """
    last = _last_to_go(tx, events, events.c.at, before, now, most)
    if last is None:
        return 0
    # What is deleted is what is folded, row by row, also where another worker's insert under an earlier number
    # was committed just now.
    gone = tx.connection.execute(sa.delete(events).where(events.c.id <= last).returning(events)).all()
    minutes = horizons.load(tx, Horizon.MINUTES)
    run_many(
        tx,
        "checkpoints.add",
        lambda: _add(tx),
        [
            {
                "product_id": product,
                "cohort_id": cohort,
                "name": name,
                "word": word,
                "bucket": bucket,
                "value": change,
            }
            for (product, cohort, name, word, bucket), change in sorted(
                sum_changes([_read_event(row) for row in gone]).items()
            )
            if change and (bucket == ALL_TIME or bucket >= minutes)
        ],
    )
    horizons.advance(tx, Horizon.EVENTS, max(row.at for row in gone))
    return len(gone)


def prune_minutes(
    tx: Transaction, table: sa.Table, before: datetime, after: Series, most: int
) -> tuple[int, Series | None]:
    """Deletes minutes from the next few series of `counters` or `checkpoints`.

    Args:
        before: those that began earlier; taken down to the hour, so that an hour is there whole or not at all.
        after: the series behind which to go on, or FIRST_SERIES.
        most: about so many rows at once.

    Returns:
        How many rows, and where to go on; None: this was the end.
    """
    first_kept = to_ms(before) // Per.HOUR.width_ms * Per.HOUR.width_ms
    horizons.advance(tx, Horizon.MINUTES, first_kept)
    deleted = 0
    for _ in range(_MOST_SERIES):
        series = _next_series(tx, table, after)
        if series is None:
            return deleted, None
        found, ended = _delete_minutes(tx, table, series, first_kept, most - deleted)
        deleted += found
        if not ended:
            return deleted, after
        after = series
    return deleted, after


def prune_sessions(tx: Transaction, before: datetime, now: datetime, most: int) -> int:
    """Deletes the oldest sessions that ended before a time. Returns how many."""
    last = _last_to_go(tx, sessions, sessions.c.closed_at, before, now, most)
    if last is None:
        return 0
    return tx.connection.execute(sa.delete(sessions).where(sessions.c.id <= last)).rowcount


def prune_inbox(tx: Transaction, before: datetime, after: int, most: int) -> tuple[int, int | None]:
    """Deletes from the next `most` rows of the inbox those that were last seen before a time.

    Args:
        after: the row behind which to go on; 0: from the first.

    Returns:
        How many were deleted, and where to go on; None: this was the end.
    """
    found = (
        tx.connection.execute(
            sa.select(inbox.c.id).where(inbox.c.id > after).order_by(inbox.c.id).limit(most)
        )
        .scalars()
        .all()
    )
    if not found:
        return 0, None
    part = sa.and_(inbox.c.id > after, inbox.c.id <= found[-1], inbox.c.last_at < to_ms(before))
    deleted = tx.connection.execute(sa.delete(inbox).where(part)).rowcount
    return deleted, found[-1] if len(found) == most else None


def _last_to_go(
    tx: Transaction,
    table: sa.Table,
    at: sa.ColumnElement[int],
    before: datetime,
    now: datetime,
    most: int,
) -> int | None:
    """The number up to which rows go: up to, and without, the first that is young enough to stay.

    Reads the oldest rows only: there is no index on time. A row from the future, which a wrong clock has
    written, keeps nothing: it goes with the old ones round it.
    """
    rows = tx.connection.execute(sa.select(table.c.id, at.label("at")).order_by(table.c.id).limit(most))
    last = None
    for row in rows.all():
        if row.at < to_ms(before):
            last = int(row.id)
        elif row.at <= to_ms(now):
            break
    return last


def _read_event(row: sa.Row[Any]) -> Event:
    kind = EventKind(row.kind)
    return Event(
        at=from_ms(row.at),
        kind=kind,
        product_id=ProductId(row.product_id),
        cohort_id=CohortId(row.cohort_id),
        device_id=None if row.device_id is None else DeviceId(row.device_id),
        word=row.word,
        before=row.before,
        attempt=AttemptMark(
            attempt_id=AttemptId(row.attempt_id),
            source_id=row.source_id,
            bundle_id=BundleId(row.bundle_id),
            hardware=row.hardware,
            ends=AttemptState(row.word) in ENDS,
            reason=row.reason,
        )
        if kind is EventKind.ATTEMPT
        else None,
        source_id=row.source_id,
    )


def _add(tx: Transaction) -> sa.Insert:
    insert = tx.insert(checkpoints)
    return insert.on_conflict_do_update(
        index_elements=list(checkpoints.primary_key.columns),
        set_={"value": checkpoints.c.value + insert.excluded.value},
    )


def _next_series(tx: Transaction, table: sa.Table, after: Series) -> Series | None:
    """The next series of a flow, along the primary key: one step, however many minutes it has."""
    key = _series_columns(table)
    bound = [sa.literal(value, column.type) for value, column in zip(after, key, strict=True)]
    query = (
        sa.select(*key)
        .where(sa.tuple_(*key) > sa.tuple_(*bound), table.c.name.in_(FLOWS))
        .order_by(*key)
        .limit(1)
    )
    row = tx.connection.execute(query).first()
    return None if row is None else (row.product_id, row.cohort_id, row.name, row.word)


def _delete_minutes(
    tx: Transaction, table: sa.Table, series: Series, first_kept: int, most: int
) -> tuple[int, bool]:
    """Deletes a series' oldest minutes. Returns how many rows, and whether none is left."""
    own = [column == value for column, value in zip(_series_columns(table), series, strict=True)]
    old = sa.and_(*own, table.c.bucket > ALL_TIME, table.c.bucket < first_kept)
    over = tx.connection.execute(
        sa.select(table.c.bucket).where(old).order_by(table.c.bucket).limit(1).offset(most)
    ).scalar()
    if over is not None:
        old = sa.and_(old, table.c.bucket <= over)
    return tx.connection.execute(sa.delete(table).where(old)).rowcount, over is None


def _series_columns(table: sa.Table) -> Sequence[sa.Column[Any]]:
    return table.c.product_id, table.c.cohort_id, table.c.name, table.c.word


PRUNED_MINUTES: Final = (counters, checkpoints)
"""The tables that have minutes; both lose the same ones."""
