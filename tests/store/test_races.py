"""Two workers that decided over the same facts: the database lets one of them have it, and tells the other."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from broker_fixtures import DEADLINE_SECONDS, wait_until
from fleets import TERMS, Fleet, Said, hello, make_fleet, make_pipeline

from gateway.device.messages import Voice
from gateway.operations import products as operations
from gateway.prover import Prover, Tally, Work
from provisioning.enrollment import list_claims
from provisioning.errors import ConflictError
from provisioning.greeting import decide_message
from provisioning.messages import Result
from provisioning.products import JitpSettings
from provisioning.working import WorkingSet
from store import facts, writer
from store.database import BrokenConstraintError, Database, Transaction
from store.ids import new_id
from store.schema import devices, inbox, products
from store.times import now_utc
from store.verify import verify


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Fleet:
    return make_fleet(database, tmp_path)


def decide(fleet: Fleet, voice: Voice) -> WorkingSet:
    """What a worker has decided over a hello, a welcome, and not written yet."""

    def fail(_: Work, error: Exception) -> None:
        raise error

    said = hello(voice)
    work = Work(delivered=said, now=said.received_at)
    prover = Prover(fleet.database, terms=lambda: TERMS, prefix="fg/v1", tally=Tally(), on_fault=fail)
    prover.parse([work])
    prover.verify([work])
    assert work.message is not None
    assert work.identity is not None
    assert prover.registry is not None
    with fleet.database.read() as tx:
        working = facts.load_working_set(
            tx,
            prover.registry,
            broker="main",
            worker="w",
            keys={work.identity.key_id},
            identifiers=list_claims(work.identity),
            topic_names={work.identity.topic_name},
        )
    verdict = decide_message(work.message, work.identity, working, terms=TERMS, now=work.now, new_id=new_id)
    assert verdict.reply is not None
    assert verdict.reply.result is Result.WELCOME
    return working


def lose(fleet: Fleet, first: WorkingSet, second: WorkingSet) -> Exception:
    """Writes both in transactions that overlap, each from a process's own pool. Returns what the second raised."""
    other = Database(fleet.database.url.render_as_string(hide_password=False))
    beginning = threading.Event()
    raised: list[Exception] = []

    def write() -> None:
        beginning.set()
        try:
            with other.write() as tx:
                writer.apply(tx, second, now_utc())
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=write)
    with fleet.database.write() as tx:
        writer.apply(tx, first, now_utc())
        thread.start()
        assert beginning.wait(DEADLINE_SECONDS)
        if not fleet.database.is_sqlite:  # there the second has not even begun: SQLite has one writer
            wait_until(lambda: waits_for_a_row(fleet.database), "the second writer waits for the first")
        assert raised == []
    thread.join(DEADLINE_SECONDS)
    other.close()
    (error,) = raised
    return error


def waits_for_a_row(database: Database) -> bool:
    query = "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
    with database.read() as tx:
        return bool(tx.connection.execute(sa.text(query)).scalar_one())


def names(database: Database) -> list[str]:
    with database.read() as tx:
        return list(tx.connection.execute(sa.select(devices.c.identifier).order_by(devices.c.id)).scalars())


def test_the_last_place_of_a_quota_is_given_once(fleet: Fleet) -> None:
    fleet.product("sensor", quota=1)
    first, second = (decide(fleet, fleet.voice("sensor", name)) for name in ("dev-1", "dev-2"))
    error = lose(fleet, first, second)
    assert type(error) is ConflictError
    (product_id,) = second.new_enrollments
    assert str(error) == f"the quota of product {product_id} was used up meanwhile"
    assert names(fleet.database) == ["dev-1"], "the loser has left nothing"
    assert verify(fleet.database).ok


def test_a_topic_name_is_given_once(fleet: Fleet) -> None:
    for product in ("sensor", "pump"):
        fleet.product(product)
    first, second = (decide(fleet, fleet.voice(product, "dev-1")) for product in ("sensor", "pump"))
    error = lose(fleet, first, second)
    assert type(error) is BrokenConstraintError
    assert isinstance(error, ConflictError)
    assert "topic_name" in str(error)
    assert names(fleet.database) == ["dev-1"]
    assert verify(fleet.database).ok


def test_an_identifier_is_given_once(fleet: Fleet) -> None:
    fleet.product("sensor")
    first, second = (decide(fleet, fleet.voice("sensor", "dev-1")) for _ in range(2))
    assert type(lose(fleet, first, second)) is BrokenConstraintError
    assert names(fleet.database) == ["dev-1"]


def test_the_schema_holds_a_quota_against_code_that_forgets_it(fleet: Fleet) -> None:
    fleet.product("sensor", quota=2)
    fleet.enroll("sensor", "dev-1", "dev-2")

    def write(change: Callable[[Transaction], object]) -> None:
        with fleet.database.write() as tx:
            change(tx)

    more = sa.update(products).values(enrolled=products.c.enrolled + 1)
    with pytest.raises(BrokenConstraintError, match="ck_products_quota"):
        write(lambda tx: tx.connection.execute(more))
    with pytest.raises(ConflictError, match="must not be below the 2 already enrolled"):
        operations.set_jitp(fleet.desk, fleet.principal, "sensor", JitpSettings(quota=1))


def work_both(fleet: Fleet, batches: tuple[list[Said], list[Said]]) -> list[str]:
    """Two workers' pipelines over a batch each, at once. Returns how every message was answered."""
    answers: list[str] = []
    begin = threading.Barrier(2)

    def work(worker: str, batch: list[Said]) -> None:
        pipeline = make_pipeline(fleet.database, worker)
        begin.wait(DEADLINE_SECONDS)
        for reply in pipeline.work(batch).replies:
            assert reply is not None
            answers.append(str(reply.reason or reply.result))

    threads = [
        threading.Thread(target=work, args=(f"w{number}", batch)) for number, batch in enumerate(batches)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE_SECONDS)
    return sorted(answers)


def test_two_workers_fill_a_quota_to_its_last_place_and_no_further(fleet: Fleet) -> None:
    fleet.product("sensor", quota=5)
    said = [hello(fleet.voice("sensor", f"dev-{number}")) for number in range(8)]
    answers = work_both(fleet, (said[:4], said[4:]))
    assert answers == ["quota_exhausted"] * 3 + ["welcome"] * 5
    with fleet.database.read() as tx:
        assert tx.connection.execute(sa.select(products.c.enrolled)).scalar_one() == 5
        assert tx.connection.execute(sa.select(sa.func.sum(inbox.c.seen))).scalar_one() == 3
    assert len(names(fleet.database)) == 5
    assert verify(fleet.database).ok


def test_one_message_that_comes_to_two_workers_enrolls_once(fleet: Fleet) -> None:
    fleet.product("sensor")
    said = [hello(fleet.voice("sensor", f"dev-{number}")) for number in range(3)]
    assert work_both(fleet, (said, said[::-1])) == ["welcome"] * 6
    assert sorted(names(fleet.database)) == ["dev-0", "dev-1", "dev-2"]
    assert verify(fleet.database).ok
