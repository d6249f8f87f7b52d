"""Health and metrics, which every worker serves, without a key: for the supervisor and for Prometheus."""

from collections.abc import Callable

from fastapi import FastAPI, Response
from fastapi.responses import JSONResponse


def add_health(
    app: FastAPI, *, is_ready: Callable[[], dict[str, bool]], render_metrics: Callable[[], bytes]
) -> None:
    """Adds `/healthz`, `/readyz` and `/metrics` to an application.

    Args:
        is_ready: each part by name, and whether it works.
        render_metrics: in Prometheus' text format.
    """

    @app.get("/healthz", include_in_schema=False)
    def healthz() -> dict[str, str]:
        return {"status": "ok"}

    @app.get("/readyz", include_in_schema=False)
    def readyz() -> JSONResponse:
        parts = is_ready()
        return JSONResponse(parts, status_code=200 if all(parts.values()) else 503)

    @app.get("/metrics", include_in_schema=False)
    def metrics() -> Response:
        return Response(render_metrics(), media_type="text/plain; version=0.0.4; charset=utf-8")


def create_health_app(
    *, is_ready: Callable[[], dict[str, bool]], render_metrics: Callable[[], bytes]
) -> FastAPI:
    """What a worker without the role `api` serves: these three, and nothing else."""
    app = FastAPI(title="Fleetgate", docs_url=None, redoc_url=None, openapi_url=None)
    add_health(app, is_ready=is_ready, render_metrics=render_metrics)
    return app
