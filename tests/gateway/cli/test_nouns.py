"""The command line against a real installation: `init`, then every noun over HTTP, output and exit codes."""

import json
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from broker_fixtures import wait_until

from gateway.cli import main
from gateway.cli.stats import draw
from gateway.device.factory import create_authority
from gateway.http.app import create_app
from gateway.mqtt.capath import CaPath
from gateway.operations.desk import Desk
from gateway.settings import Settings
from provisioning.ids import ProductId
from provisioning.statistics import Event, EventKind
from store import counters
from store.database import Database
from store.ids import new_id

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """Runs one command; returns exit code, standard output, standard error."""

    def _run(*arguments: object) -> tuple[int, str, str]:
        capfd.readouterr()
        code = main.run([str(argument) for argument in arguments])
        output = capfd.readouterr()
        return code, output.out, output.err

    return _run


@pytest.fixture
def place(tmp_path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh installation, named by FLEETGATE_CONFIG."""
    place = tmp_path / "fleetgate"
    ports = ["--device-port", 0, "--gateway-port", 0, "--http-port", 0, "--download-port", 0]
    code, _, error = run("init", place, "--organization", "acme", "--device-host", "localhost", *ports)
    assert code == 0, error
    monkeypatch.setenv("FLEETGATE_CONFIG", str(place / "fleetgate.toml"))
    return place


@pytest.fixture
def served(place: Path) -> Iterator[Settings]:
    """Its API, served on its own port."""
    settings = Settings.load()
    database = Database(settings.database.url)
    desk = Desk(
        database=database,
        clock=lambda: datetime.now(UTC),
        new_id=new_id,
        capath=CaPath(settings.broker.capath),
        broker=settings.broker.name,
        worker=settings.worker,
        audience=settings.audience,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            create_app(desk), host=settings.http.host, port=settings.http.port, log_config=None, ws="none"
        )
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    wait_until(lambda: server.started, "the API listens")
    yield settings
    server.should_exit = True
    thread.join(10)
    database.close()


def test_init_makes_what_runs_and_keeps_the_key_to_itself(place: Path, run: Run) -> None:
    key_file = place / "private" / "admin.key"
    assert key_file.stat().st_mode & 0o777 == 0o600
    assert (place / "fleetgate.db").stat().st_mode & 0o777 == 0o600
    key = key_file.read_text(encoding="ascii").strip()
    assert len(key) >= 64
    assert key.encode() not in (place / "fleetgate.db").read_bytes()
    code, output, error = run("init", place, "--device-host", "localhost")
    assert (code, output) == (1, "")
    assert "exists already: an installation is never overwritten" in error


def test_a_product_from_nothing_to_a_checked_certificate(served: Settings, run: Run, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    authority = create_authority("Pump CA", now=now)
    certificate, _ = authority.issue("pump-17", now=now).write(tmp_path)
    ca_file, proof = tmp_path / "ca.pem", tmp_path / "proof.pem"
    ca_file.write_bytes(authority.pem)
    assert run("product", "create", "pump", "--tag", "wet")[0] == 0
    assert run("cohort", "create", "pump", "canary")[0] == run("cohort", "create", "pump", "main")[0] == 0
    code, output, error = run("ca", "register", "pump", ca_file, "--json")
    assert code == 0, error
    registered = json.loads(output)
    assert registered["state"] == "pending"
    proof.write_bytes(authority.prove(registered["code"], now))
    code, _, error = run("ca", "prove", "ca", proof)
    assert code == 0, error
    assert "next: fleetgate ca activate ca" in error
    code, _, error = run("ca", "activate", "ca")
    assert code == 0, error
    assert json.loads(run("ca", "list", "--json")[1])[0]["state"] == "active"

    code, output, _ = run("certificate", "check", certificate)
    assert code == 1
    assert "result: rejected (jitp_disabled)" in output
    code, _, error = run("product", "jitp", "pump", "--enable", "--default-cohort", "main", "--quota", "10")
    assert code == 0, error
    code, output, error = run("certificate", "check", certificate, "--json")
    assert code == 0, output + error
    assert json.loads(output)["result"] == "welcome"

    shown = json.loads(run("product", "show", "pump", "--json")[1])
    assert (shown["tags"], shown["jitp"]["quota"], shown["enrolled"]) == (["wet"], 10, 0)
    assert "pump" in run("product", "list")[1]
    assert [c["name"] for c in json.loads(run("cohort", "list", "pump", "--json")[1])] == ["canary", "main"]
    code, output, error = run("device", "create", "pump", "pump-1", "--cohort", "canary", "--json")
    assert (code, json.loads(output)["cohort"]) == (0, "canary"), error
    assert json.loads(run("device", "block", "pump-1", "--json")[1])["state"] == "blocked"
    assert json.loads(run("device", "unblock", "pump-1", "--json")[1])["state"] != "blocked"
    assert "canary" in run("device", "show", "pump-1")[1]
    for words in (["device", "list"], ["inbox", "list"], ["stats"], ["verify-store"]):
        code, output, error = run(*words, "--json")
        assert code == 0, (words, error)
        json.loads(output)
        assert run(*words)[0] == 0
    assert run("ca", "revoke", "ca", "--yes")[0] == 0
    code, output, _ = run("certificate", "check", certificate)
    assert (code, "ca_revoked" in output) == (1, True)


def test_each_kind_of_error_has_its_exit_code(
    served: Settings, run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert run("product", "create", "pump")[0] == 0
    cases: list[tuple[list[Any], int, str]] = [
        (["product", "create", "pump"], 5, "there is a product 'pump' already"),
        (["product", "create", "No Name"], 2, "product name must be 1–63"),
        (["product", "show", "none"], 3, "none"),
        (["device", "show", "none"], 3, "none"),
        (["ca", "activate", "none"], 3, "this organization has no CA 'none'"),
        (["product", "nonsense"], 2, "No such command"),
        (["certificate", "check", __file__], 2, "is not a certificate in PEM"),
    ]
    for words, expected, text in cases:
        code, output, error = run(*words)
        assert (code, output) == (expected, ""), (words, error)
        assert text in error, (words, error)
    monkeypatch.setenv("FLEETGATE_API_KEY", "fgk_wrong")
    code, _, error = run("product", "list")
    assert (code, error) == (4, "fleetgate: this key is unknown, expired or revoked\n")


def test_grants_api_keys_and_figures_over_time(
    served: Settings, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run("product", "create", "pump")[0] == run("cohort", "create", "pump", "main")[0] == 0
    assert run("device", "create", "pump", "pump-1")[0] == 0
    assert json.loads(run("cohort", "show", "pump", "main", "--json")[1])["name"] == "main"
    code, output, error = run("device", "grant", "pump-1", "--hours", 2, "--json")
    assert code == 0, error
    until = datetime.fromisoformat(json.loads(output)["new_key_until"])
    assert timedelta(hours=1) < until - datetime.now(UTC) <= timedelta(hours=2)
    assert "new key until" in run("device", "show", "pump-1")[1]
    assert json.loads(run("device", "grant", "pump-1", "--withdraw", "--json")[1])["new_key_until"] is None
    assert run("device", "grant", "pump-1", "--hours", 721)[0] == 2

    code, output, error = run("api-key", "create", "look", "--role", "viewer", "--expires-days", 1, "--json")
    assert code == 0, error
    assert "it is not shown again" in error
    made = json.loads(output)
    monkeypatch.setenv("FLEETGATE_API_KEY", made["key"])
    assert run("product", "list")[0] == 0
    assert run("product", "create", "valve")[0] == 4
    monkeypatch.delenv("FLEETGATE_API_KEY")
    assert "look" in run("api-key", "list")[1]
    assert run("api-key", "revoke", "look", "--yes")[0] == 0
    code, _, error = run("api-key", "revoke", "admin", "--yes")
    assert (code, "is the last admin key that works" in error) == (5, True)

    now = datetime.now(UTC)
    product = ProductId(int(json.loads(run("product", "show", "pump", "--json")[1])["id"]))
    database = Database(served.database.url)
    with database.write() as tx:
        counters.record(
            tx,
            "w",
            [
                Event(at=at, kind=kind, product_id=product, cohort_id=None, device_id=None, word=word)
                for at, kind, word in (
                    (now, EventKind.CONNECTED, "hello"),
                    (now - timedelta(hours=1), EventKind.CONNECTED, "hello"),
                    (now - timedelta(hours=1), EventKind.DISCONNECTED, "will"),
                )
            ],
        )
    database.close()
    code, output, error = run("stats", "--per", "hour", "--last", 3, "--json")
    assert code == 0, error
    flows = json.loads(output)
    assert len(flows["starts"]) == 3
    assert sum(flows["connects"]["hello"]) == 2
    assert sum(flows["disconnects"]["will"]) == 1
    assert flows["refusals"] == {}
    code, output, error = run("stats", "--per", "hour", "--last", 3, "--product", "pump")
    assert code == 0, error
    assert "connects" in output
    assert "▁" in output or "█" in output
    assert f"3 hours from {flows['starts'][0]}, the last one still running" in output
    assert run("stats", "--per", "hour", "--product", "none")[0] == 3


@pytest.mark.parametrize(
    ("counts", "width", "line"),
    [
        ([0, 0], 10, "··"),
        ([0, 1, 4, 8], 10, "·▁▄█"),
        ([5], 10, "█"),
        ([1, 1, 1, 8, 8], 2, "▁█"),
        ([1] * 120, 60, "█" * 60),
    ],
)
def test_a_figure_is_bars_and_a_dot_for_nothing(counts: list[int], width: int, line: str) -> None:
    assert draw(counts, width) == line


def test_without_a_gateway_it_says_how_to_start_one(place: Path, run: Run) -> None:
    code, _, error = run("product", "list")
    assert code == 1
    assert "is `fleetgate serve` running?" in error


def test_a_key_that_others_can_read_is_refused(place: Path, run: Run) -> None:
    (place / "private" / "admin.key").chmod(0o644)
    code, _, error = run("product", "list")
    assert code == 1
    assert "is readable by others (mode 0644): chmod 600" in error


def test_a_wrong_setting_is_one_line(place: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLEETGATE_BROKER__PORT", "x")
    code, _, error = run("doctor")
    assert code == 1
    assert error.startswith(
        "fleetgate: setting broker.port in environment variable FLEETGATE_BROKER__PORT: got 'x'"
    )
    assert error.count("\n") == 1
