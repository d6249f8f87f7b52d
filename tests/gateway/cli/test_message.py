"""`fleetgate message check`: what people see of a diagnosis, and its exit codes."""

import json
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.device.factory import create_authority
from gateway.device.messages import Profile, Voice, load_identity
from provisioning.topics import Up
from store.times import now_utc


@pytest.fixture
def device(tmp_path: Path) -> tuple[Voice, Path]:
    """A device's voice, and its certificate's file."""
    now = now_utc()
    made = create_authority("Message CA", now=now).issue("pump-17", now=now)
    certificate, _ = made.write(tmp_path)
    return Voice(load_identity(made.pem, made.key_pem), audience="gw", profile=Profile()), certificate


def test_a_good_message(
    device: tuple[Voice, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice, _ = device
    voice.begin_connection()
    file = tmp_path / "hello.json"
    file.write_bytes(voice.hello(nonce="q3J8vN0xTtWm2K5a", ts=int(now_utc().timestamp() * 1000)))
    assert (
        main.run(["message", "check", str(file), "--topic", "fg/v1/pump-17/hello", "--audience", "gw"]) == 0
    )
    shown = capsys.readouterr().out
    assert "ok  signature: good\n" in shown
    assert "DSSEv1 39 application/vnd.fleetgate.hello.v1+json" in shown
    assert shown.endswith(
        "result: nothing wrong; `fleetgate certificate check` asks the gateway about the certificate\n"
    )


def test_a_bad_one_as_json(
    device: tuple[Voice, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    voice, certificate = device
    file = tmp_path / "will.json"
    file.write_bytes(voice.begin_connection())
    base = ["message", "check", str(file), "--topic", voice.topic(Up.PRESENCE)]
    assert main.run([*base, "--audience", "other", "--certificate", str(certificate), "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert document["reason"] == "wrong_audience"
    assert {rule["name"]: rule["passed"] for rule in document["rules"]}["signature"] is True
    assert main.run(base) == 0
    assert "result: nothing wrong in what could be checked" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (["--at", "yesterday"], "at must be an ISO 8601 time"),
        (["--certificate", "@file"], "holds no certificate in PEM"),
    ],
)
def test_used_wrongly(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str], words: str
) -> None:
    file = tmp_path / "x"
    file.write_bytes(b"{}")
    given = [word.replace("@file", str(file)) for word in more]
    assert main.run(["message", "check", str(file), "--topic", "t", *given]) == 2
    assert words in capsys.readouterr().err
