"""The soak for a little over a minute, and a herd; `make soak` runs longer ones."""

import os
import sys
from pathlib import Path

import pytest
from faults.herd import herd
from faults.soak import show, soak

pytestmark = pytest.mark.faults
SECONDS = 70.0
HERD = int(os.environ.get("FLEETGATE_HERD", "2000"))


def say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


@pytest.mark.timeout(420)
def test_workers_that_are_killed_under_load_lose_nothing_and_count_nothing_twice(tmp_path: Path) -> None:
    report = soak(SECONDS, tmp_path, kill_every_seconds=12.0, say=say)
    assert show("soak", report, say) == 0, report.wrong
    assert report.figures["kills"] == 5


@pytest.mark.timeout(1200)
def test_a_herd_that_comes_back_at_once_and_is_gone_at_once_is_served(tmp_path: Path) -> None:
    report = herd(tmp_path, devices=HERD, say=say)
    assert show("herd", report, say) == 0, report.wrong
