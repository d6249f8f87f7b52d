"""Fixtures for every folder of tests. This file's being here puts `tests/` on the import path."""

from broker_fixtures import installed_broker
from databases import database

__all__ = ["database", "installed_broker"]
