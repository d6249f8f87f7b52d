"""Fixtures for every folder of tests. This file's being here puts `tests/` on the import path."""

from broker_fixtures import installed_broker

__all__ = ["installed_broker"]
