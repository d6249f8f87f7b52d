"""Work that joins an open transaction: it fails by itself, and is there only with the whole."""

import pytest

from provisioning.errors import StoreError
from provisioning.ids import OrganizationId
from store import organizations
from store.database import BrokenConstraintError, Database, Transactions
from store.times import now_utc


def create(tx: object, number: int, name: str) -> None:
    organizations.create(tx, id=OrganizationId(number), name=name, at=now_utc())  # type: ignore[arg-type]


def is_free(database: Database, number: int, name: str) -> bool:
    """Whether an organization of that name can be made; leaves it made."""
    try:
        with database.write() as tx:
            create(tx, number, name)
    except BrokenConstraintError:
        return False
    return True


def create_two(database: Transactions) -> None:
    with database.write() as tx:
        create(tx, 2, "second")
        create(tx, 3, "first")


def test_a_write_that_fails_takes_only_its_own_with_it(database: Database) -> None:
    with database.write() as tx:
        joined = database.join(tx)
        with joined.write(["a lock"]) as inner:
            create(inner, 1, "first")
        with pytest.raises(BrokenConstraintError):
            create_two(joined)
        with joined.read() as inner:
            assert inner is tx
        with joined.join(tx).write() as inner:
            create(inner, 4, "third")
    taken = [
        not is_free(database, 10 + number, name) for number, name in enumerate(("first", "second", "third"))
    ]
    assert taken == [True, False, True]


def test_what_joined_is_gone_where_the_whole_fails(database: Database) -> None:
    def fail() -> None:
        with database.write() as tx:
            with database.join(tx).write() as inner:
                create(inner, 1, "first")
            raise StoreError("the whole")

    with pytest.raises(StoreError, match="the whole"):
        fail()
    assert is_free(database, 2, "first")
