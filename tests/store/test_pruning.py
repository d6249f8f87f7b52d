"""Pruning: figures stay what they were, invariants hold at each commit, and what is broken later still shows."""

import random
import threading
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, cast

import pytest
import sqlalchemy as sa
from breaches import (
    BREACHES,
    Breach,
    a_counter_has_no_events,
    a_counter_is_one_too_high,
    a_rollout_had_more_in_flight_than_planned,
    an_attempt_is_gone,
    an_attempt_stands_elsewhere_than_its_events_say,
    an_event_is_gone,
    an_offer_came_before_its_rollout_began,
    attempt_of,
    break_store,
    change,
    number_of,
    one,
    product_of,
    rollout_of,
)
from fleets import Fleet, hello, make_fleet, says
from test_verify_store import STEPS, broken_in, populate, store

from gateway.device.messages import Presence
from gateway.http.routes.figures import MOST_BUCKETS
from gateway.operations import rollouts
from gateway.settings import LEAST_MINUTES_DAYS
from provisioning.attempts import AttemptState
from provisioning.ids import AttemptId, BundleId, CohortId, DeviceId, OrganizationId, ProductId, RolloutId
from provisioning.rollouts import RolloutState
from provisioning.statistics import ALL_TIME, MINUTE_MS, AttemptMark, Event, EventKind, Per
from provisioning.topics import Up
from store import counters, horizons, pruning, reports, timelines
from store.database import Database, Transaction
from store.horizons import Horizon
from store.schema import checkpoints, events, inbox, sessions
from store.schema import counters as counted
from store.times import from_ms, now_utc, to_ms
from store.verify import verify

__all__ = ["store"]  # the fixture
LATER: Final = timedelta(days=3650)
COUNTED: Final = "counters are the checkpoint and the events since"


def fold(database: Database, before: datetime, most: int = 1000, now: datetime | None = None) -> int:
    with database.write([pruning.LOCK]) as tx:
        return pruning.fold_events(tx, before, now or now_utc(), most)


def fold_all(database: Database, most: int = 1000) -> int:
    """Folds every event there is, as if years had passed."""
    count = 0
    while found := fold(database, now_utc() + LATER, most):
        count += found
    return count


def prune_all_minutes(database: Database, before: datetime, most: int = 1000, only: str = "") -> int:
    count = 0
    for table in pruning.PRUNED_MINUTES:
        if only not in ("", table.name):
            continue
        series: pruning.Series | None = pruning.FIRST_SERIES
        while series is not None:
            with database.write([pruning.LOCK]) as tx:
                found, series = pruning.prune_minutes(tx, table, before, series, most)
            count += found
    return count


def value(database: Database, query: str, **values: object) -> Any:
    with database.read() as tx:
        return one(tx, query, **values)


def figures(database: Database) -> dict[str, Any]:
    with database.read() as tx:
        organization = OrganizationId(one(tx, "SELECT id FROM organizations"))
        return reports.load_figures(tx, organization)


def clean(database: Database) -> None:
    report = verify(database)
    assert report.ok, report


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Fleet:
    made = make_fleet(database, tmp_path)
    populate(made)
    return made


def test_after_every_single_event_that_is_folded_all_invariants_hold_and_figures_are_the_same(
    store: Database,
) -> None:
    before = figures(store)
    assert before["totals"]["outcomes"] == {"succeeded": 1, "superseded": 1}
    assert before["totals"]["refusals"] == {"topic_name_taken": 1}
    count = value(store, "SELECT COUNT(*) FROM events")
    assert count > 30
    for left in reversed(range(count)):
        assert fold(store, now_utc() + LATER, most=1) == 1
        assert value(store, "SELECT COUNT(*) FROM events") == left
        clean(store)
    assert figures(store) == before
    assert fold(store, now_utc() + LATER) == 0


def test_minutes_go_before_their_events_or_after_and_totals_stay(store: Database) -> None:
    before, count = figures(store), value(store, "SELECT COUNT(*) FROM events")
    assert fold(store, now_utc() + LATER, count // 2) == count // 2
    assert value(store, "SELECT COUNT(*) FROM checkpoints WHERE bucket > 0") > 0
    clean(store)
    for table in ("counters", "checkpoints"):
        minutes = value(store, f"SELECT COUNT(*) FROM {table} WHERE bucket > 0")
        assert prune_all_minutes(store, now_utc() + timedelta(hours=2), most=3, only=table) == minutes > 0
        clean(store)
    assert fold(store, now_utc() + LATER, count) == count - count // 2
    clean(store)
    for table in ("counters", "checkpoints"):
        assert value(store, f"SELECT COUNT(*) FROM {table} WHERE bucket > 0") == 0, table
    assert value(store, "SELECT COUNT(*) FROM events") == 0
    assert figures(store) == before


def test_life_goes_on_behind_a_checkpoint(fleet: Fleet) -> None:
    """Attempts that were opened before go on, end and are called off; rollouts move; devices come, go and update."""
    assert fold_all(fleet.database) > 30
    with fleet.database.read() as tx:
        rollout, attempt = rollout_of(tx, "1.2.0"), attempt_of(tx, "s-1", "offered")
    (newcomer,) = fleet.enroll("sensor", "s-3")
    fleet.hear(*says(newcomer, Up.PRESENCE, [newcomer.presence(Presence.ONLINE)]))
    fleet.offer()
    clean(fleet.database)  # offered after the rollout's own events were pruned
    number = RolloutId(rollout)
    rollouts.move(fleet.desk, fleet.principal, number, RolloutState.PAUSED)
    clean(fleet.database)  # the state before the pause is known from the pause alone
    rollouts.move(fleet.desk, fleet.principal, number, RolloutState.RUNNING)
    rollouts.move(fleet.desk, fleet.principal, number, RolloutState.CANCELLED)
    rollouts.settle(fleet.desk, number, RolloutState.CANCELLED)
    clean(fleet.database)
    with fleet.database.read() as tx:
        assert one(tx, "SELECT state FROM attempts WHERE id = :id", id=attempt) == "cancelled"
    fleet.push("sensor", "1.3.0", 3)
    fleet.roll_out("sensor", "1.3.0", "main")
    with fleet.database.read() as tx:
        offer = attempt_of(tx, "s-3", "offered")
    steps = [newcomer.progress(offer_id=str(offer), state=state) for state in STEPS]
    fleet.hear(*says(newcomer, Up.PROGRESS, steps))
    newcomer.reboot(version="1.3.0", bundle_seq=3)
    newcomer.begin_connection()
    fleet.hear(hello(newcomer))
    clean(fleet.database)
    before, count = figures(fleet.database), value(fleet.database, "SELECT COUNT(*) FROM events")
    assert before["totals"]["outcomes"]["succeeded"] == 2
    for _ in range(count):
        fold(fleet.database, now_utc() + LATER, most=1)
        clean(fleet.database)
    assert figures(fleet.database) == before


STILL_SAID: Final = [
    (invariant, breach)
    for invariant, breach in BREACHES
    if breach
    not in (  # of these the events are a part, and they are below
        a_rollout_had_more_in_flight_than_planned,
        an_offer_came_before_its_rollout_began,
        an_attempt_stands_elsewhere_than_its_events_say,
        an_attempt_is_gone,
        an_event_is_gone,
    )
]


@pytest.mark.parametrize(
    ("invariant", "breach"), STILL_SAID, ids=[f"{name}-{breach.__name__}" for name, breach in STILL_SAID]
)
def test_what_breaks_after_everything_was_folded_is_found_and_named_as_before(
    store: Database, invariant: str, breach: Breach
) -> None:
    fold_all(store)
    prune_all_minutes(store, now_utc() + timedelta(hours=2))
    said = break_store(store, breach)
    assert broken_in(verify(store)) == {invariant: set(said.splitlines())}


def test_an_attempt_whose_events_were_pruned_is_still_missed_when_it_is_gone(store: Database) -> None:
    fold_all(store)
    said = break_store(store, an_attempt_is_gone).splitlines()[-1]
    assert said.endswith("/offered has 1 attempts, the counter says 2")
    assert broken_in(verify(store)) == {"I4": {said}}


def test_an_attempt_whose_events_were_pruned_still_stands_where_they_left_it(store: Database) -> None:
    fold_all(store)
    said = break_store(store, an_attempt_stands_elsewhere_than_its_events_say).splitlines()[1:]
    assert broken_in(verify(store)) == {"I4": set(said)}


def test_an_attempt_that_is_younger_than_what_was_pruned_must_have_events(store: Database) -> None:
    opening = value(store, "SELECT MIN(id) FROM events WHERE kind = 'attempt'")
    while value(store, "SELECT MIN(id) FROM events") < opening:
        fold(store, now_utc() + LATER, most=1)
    clean(store)

    def lose(tx: Transaction) -> str:
        attempt = attempt_of(tx, "s-2", "offered")
        tx.connection.execute(sa.text("DELETE FROM events WHERE attempt_id = :id"), {"id": attempt})
        return f"attempt {attempt} is offered, its last event says nothing"

    said = break_store(store, lose)
    found = broken_in(verify(store))
    assert found["I4"] == {said}
    assert set(found) == {"I4", "I5"}


def test_offers_before_and_after_the_checkpoint_are_in_flight_together(store: Database) -> None:
    second = value(
        store,
        "SELECT MAX(e.id) FROM events e JOIN attempts a ON a.id = e.attempt_id "
        "WHERE a.bundle_version = '1.1.0' AND e.before = ''",
    )
    while value(store, "SELECT MIN(id) FROM events") < second:
        fold(store, now_utc() + LATER, most=1)
    clean(store)
    said = break_store(store, a_rollout_had_more_in_flight_than_planned)
    assert broken_in(verify(store)) == {"I4": {said}}


def test_an_offer_under_a_rollout_that_does_not_offer_is_found_where_its_earlier_events_were_pruned(
    store: Database,
) -> None:
    begun = value(
        store,
        "SELECT e.id FROM events e JOIN rollouts r ON r.id = e.source_id JOIN bundles b ON b.id = r.bundle_id "
        "WHERE e.kind = 'rollout' AND e.word = 'running' AND b.version = '1.2.0'",
    )
    while value(store, "SELECT MIN(id) FROM events") <= begun:
        fold(store, now_utc() + LATER, most=1)
    clean(store)

    def pause(tx: Transaction) -> str:
        """As if the rollout had been paused already when it was offered: no event says that it was not."""
        rollout = rollout_of(tx, "1.2.0")
        change(tx, "UPDATE rollouts SET state = 'paused' WHERE id = :id", id=rollout)
        return "\n".join(
            f"attempt {attempt_of(tx, name, 'offered')} was opened while rollout {rollout} was paused"
            for name in ("s-1", "s-2")
        )

    said = break_store(store, pause)
    assert broken_in(verify(store)) == {"I4": set(said.splitlines())}


def test_a_checkpoint_that_is_wrong_shows(store: Database) -> None:
    fold_all(store)

    def falsify(tx: Transaction) -> str:
        pump = product_of(tx, "pump")
        change(
            tx,
            "UPDATE checkpoints SET value = value + 1 WHERE name = 'enrollments' AND bucket = 0 AND product_id = :id",
            id=pump,
        )
        return f"enrollments/jitp of product {pump}: events say 2, the counter 1"

    said = break_store(store, falsify)
    assert broken_in(verify(store)) == {"I5": {said}}


def test_a_counter_of_a_minute_shows_until_the_minute_is_pruned(store: Database) -> None:
    fold_all(store)

    def falsify(tx: Transaction) -> str:
        pump = product_of(tx, "pump")
        change(
            tx,
            "UPDATE counters SET value = 5 WHERE name = 'enrollments' AND bucket > 0 AND product_id = :id",
            id=pump,
        )
        return f"enrollments/jitp of product {pump}: events say 1, the counter 5"

    said = break_store(store, falsify)
    assert broken_in(verify(store)) == {"I5": {said}}
    prune_all_minutes(store, now_utc() + timedelta(hours=2))
    clean(store)


def test_a_fold_that_does_not_come_to_its_end_has_changed_nothing(store: Database) -> None:
    def load() -> list[list[tuple[Any, ...]]]:
        with store.read() as tx:
            return [
                [tuple(row) for row in tx.connection.execute(sa.select(table).order_by(*table.primary_key))]
                for table in (events, checkpoints, counted)
            ]

    def die() -> None:
        with store.write([pruning.LOCK]) as tx:
            assert pruning.fold_events(tx, now_utc() + LATER, now_utc(), 10) == 10
            assert pruning.prune_minutes(tx, counted, now_utc() + LATER, pruning.FIRST_SERIES, 10)[0] > 0
            raise OSError("the process ends here")

    fold(store, now_utc() + LATER, most=10)
    before = load()
    with pytest.raises(OSError, match="ends here"):
        die()
    assert load() == before
    clean(store)


NOW: Final = datetime(2026, 3, 1, 12, 30, 20, tzinfo=UTC)


def chance_event(chance: random.Random, days: float) -> Event:
    """Something that may happen, of any kind, within the last `days`."""
    kind = chance.choice(list(EventKind))
    words = {
        EventKind.DEVICE_STATE: ["", "active", "blocked"],
        EventKind.FIRMWARE: ["", "1.0", "2.0"],
        EventKind.ATTEMPT: [state.value for state in AttemptState],
        EventKind.ROLLOUT: ["running", "paused"],
    }.get(kind, ["jitp", "hello"])
    word = chance.choice(words)
    mark = AttemptMark(
        attempt_id=AttemptId(chance.randrange(5)),
        source_id=chance.randrange(3),
        bundle_id=BundleId(chance.randrange(2)),
        hardware=chance.choice(["m1", "m2"]),
        ends=word
        in ("succeeded", "failed", "rolled_back", "rejected", "timed_out", "cancelled", "superseded")
        or word == "already_installed",
        reason="other" if word == "failed" else "",
    )
    two_sided = kind in (EventKind.DEVICE_STATE, EventKind.FIRMWARE, EventKind.ATTEMPT, EventKind.ROLLOUT)
    return Event(
        at=NOW - timedelta(days=days) + timedelta(seconds=chance.randrange(7200)),
        kind=kind,
        product_id=ProductId(chance.randrange(1, 3)),
        cohort_id=chance.choice([None, CohortId(7)]),
        device_id=DeviceId(1),
        word=word,
        before=chance.choice(words) if two_sided else "",
        attempt=mark if kind is EventKind.ATTEMPT else None,
        source_id=3 if kind is EventKind.ROLLOUT else None,
    )


def sums(database: Database, since: int) -> dict[tuple[Any, ...], int]:
    """What counters say: totals, and minutes from `since` on; zeros left out."""
    columns = (counted.c.product_id, counted.c.cohort_id, counted.c.name, counted.c.word, counted.c.bucket)
    with database.read() as tx:
        rows = tx.connection.execute(
            sa.select(*columns, sa.func.sum(counted.c.value).label("value"))
            .where(sa.or_(counted.c.bucket == ALL_TIME, counted.c.bucket >= since))
            .group_by(*columns)
        )
        return {tuple(row[:-1]): int(row.value) for row in rows if row.value}


def counts_hold(database: Database) -> bool:
    (finding,) = [one for one in verify(database).findings if one.what == COUNTED]
    return not finding.breaches


@pytest.mark.parametrize("seed", range(4))
def test_any_history_pruned_anyhow_leaves_the_figures_as_they_were(database: Database, seed: int) -> None:
    chance = random.Random(seed)
    expected: dict[tuple[Any, ...], int] = {}
    folded = deleted = 0
    for day in reversed(range(100)):
        happened = [chance_event(chance, day) for _ in range(chance.randrange(12))]
        for key, change_of in counters.sum_changes(happened).items():
            expected[key] = expected.get(key, 0) + change_of
        with database.write() as tx:
            counters.record(tx, chance.choice(["a", "b"]), happened)
        action, age, most = (
            chance.randrange(3),
            timedelta(days=day + chance.randrange(40)),
            chance.randrange(1, 40),
        )
        if action == 0:
            folded += fold(database, NOW - age, most, now=NOW - timedelta(days=day))
        elif action == 1:
            deleted += prune_all_minutes(database, NOW - age, most)
        if day % 10 == 0:
            assert counts_hold(database), f"day {day}"
            with database.read() as tx:
                since = horizons.load(tx, Horizon.MINUTES)
            assert sums(database, since) == {
                key: total
                for key, total in expected.items()
                if total and (key[-1] == ALL_TIME or key[-1] >= since)
            }, f"day {day}"
    assert folded > 100, "events were folded"
    assert deleted > 100, "minutes were deleted"


def test_two_workers_fold_while_others_count_and_no_event_is_lost_or_folded_twice(database: Database) -> None:
    chance = random.Random(1)
    with database.write() as tx:
        counters.record(tx, "a", [chance_event(chance, 10) for _ in range(400)])
    failed: list[Exception] = []
    folded: list[int] = []
    begin = threading.Barrier(3)

    def prune() -> None:
        begin.wait(30)
        try:
            while count := fold(database, NOW - timedelta(days=5), 23):
                folded.append(count)
        except Exception as error:
            failed.append(error)

    def count() -> None:
        begin.wait(30)
        try:
            for _ in range(20):
                with database.write() as tx:
                    counters.record(tx, "b", [chance_event(chance, 1) for _ in range(5)])
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for work in (prune, prune, count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert failed == []
    assert sum(folded) == 400
    assert value(database, "SELECT COUNT(*) FROM events") == 100
    assert counts_hold(database)


def plain(at: datetime, word: str = "hello") -> Event:
    return Event(
        at=at,
        kind=EventKind.CONNECTED,
        product_id=ProductId(1),
        cohort_id=None,
        device_id=DeviceId(1),
        word=word,
    )


def test_events_go_in_order_up_to_the_first_that_is_young_enough(database: Database) -> None:
    old, young, future = NOW - timedelta(days=9), NOW - timedelta(days=1), NOW + timedelta(days=9)
    with database.write() as tx:
        counters.record(
            tx, "a", [plain(at, str(n)) for n, at in enumerate([future, old, future, young, old])]
        )
    assert fold(database, NOW - timedelta(days=5), now=NOW) == 2
    with database.read() as tx:
        left = tx.connection.execute(sa.select(events.c.word).order_by(events.c.id)).scalars().all()
    assert left == ["2", "3", "4"], "a clock that was ahead holds nothing back, and history has no gap"
    assert counts_hold(database)


def test_a_minute_that_was_pruned_does_not_come_back_with_its_event(database: Database) -> None:
    at = NOW - timedelta(days=70)
    with database.write() as tx:
        counters.record(tx, "a", [plain(at), plain(NOW)])
    assert prune_all_minutes(database, NOW - timedelta(days=60)) == 1
    assert counts_hold(database)
    assert fold(database, NOW - timedelta(days=1), now=NOW) == 1
    with database.read() as tx:
        kept = tx.connection.execute(sa.select(checkpoints.c.name, checkpoints.c.bucket)).all()
    assert sorted(map(tuple, kept)) == [("connected", 0), ("connects", 0)]
    assert counts_hold(database)


@pytest.fixture
def long_minutes(database: Database) -> Database:
    """Connects of every sixth minute over a day, and of some hundred days before."""
    with database.write() as tx:
        counters.record(tx, "a", [plain(NOW - timedelta(minutes=6 * n)) for n in range(240)])
        counters.record(tx, "b", [plain(NOW - timedelta(days=n)) for n in range(100)])
    return database


def test_minutes_are_deleted_piece_by_piece_and_by_the_whole_hour(long_minutes: Database) -> None:
    before = NOW - timedelta(hours=5)
    pieces, series = [], cast("pruning.Series | None", pruning.FIRST_SERIES)
    while series is not None:
        with long_minutes.write([pruning.LOCK]) as tx:
            found, series = pruning.prune_minutes(tx, counted, before, series, 50)
        pieces.append(found)
        assert counts_hold(long_minutes)
    assert len(pieces) > 4
    assert all(found <= 52 for found in pieces), "two workers may have the last minute"
    first = value(long_minutes, "SELECT MIN(bucket) FROM counters WHERE bucket > 0")
    assert from_ms(first) == before.replace(minute=0, second=0)
    with long_minutes.read() as tx:
        assert from_ms(horizons.load(tx, Horizon.MINUTES)) == before.replace(minute=0, second=0)


def test_a_horizon_never_moves_back(database: Database) -> None:
    with database.write() as tx:
        for at in (5, 9, 7):
            horizons.advance(tx, Horizon.MINUTES, at)
        assert horizons.load(tx, Horizon.MINUTES) == 9
        assert horizons.load(tx, Horizon.EVENTS) == 0


def test_whatever_the_api_may_ask_for_lies_within_the_shortest_retention() -> None:
    """The first of the most hours, as `load_flows` finds it, is not before the first minute that is kept."""
    for offset in range(0, 3600, 97):
        now = NOW + timedelta(seconds=offset)
        hour = Per.HOUR.width_ms
        asked = to_ms(now) // hour * hour - (MOST_BUCKETS - 1) * hour
        kept = to_ms(now - timedelta(days=LEAST_MINUTES_DAYS)) // hour * hour
        assert kept <= asked
    assert LEAST_MINUTES_DAYS * 24 == MOST_BUCKETS
    assert hour % MINUTE_MS == 0


def test_a_timeline_ends_with_what_was_pruned_where_something_was(fleet: Fleet) -> None:
    with fleet.database.read() as tx:
        known = DeviceId(number_of(tx, "s-1"))
        whole = timelines.load(tx, known, 100)
    assert "older_pruned" not in {one.kind for one in whole}
    third = whole[-3]
    last = value(
        fleet.database,
        "SELECT MAX(id) FROM (SELECT id FROM events WHERE device_id = :id ORDER BY id LIMIT 2) AS first_two",
        id=known,
    )
    while value(fleet.database, "SELECT MIN(id) FROM events") <= last:
        fold(fleet.database, now_utc() + LATER, most=1)
    fleet.enroll("sensor", "newcomer")
    with fleet.database.read() as tx:
        left = timelines.load(tx, known, 100)
        assert left[:-1] == whole[:-2]
        assert left[-2] == third
        assert left[-1].kind == timelines.PRUNED
        assert left[-1].at <= third.at
        assert timelines.load(tx, known, len(whole) - 2) == whole[:-2], "a list that is full has more, or not"
        newcomer = timelines.load(tx, DeviceId(number_of(tx, "newcomer")), 100)
        assert "older_pruned" not in {one.kind for one in newcomer}, "nothing of this one was pruned"


def test_sessions_go_by_age_and_in_pieces(store: Database) -> None:
    device = value(store, "SELECT MIN(id) FROM devices")
    with store.write() as tx:
        tx.connection.execute(sa.delete(sessions))
        row = {"device_id": device, "conn": "c", "opened_at": 0, "reason": "will"}
        ends = [NOW - timedelta(days=days) for days in (100, 99, 98, 97, 3, 2)]
        tx.connection.execute(sa.insert(sessions), [row | {"closed_at": to_ms(at)} for at in ends])
    found = []
    for _ in range(3):
        with store.write([pruning.LOCK]) as tx:
            found.append(pruning.prune_sessions(tx, NOW - timedelta(days=90), NOW, 3))
    assert found == [3, 1, 0]
    assert value(store, "SELECT COUNT(*) FROM sessions") == 2


def test_the_inbox_keeps_what_was_seen_again(store: Database) -> None:
    with store.write() as tx:
        first = tx.connection.execute(sa.select(inbox)).mappings().one()
        for number, days in enumerate((400, 200, 170, 300, 1)):
            row = {**first, "key_id": f"key-{number}", "last_at": to_ms(NOW - timedelta(days=days))}
            del row["id"]
            tx.connection.execute(sa.insert(inbox).values(row | {"first_at": 0}))
    row: int | None = 0
    found = []
    while row is not None:
        with store.write([pruning.LOCK]) as tx:
            count, row = pruning.prune_inbox(tx, NOW - timedelta(days=180), row, 2)
        found.append(count)
    assert found == [1, 1, 1, 0], "two rows at once, and the first is younger than any"
    with store.read() as tx:
        left = set(tx.connection.execute(sa.select(inbox.c.key_id)).scalars())
    assert left == {first["key_id"], "key-2", "key-4"}


def test_the_breaches_that_are_named_here_are_of_the_counters() -> None:
    """So that a checkpoint that hid them would be noticed above."""
    assert {a_counter_is_one_too_high, a_counter_has_no_events} <= {breach for _, breach in STILL_SAID}
