"""Fixtures for every folder of tests. This file's being here puts `tests/` on the import path."""

from api_fixtures import asked
from broker_fixtures import installed_broker
from databases import database
from vector_counts import (
    pytest_configure,
    pytest_sessionfinish,
    pytest_terminal_summary,
    pytest_testnodedown,
    vectors,
)

__all__ = [
    "asked",
    "database",
    "installed_broker",
    "pytest_configure",
    "pytest_sessionfinish",
    "pytest_terminal_summary",
    "pytest_testnodedown",
    "vectors",
]
