"""Workers as they report themselves: who runs, in which roles, when each was last heard, who is being retired."""

import hashlib
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from provisioning.errors import NotFoundError
from provisioning.workers import Worker, WorkerRole, WorkerState, parse_roles
from store.database import Transaction
from store.schema import workers
from store.times import from_ms, to_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaving:
    """A session at the broker that its worker left, to be emptied and ended; the client id is sealed."""

    name: str
    broker: str
    client_sealed: bytes
    client_sha256: str


def digest(client_id: str) -> str:
    """By which client ids are compared; they have 128 random bits, so it tells nothing about them."""
    return hashlib.sha256(client_id.encode()).hexdigest()


def register(tx: Transaction, worker: Worker, *, client_id: str | None, client_sealed: bytes | None) -> None:
    """Says that a worker has started: it runs from now on, also where it was stopped or retired before.

    Its times are the database's. Where it had a session and has no connection any more, the session is left.
    Another name under which the same session was kept is retired: the session has this worker's name now.
    """
    now = tx.now_ms()
    values: dict[str, Any] = {
        "broker": worker.broker,
        "roles": ",".join(worker.roles),
        "version": worker.version,
        "state": WorkerState.RUNNING.value,
        "queued": 0,
        "started_at": now,
        "heard_at": now,
    }
    if client_id is not None:
        values |= {"client_sha256": digest(client_id), "client_sealed": client_sealed}
    insert = tx.insert(workers).values(name=worker.name, **values)
    tx.connection.execute(insert.on_conflict_do_update(index_elements=[workers.c.name], set_=values))
    if client_id is not None:
        tx.connection.execute(
            sa.update(workers)
            .where(
                workers.c.broker == worker.broker,
                workers.c.client_sha256 == digest(client_id),
                workers.c.name != worker.name,
            )
            .values(state=WorkerState.RETIRED.value, client_sha256=None, client_sealed=None)
        )


def beat(tx: Transaction, name: str, queued: int) -> bool:
    """Says that a worker still runs. False where somebody thought otherwise meanwhile: then `register` it again."""
    changed = tx.connection.execute(
        sa.update(workers)
        .where(workers.c.name == name, workers.c.state == WorkerState.RUNNING.value)
        .values(queued=queued, heard_at=tx.now_ms())
    )
    return changed.rowcount == 1


def leave(tx: Transaction, name: str, to: WorkerState) -> None:
    """Says that a worker has ended in order."""
    tx.connection.execute(
        sa.update(workers)
        .where(workers.c.name == name)
        .values(state=to.value, queued=0, heard_at=tx.now_ms())
    )


def list_all(tx: Transaction) -> list[Worker]:
    """Every worker, by name."""
    return [_worker(row) for row in tx.connection.execute(sa.select(workers).order_by(workers.c.name))]


def load(tx: Transaction, name: str) -> Worker:
    """One worker.

    Raises:
        NotFoundError: there is none of this name.
    """
    query = sa.select(workers).where(workers.c.name == name)
    row = tx.connection.execute(query).one_or_none()
    if row is None:
        raise NotFoundError(f"no worker {name!r}; `fleetgate worker list` shows those that there are")
    return _worker(row)


def move(tx: Transaction, worker: Worker, to: WorkerState) -> bool:
    """Changes a worker's state, if it was not heard of since it was loaded. Returns whether it did."""
    values: dict[str, Any] = {"state": to.value}
    if to is WorkerState.RETIRED:
        values |= {"client_sha256": None, "client_sealed": None, "queued": 0}
    changed = tx.connection.execute(
        sa.update(workers)
        .where(
            workers.c.name == worker.name,
            workers.c.state == worker.state.value,
            workers.c.heard_at == to_ms(worker.heard_at),
        )
        .values(values)
    )
    return changed.rowcount == 1


def list_leaving(tx: Transaction, broker: str) -> list[Leaving]:
    """The sessions at a broker that wait to be emptied."""
    query = sa.select(workers).where(
        workers.c.broker == broker, workers.c.client_sealed.is_not(None), _left()
    )
    return [
        Leaving(
            name=row.name, broker=row.broker, client_sealed=row.client_sealed, client_sha256=row.client_sha256
        )
        for row in tx.connection.execute(query.order_by(workers.c.name))
    ]


def finish(tx: Transaction, leaving: Leaving) -> bool:
    """Notes that a session has ended, unless its worker has it again; retires the worker where that was asked for.

    Returns: whether it did.
    """
    changed = tx.connection.execute(
        sa.update(workers)
        .where(workers.c.name == leaving.name, workers.c.client_sha256 == leaving.client_sha256, _left())
        .values(
            state=sa.case(
                (workers.c.state == WorkerState.RETIRING.value, WorkerState.RETIRED.value),
                else_=workers.c.state,
            ),
            client_sha256=None,
            client_sealed=None,
        )
    )
    return changed.rowcount == 1


def _left() -> sa.ColumnElement[bool]:
    """Whether a session's worker has left it: it is being retired, or has given up the role."""
    return sa.or_(
        workers.c.state == WorkerState.RETIRING.value, workers.c.roles.not_like(f"%{WorkerRole.INGEST}%")
    )


def _worker(row: Any) -> Worker:
    return Worker(
        name=row.name,
        broker=row.broker,
        roles=parse_roles([row.roles]),
        version=row.version,
        state=WorkerState(row.state),
        started_at=from_ms(row.started_at),
        heard_at=from_ms(row.heard_at),
        queued=row.queued,
        has_session=row.client_sealed is not None,
    )
