"""Whatever is asked, the API answers as docs/openapi.json says, and never with a fault of its own.

Schemathesis makes the requests from the description; half of them are led to objects that are there.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from api_fixtures import served_api
from databases import new_migrated_url
from hypothesis import HealthCheck, Phase, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from gateway.device.factory import create_authority
from provisioning.access import Role
from store.blobs import Blobs
from store.database import Database
from store.times import now_utc

DESCRIPTION = json.loads((Path(__file__).parents[3] / "docs" / "openapi.json").read_text())
CHECKS: list[Any] = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]
KIND = os.environ.get("FLEETGATE_FUZZ_DATABASE", "sqlite")
EXAMPLES = int(os.environ.get("FLEETGATE_FUZZ_EXAMPLES", "6"))
"""For each operation, few, as `make test` is to be quick; more by the environment."""
schema = schemathesis.openapi.from_dict(DESCRIPTION).exclude(
    path="/api/v1/watch/{name}"
)  # needs a broker, never ends


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, dict[str, str]]]:
    """Where the API is, an admin's key, and what to put into paths."""
    directory = tmp_path_factory.mktemp("api")
    database = Database(new_migrated_url(KIND, directory))
    blobs = Blobs(str(directory / "blobs"), directory / "uploads")
    with served_api(database, blobs=blobs) as asked:
        key = asked.key("admin", Role.ADMIN)
        asked.ask(key, "POST", "products", {"name": "pump"})
        asked.ask(key, "POST", "products/pump/cohorts", {"name": "main"})
        asked.ask(key, "POST", "products/pump/devices", {"identifier": "p-1"})
        pem = create_authority("Pump CA", now=now_utc()).pem.decode()
        made = asked.ask(key, "POST", "products/pump/authorities", {"name": "ca", "certificate": pem})
        known = {"product": "pump", "cohort": "main", "device": "p-1", "authority": made.json()["id"]}
        yield asked.url, key, known
    database.close()


@schema.parametrize()
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    phases=[Phase.generate],
    derandomize="FLEETGATE_FUZZ_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
    database=None,
)
def test_every_answer_is_as_described(case: Any, place: tuple[str, str, dict[str, str]]) -> None:
    url, key, known = place
    if len(str(case.path_parameters)) % 2:
        for name in set(known) & set(case.path_parameters or ()):
            case.path_parameters[name] = known[name]
    case.call_and_validate(base_url=url, headers={"Authorization": f"Bearer {key}"}, checks=CHECKS)
