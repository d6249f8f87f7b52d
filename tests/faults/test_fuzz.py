"""The fuzzer itself for a minute: it starts, reaches every target, and finds nothing."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SECONDS = 60


@pytest.mark.faults
@pytest.mark.timeout(500)  # a minute, and the weighing of what earlier runs kept
def test_a_minute_of_fuzzing_finds_nothing() -> None:
    pytest.importorskip("atheris", reason="atheris has wheels for Linux on x86-64 alone")
    done = subprocess.run(
        [sys.executable, "tests/fuzz/run.py", "--seconds", str(SECONDS)],
        cwd=ROOT, capture_output=True, text=True, timeout=400,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line.split() for line in done.stdout.partition("findings\n")[2].splitlines()]
    assert rows[-1][:2] == ["in", "all"]
    assert all(int(row[1]) > 500 for row in rows[:-1]), done.stdout
