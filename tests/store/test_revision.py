"""The registry's revision: every change of a slow-moving fact bumps it, and every worker sees it."""

import threading
from pathlib import Path

import pytest
from fleets import hello, make_fleet, make_pipeline

from gateway.operations import authorities, products, rollouts
from provisioning.authorities import AuthorityState
from provisioning.products import JitpSettings
from provisioning.rollouts import RolloutState
from store import revision
from store.database import Database


def load(database: Database) -> int:
    with database.read() as tx:
        return revision.load_revision(tx)


def bump(database: Database) -> None:
    with database.write() as tx:
        revision.bump_revision(tx)


def test_it_begins_at_0_and_counts_every_bump_of_two_workers(database: Database) -> None:
    assert load(database) == 0
    threads = [threading.Thread(target=lambda: [bump(database) for _ in range(10)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert load(database) == 20


def test_a_change_that_is_rolled_back_is_none(database: Database) -> None:
    def fail() -> None:
        with database.write() as tx:
            revision.bump_revision(tx)
            raise OSError("the process ends here")

    with pytest.raises(OSError, match="ends here"):
        fail()
    assert load(database) == 0


def test_every_change_that_decisions_go_by_bumps_it(database: Database, tmp_path: Path) -> None:
    fleet = make_fleet(database, tmp_path)
    desk, admin = fleet.desk, fleet.principal
    fleet.product("sensor")
    fleet.enroll("sensor", "dev-1")
    fleet.sign_bundles("sensor")
    (made,) = authorities.list_all(desk, admin, "sensor")
    numbers: list[int] = []
    changes = {
        "product": lambda: products.create(desk, admin, name="pump", description=""),
        "jitp": lambda: products.set_jitp(desk, admin, "pump", JitpSettings(enabled=True)),
        "cohort": lambda: products.create_cohort(desk, admin, product="pump", name="main", description=""),
        "ca": lambda: authorities.move(desk, admin, made.id, AuthorityState.RETIRING),
        "bundle": lambda: fleet.push("sensor", "1.1.0", 1),
        "rollout": lambda: numbers.append(fleet.roll_out("sensor", "1.1.0", "main")),
        "pause": lambda: rollouts.move(desk, admin, numbers[0], RolloutState.PAUSED),  # type: ignore[arg-type]
        "override": lambda: rollouts.create_override(
            desk,
            admin,
            product="sensor",
            version="1.1.0",
            names=["dev-1"],
            starts_at=None,
            ends_at=None,
        ),
    }
    silent = []
    for name, change in changes.items():
        before = load(database)
        change()
        if load(database) == before:
            silent.append(name)
    assert silent == []
    before = load(database)
    fleet.greet(fleet.voice("sensor", "dev-2"))
    assert load(database) == before, "a hello changes nothing that all workers must read again"


def test_another_worker_goes_by_a_change_in_its_next_batch(database: Database, tmp_path: Path) -> None:
    fleet = make_fleet(database, tmp_path)
    fleet.product("sensor")
    other = make_pipeline(database, "other")
    assert [
        reply.result for reply in other.work([hello(fleet.voice("sensor", "dev-1"))]).replies if reply
    ] == ["welcome"]
    products.set_jitp(fleet.desk, fleet.principal, "sensor", JitpSettings(enabled=False))
    (reply,) = other.work([hello(fleet.voice("sensor", "dev-2"))]).replies
    assert reply is not None
    assert reply.reason == "jitp_disabled"
