"""What a known key's hello costs: its chain is looked at again only where it can say something new."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from fleets import Fleet, make_fleet

from gateway import prover as module
from gateway.device.factory import create_authority
from store.database import Database
from store.times import now_utc


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Fleet:
    fleet = make_fleet(database, tmp_path)
    fleet.product("pump")
    return fleet


@pytest.fixture
def chains(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many certificates each chain had that was verified."""
    verified: list[int] = []
    real = module.verify_chain

    def counted(chain: Any, *more: Any) -> Any:
        verified.append(len(chain))
        return real(chain, *more)

    monkeypatch.setattr(module, "verify_chain", counted)
    return verified


def test_a_chain_that_is_known_is_not_verified_again(fleet: Fleet, chains: list[int]) -> None:
    (voice,) = fleet.enroll("pump", "pump-1")
    assert chains == [1]
    voice.begin_connection()
    assert fleet.greet(voice) == ["welcome"]
    assert chains == [1]


def test_a_renewed_certificate_is_verified(fleet: Fleet, chains: list[int]) -> None:
    (voice,) = fleet.enroll("pump", "pump-1")
    renewed = fleet.voice("pump", "pump-1", private_key=voice.identity.key)
    assert fleet.greet(renewed) == ["welcome"]
    assert fleet.greet(renewed) == ["welcome"]
    assert chains == [1, 1]


def test_what_has_ended_above_is_looked_at_in_the_chain(
    fleet: Fleet, chains: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = now_utc()
    line = create_authority("Line 1", now=now, issuer=fleet.made["pump"], valid_days=1)
    voice = fleet.voice("pump", "pump-1", by=line, send_issuer=True)
    assert fleet.greet(voice) == ["welcome"]
    later = now + timedelta(days=2)
    monkeypatch.setattr("fleets.now_utc", lambda: later)
    voice.begin_connection()
    assert fleet.greet(voice) == ["ca_expired"]
    assert chains == [2, 2]


def test_a_known_certificate_proves_nothing_without_its_key(fleet: Fleet, chains: list[int]) -> None:
    (voice,) = fleet.enroll("pump", "pump-1")
    voice.identity = replace(voice.identity, key=fleet.voice("pump", "pump-2").identity.key)
    voice.begin_connection()
    assert fleet.greet(voice) == ["key_mismatch"]
