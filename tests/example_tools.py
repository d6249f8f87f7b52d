"""What the tests of the examples need of this machine."""

import os

import pytest


def need(present: bool, what: str) -> None:
    """Skips, loudly, where a tool cannot be installed; in CI that is a failure."""
    if not present:
        reason = f"{what} is not installed: bash deploy/setup-examples.sh"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)
