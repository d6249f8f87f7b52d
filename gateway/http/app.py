"""The application: `/api/v1` behind an API key; health and metrics without one, for the loopback listener."""

from collections.abc import Callable

from fastapi import Depends, FastAPI, Request, Response

from gateway.http import problems
from gateway.http.health import add_health
from gateway.http.idempotency import Replayed
from gateway.http.routes import (
    api_keys,
    authorities,
    bundles,
    devices,
    figures,
    products,
    rollouts,
    workers,
)
from gateway.http.text import refuse_nul
from gateway.operations.desk import Desk
from gateway.watching import Watches


def create_app(
    desk: Desk,
    *,
    watches: Watches | None = None,
    is_ready: Callable[[], dict[str, bool]] = dict,
    render_metrics: Callable[[], bytes] = bytes,
    most_artifact_bytes: int = 1 << 30,
) -> FastAPI:
    """The API over one desk.

    Args:
        watches: where devices are watched live; None where there is no broker.
        is_ready: each part by name, and whether it works.
        render_metrics: in Prometheus' text format.
        most_artifact_bytes: of the largest artifact that may be pushed.
    """
    app = FastAPI(title="Fleetgate", version="1", docs_url="/api/docs", openapi_url="/api/openapi.json")
    problems.install(app)

    @app.exception_handler(Replayed)
    def _first_answer(_: Request, replayed: Replayed) -> Response:
        return replayed.response

    app.state.desk = desk
    app.state.watches = watches
    app.state.most_artifact_bytes = most_artifact_bytes
    for noun in (products, authorities, devices, figures, api_keys, bundles, rollouts, workers):
        app.include_router(noun.router, responses=problems.DESCRIBED, dependencies=[Depends(refuse_nul)])
    app.openapi = lambda: problems.describe(app)  # type: ignore[method-assign]

    add_health(app, is_ready=is_ready, render_metrics=render_metrics)
    return app
