"""`fleetgate serve` without its database: it says what is missing, in one line, and ends with 1."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from broker_fixtures import install
from databases import new_postgresql

from gateway import secrets
from gateway.installation import Installation
from store.database import Database
from store.identity import held

ADVICE = "start the database or set database.url, then start again (systemd does so by itself)"


def serve(place: Installation, url: str) -> subprocess.CompletedProcess[str]:
    """Runs the service until it ends by itself."""
    return subprocess.run(
        [sys.executable, "-m", "gateway", "serve", "--config", str(place.settings)],
        env=os.environ | {"FLEETGATE_DATABASE__URL": url},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize(
    ("url", "named", "cause"),
    [
        (
            "postgresql://me:secret@/fleet?host={place}",
            "postgresql+psycopg://me:***@/fleet?host=",
            "No such file or directory",
        ),
        ("sqlite:///{place}/none/fleet.db", "sqlite:///", "unable to open database file"),
    ],
)
def test_a_database_that_is_away_at_the_start_is_named_and_ends_it_with_1(
    tmp_path: Path, url: str, named: str, cause: str
) -> None:
    place = install(tmp_path / "fleetgate").installation
    ran = serve(place, url.format(place=tmp_path))
    assert ran.returncode == 1
    (line,) = ran.stderr.splitlines()
    assert line.startswith(f"fleetgate: not started: database {named}")
    assert " is not available: " in line
    assert cause in line
    assert line.endswith(f"; {ADVICE}")
    assert "work goes on by itself" not in line, "that is for a gateway that runs"
    assert "secret" not in ran.stdout + ran.stderr
    assert "gateway_ready" not in ran.stdout
    assert [file.name for file in (place.directory / "state").iterdir()] == ["lock"], "nothing was changed"


def test_a_client_id_that_another_gateway_works_under_ends_it_with_1(tmp_path: Path) -> None:
    url = new_postgresql()
    database = Database(url)
    place = install(tmp_path / "first").installation
    root = secrets.load_root_secret(place.root_secret)
    with held(database, secrets.make_client_id(root, broker="main", worker="worker-1")):
        ran = serve(place, url)
    database.close()
    assert ran.returncode == 1
    assert ran.stderr.startswith("fleetgate: another gateway already works under this broker.client_id")
