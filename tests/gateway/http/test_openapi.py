"""The API's description is committed, so that a change of it is seen."""

import json
from pathlib import Path
from typing import Any, cast

from gateway.http.app import create_app
from gateway.operations.desk import Desk

COMMITTED = Path(__file__).parents[3] / "docs" / "openapi.json"


def test_the_committed_description_is_the_apis() -> None:
    app = create_app(cast(Desk, None))  # describing it asks no desk
    now: Any = json.loads(json.dumps(app.openapi()))
    assert now == json.loads(COMMITTED.read_text()), "write docs/openapi.json anew and look at the difference"


def test_every_route_of_the_api_has_a_problem_or_an_answer_described() -> None:
    paths = json.loads(COMMITTED.read_text())["paths"]
    assert len(paths) >= 15
    assert all(path.startswith("/api/v1/") for path in paths)
