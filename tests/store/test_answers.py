"""First answers: a key is claimed once, answered with the change, and forgotten after its time."""

import threading
from datetime import timedelta

import pytest
import sqlalchemy as sa
from fleets import make_organization

from store import answers
from store.answers import LIFE, Answer, Asker
from store.database import Database
from store.schema import answers as table
from store.times import now_utc, to_ms

NOW = now_utc()
FIRST = Answer(request_sha256="1" * 64, status=201, body='{"name":"pump"}')


@pytest.fixture
def asker(database: Database) -> Asker:
    return Asker(organization_id=make_organization(database), actor="admin", key="k")


def answer(database: Database, asker: Asker, request: str = "1" * 64) -> Answer | None:
    """Claims the key and answers as FIRST, unless it was answered before."""
    with database.write() as tx:
        found = answers.claim(tx, asker, request, NOW)
        if found is None:
            answers.save(tx, asker, FIRST.status, FIRST.body)
        return found


def test_who_comes_again_gets_the_first_answer_and_what_it_was_to(database: Database, asker: Asker) -> None:
    assert answer(database, asker) is None
    assert answer(database, asker, "2" * 64) == FIRST


def test_a_key_is_one_callers(database: Database, asker: Asker) -> None:
    answer(database, asker)
    others = [
        Asker(organization_id=asker.organization_id, actor="other", key="k"),
        Asker(organization_id=asker.organization_id, actor="admin", key="k-2"),
        Asker(organization_id=make_organization(database), actor="admin", key="k"),
    ]
    assert [answer(database, other) for other in others] == [None] * 3
    assert [answer(database, one) for one in (asker, *others)] == [FIRST] * 4


def test_a_claim_whose_work_failed_is_none(database: Database, asker: Asker) -> None:
    def fail() -> None:
        with database.write() as tx:
            answers.claim(tx, asker, FIRST.request_sha256, NOW)
            raise OSError("the process ends here")

    with pytest.raises(OSError, match="ends here"):
        fail()
    assert answer(database, asker) is None


def test_of_many_at_once_one_works_and_the_others_find_its_answer(database: Database, asker: Asker) -> None:
    begin = threading.Barrier(5)
    found: list[Answer | None] = []

    def work() -> None:
        begin.wait(30)
        found.append(answer(database, asker))

    threads = [threading.Thread(target=work) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(found, key=lambda one: one is not None) == [None, *[FIRST] * 4]


def test_after_its_time_a_key_is_new(database: Database, asker: Asker) -> None:
    answer(database, asker)
    moment = timedelta(milliseconds=1)
    with database.write() as tx:
        assert answers.claim(tx, asker, "2" * 64, NOW + LIFE - moment) == FIRST
        assert answers.claim(tx, asker, "2" * 64, NOW + LIFE) is None


def test_old_answers_are_forgotten_a_bounded_number_at_once_the_oldest_first(
    database: Database, asker: Asker
) -> None:
    rows = [
        {
            "organization_id": asker.organization_id,
            "actor": "admin",
            "key": f"k-{number}",
            "request_sha256": "1" * 64,
            "status": 201,
            "body": "",
            "created_at": to_ms(NOW) + number,
        }
        for number in range(510)
    ]
    now = NOW + LIFE + timedelta(milliseconds=505)  # the last four live on
    with database.write() as tx:
        tx.connection.execute(sa.insert(table), rows)
    counts = []
    for _ in range(3):
        with database.write() as tx:
            counts.append(answers.prune(tx, now))
    assert counts == [500, 6, 0]
    with database.read() as tx:
        left = tx.connection.execute(sa.select(table.c.key).order_by(table.c.created_at)).scalars().all()
    assert left == [f"k-{number}" for number in range(506, 510)]
