"""Commands on workers: who there is, and retiring one that left for good."""

from datetime import datetime

from gateway.operations.desk import Desk
from provisioning.access import Principal, Role, check_role
from provisioning.errors import ConflictError
from provisioning.workers import Worker, WorkerState, decide_retirement
from store import workers
from store.times import from_ms


def list_all(desk: Desk, principal: Principal) -> tuple[list[Worker], datetime]:
    """Every worker of the installation, and the database's time.

    Raises:
        AccessError: the principal may not look.
    """
    check_role(principal, Role.VIEWER)
    with desk.database.read() as tx:
        return workers.list_all(tx), from_ms(tx.now_ms())


def retire(desk: Desk, principal: Principal, name: str) -> tuple[Worker, datetime]:
    """Retires a worker that left for good. Repeating changes nothing.

    Its session at the broker is then emptied and ended by another worker, within seconds; `retired` says that it
    is done. Until then, starting it again takes this back.

    Returns: the worker, and the database's time.

    Raises:
        AccessError: the principal is no admin: workers belong to the whole installation.
        NotFoundError: there is no such worker.
        ConflictError: it lives, or nobody is there to take over its messages.
    """
    check_role(principal, Role.ADMIN)
    with desk.database.write([f"worker/{name}/state"]) as tx:
        now = from_ms(tx.now_ms())
        worker = workers.load(tx, name)
        to = decide_retirement(worker, workers.list_all(tx), now)
        if worker.state not in (WorkerState.RETIRED, WorkerState.RETIRING):
            if not workers.move(tx, worker, to):
                raise ConflictError(f"worker {name!r} has just started again; stop it first")
            desk.note(
                tx,
                principal,
                "worker.retire",
                name,
                before={
                    "state": worker.state,
                    "broker": worker.broker,
                    "heard_at": worker.heard_at.isoformat(),
                },
                after={"state": to},
            )
        return workers.load(tx, name), now
