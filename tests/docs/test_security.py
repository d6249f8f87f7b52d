"""docs/security.md: each threat names tests, and pytest finds every one of them by its name."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
SECURITY = (ROOT / "docs" / "security.md").read_text(encoding="utf-8")
THREATS = SECURITY[SECURITY.index("## Threats") : SECURITY.index("## Fuzzing")]
ROWS = [line for line in THREATS.splitlines() if line.startswith("| **")]
TEST = re.compile(r"\[`(test_\w+)`\]\(\.\./(tests/[\w/]+\.py)\)")


def test_every_threat_names_a_test() -> None:
    assert len(ROWS) >= 20
    for row in ROWS:
        cells = row.strip("|").split("|")
        assert len(cells) == 6, row
        assert all(cell.strip() for cell in cells), row
        assert TEST.search(cells[5]), f"no test holds: {cells[0]}"
        assert TEST.sub("", cells[5]).strip() == "", f"not all of this is a test: {cells[5]}"


def test_every_test_that_is_named_is_collected() -> None:
    named = sorted({f"{path}::{name}" for name, path in TEST.findall(THREATS)})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "", "-p", "no:cacheprovider", *named],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    collected = {line.partition("[")[0] for line in done.stdout.splitlines() if line.startswith("tests/")}
    assert [one for one in named if one not in collected] == [], done.stdout + done.stderr
