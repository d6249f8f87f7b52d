"""The offerer opens attempts chunk by chunk, each committed before the next, and sees what changes in between."""

from pathlib import Path

import pytest
import sqlalchemy as sa
from fleets import Fleet, make_fleet

from gateway.offerer import CHUNK
from gateway.operations import rollouts
from provisioning.ids import DeviceId, RolloutId
from provisioning.rollouts import RolloutState
from store import attempts, outbox
from store.database import Database
from store.schema import devices
from store.times import now_utc, to_ms

DEVICES = 2 * CHUNK + 50
PACE = {"most_in_flight": 10_000, "most_per_minute": 10_000}


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Fleet:
    """A product whose devices are connected, with a bundle that they do not run."""
    fleet = make_fleet(database, tmp_path)
    fleet.product("tracker")
    fleet.sign_bundles("tracker")
    fleet.push("tracker", "9.0.0", 9)
    for start in range(0, DEVICES, CHUNK):
        names = [f"dev-{number}" for number in range(start, min(start + CHUNK, DEVICES))]
        fleet.enroll("tracker", *names)
    return fleet


def count_open(fleet: Fleet) -> int:
    with fleet.database.read() as tx:
        return attempts.count_by_state(tx).get("offered", 0)


def test_each_chunk_is_committed_and_in_the_outbox_before_the_next_is_decided(fleet: Fleet) -> None:
    fleet.begin_rollout("tracker", "9.0.0", "main", **PACE)
    told: set[DeviceId] = set()
    for chunk in fleet.offerer().work():
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
    assert len(told) == count_open(fleet) == DEVICES


def test_a_rollout_paused_between_two_chunks_offers_no_more(fleet: Fleet) -> None:
    number = fleet.begin_rollout("tracker", "9.0.0", "main", **PACE)
    chunks = fleet.offerer().work()
    assert len(next(chunks)) == CHUNK
    rollouts.move(fleet.desk, fleet.principal, RolloutId(number), RolloutState.PAUSED)
    assert list(chunks) == []
    assert count_open(fleet) == CHUNK


def test_some_that_need_nothing_do_not_hold_up_the_others(fleet: Fleet) -> None:
    fleet.begin_rollout("tracker", "9.0.0", "main", **PACE)
    with fleet.database.write() as tx:  # after they were marked
        off = sa.update(devices).where(devices.c.identifier.in_(["dev-3", "dev-203", "dev-403"]))
        tx.connection.execute(off.values(updates_enabled=False))
    told = [len(chunk) for chunk in fleet.offerer().work()]
    assert sum(told) == count_open(fleet) == DEVICES - 3, "in one round"
