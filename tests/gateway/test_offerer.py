"""The offerer opens attempts chunk by chunk, each committed before the next, and sees what changes in between."""

from pathlib import Path

import pytest
from fleets import Fleet, make_fleet

from gateway.offerer import CHUNK, Offerer
from gateway.operations import rollouts
from gateway.scheduler import Scheduler
from provisioning.ids import DeviceId, RolloutId
from provisioning.rollouts import Plan, RolloutState
from store import attempts, outbox
from store.database import Database
from store.ids import new_id
from store.times import now_utc, to_ms

DEVICES = 2 * CHUNK + 50
PACE = Plan(most_in_flight=10_000, most_per_minute=10_000)


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Fleet:
    """A product whose devices are connected, with a bundle that they do not run."""
    fleet = make_fleet(database, tmp_path)
    fleet.product("tracker")
    fleet.sign_bundles("tracker")
    fleet.push("tracker", "9.0.0", 9)
    for start in range(0, DEVICES, 150):
        fleet.enroll("tracker", *(f"dev-{number}" for number in range(start, start + 150)))
    return fleet


def begin(fleet: Fleet) -> int:
    """A rollout that has begun, and whose cohort is marked."""
    (made,) = rollouts.create(
        fleet.desk,
        fleet.principal,
        product="tracker",
        version="9.0.0",
        cohorts=["main"],
        plan=PACE,
        start_at=None,
    )
    scheduler = Scheduler(fleet.database, worker="w", wake=lambda: None)
    assert scheduler.advance()
    return int(made.rollout.id)


def make_offerer(fleet: Fleet) -> Offerer:
    return Offerer(fleet.database, broker="main", worker="w", clock=now_utc, new_id=new_id)


def count_open(fleet: Fleet) -> int:
    with fleet.database.read() as tx:
        return attempts.count_by_state(tx).get("offered", 0)


def test_each_chunk_is_committed_and_in_the_outbox_before_the_next_is_decided(fleet: Fleet) -> None:
    begin(fleet)
    told: set[DeviceId] = set()
    for chunk in make_offerer(fleet).work():
        assert len(chunk) <= CHUNK
        told |= {one.attempt.device_id for one in chunk}
        assert count_open(fleet) == len(told), "what was given is committed, and nothing beyond it"
        with fleet.database.read() as tx:
            assert outbox.has_left(tx, "main", to_ms(now_utc()) + 1)
            read = attempts.load_latest(tx, {one.attempt.device_id for one in chunk})
        for one in chunk:  # as it stands in the table, whose times are whole milliseconds
            found = read[one.attempt.device_id]
            told_of = (one.attempt.id, one.attempt.revision, one.attempt.state, one.topic_name)
            assert told_of == (
                found.attempt.id,
                found.attempt.revision,
                found.attempt.state,
                found.topic_name,
            )
    assert len(told) == count_open(fleet) >= DEVICES


def test_a_rollout_paused_between_two_chunks_offers_no_more(fleet: Fleet) -> None:
    number = begin(fleet)
    chunks = make_offerer(fleet).work()
    assert len(next(chunks)) == CHUNK
    rollouts.move(fleet.desk, fleet.principal, RolloutId(number), RolloutState.PAUSED)
    assert list(chunks) == []
    assert count_open(fleet) == CHUNK
