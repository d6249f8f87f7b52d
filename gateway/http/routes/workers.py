"""Workers of the installation."""

from fastapi import APIRouter

from gateway.http.auth import AtDesk, Who
from gateway.http.idempotency import Posted
from gateway.http.worker_views import WorkerOut
from gateway.operations import workers

router = APIRouter(prefix="/api/v1/workers", tags=["workers"])


@router.get("")
def list_workers(desk: AtDesk, principal: Who) -> list[WorkerOut]:
    """Every worker: what it does, whether it lives, and when it was last heard."""
    found, now = workers.list_all(desk, principal)
    return [WorkerOut.of(worker, now) for worker in found]


@router.post("/{name}/retire")
def retire_worker(order: Posted, name: str) -> WorkerOut:
    """Retires a worker that left for good: another one empties and ends its session; `retired` says that it is done."""
    return order.answer(lambda desk: WorkerOut.of(*workers.retire(desk, order.principal, name)))
