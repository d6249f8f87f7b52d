"""The fleet in figures, from counters."""

from typing import Annotated, Any, Final

from fastapi import APIRouter, Query

from gateway.http import views
from gateway.http.auth import AtDesk, Who
from gateway.operations import devices
from provisioning.statistics import Per

router = APIRouter(prefix="/api/v1/stats", tags=["figures"])
MOST_BUCKETS: Final = 1440


@router.get("")
def show_figures(desk: AtDesk, principal: Who, product: str | None = None) -> dict[str, Any]:
    """Totals: devices by state, who is connected, versions, connects and refusals by reason."""
    return devices.load_figures(desk, principal, product)


@router.get("/flows")
def show_flows(
    desk: AtDesk,
    principal: Who,
    product: str | None = None,
    per: Per = Per.MINUTE,
    last: Annotated[int, Query(ge=1, le=MOST_BUCKETS, description="buckets, the running one included")] = 60,
) -> views.FlowsOut:
    """Connects, disconnects, enrollments and refusals by reason, per minute or hour."""
    return views.FlowsOut.of(devices.load_flows(desk, principal, product=product, per=per, last=last))
