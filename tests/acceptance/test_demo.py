"""The headless demo is the acceptance test: real programs, real broker, and SQL held against what devices saw."""

import json
import subprocess
import sys
from pathlib import Path


def fleetgate(*arguments: str, directory: Path) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "gateway", *arguments]
    root = Path(__file__).parents[2]
    return subprocess.run(
        [*command, "--directory", str(directory)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=root,
        check=False,
    )


def test_sixty_devices_are_provisioned_and_updated_and_the_intruder_is_not(tmp_path: Path) -> None:
    ended = fleetgate(
        "demo", "--headless", "--devices", "60", "--seconds", "60", "--json", directory=tmp_path / "demo"
    )
    answer = json.loads(ended.stdout)
    assert answer["ok"], answer
    assert ended.returncode == 0, ended.stderr
    assert answer["devices"]["simulated"] == 61
    assert answer["devices"]["provisioned"] == 60
    assert answer["devices"]["refused"] == {"identifier_pattern": 1}
    assert set(answer["devices"]["by_product"].values()) == {20}
    assert 0 < answer["latency_ms"]["p50"] <= answer["latency_ms"]["p99"]
    assert answer["attempts"] == {"failed": 1, "rejected": 1, "rolled_back": 1, "succeeded": 57}
    assert {(rollout["state"], rollout["version"]) for rollout in answer["rollouts"]} == {
        ("completed", "2.0.0")
    }
    assert len(answer["rollouts"]) == 6
    assert answer["invariants"] == {
        "ok": True, "checked": ["I1", "I2", "I3", "I4", "I5", "I6", "I9"], "breaches": [],
    }  # fmt: skip


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    ended = fleetgate("demo", "--headless", "--json", directory=tmp_path)
    assert ended.returncode == 1
    assert "no demo made it" in ended.stderr
    assert (tmp_path / "precious").read_text() == "mine"
