"""How often the slow-moving facts have changed: one number that every worker asks for, batch by batch."""

from typing import Final

import sqlalchemy as sa

from store.database import Transaction
from store.prepared import Query
from store.schema import revisions

_NAME: Final = "registry"
_LOAD: Final = Query(sa.select(revisions.c.value).where(revisions.c.name == _NAME))


def load_revision(tx: Transaction) -> int:
    """How often products, cohorts or CAs have changed."""
    value = _LOAD.value(tx)
    return 0 if value is None else int(value)


def bump_revision(tx: Transaction) -> None:
    """Says that products, cohorts or CAs have changed; workers read them again before their next batch."""
    insert = tx.insert(revisions).values(name=_NAME, value=1)
    tx.connection.execute(
        insert.on_conflict_do_update(index_elements=[revisions.c.name], set_={"value": revisions.c.value + 1})
    )
