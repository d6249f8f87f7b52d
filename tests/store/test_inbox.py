"""The inbox: one row for each reason, CA and key, however often it is refused."""

from pathlib import Path

import pytest
from fleets import Fleet, hello, make_fleet, make_organization

from gateway.operations import products
from provisioning.products import JitpSettings
from store import devices
from store.database import Database
from store.devices import InboxItem


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Fleet:
    """Two products that take nobody in."""
    fleet = make_fleet(database, tmp_path)
    for product in ("sensor", "pump"):
        fleet.product(product, enabled=False)
    return fleet


def inbox(fleet: Fleet, **filters: object) -> list[InboxItem]:
    with fleet.database.read() as tx:
        return devices.list_inbox(tx, fleet.principal.organization_id, **filters)  # type: ignore[arg-type]


def test_a_key_that_comes_again_is_counted_in_its_row(fleet: Fleet) -> None:
    voice = fleet.voice("sensor", "dev-1")
    assert fleet.greet(voice, voice) == ["jitp_disabled"] * 2
    (first,) = inbox(fleet)
    assert (first.seen, first.first_at) == (2, first.last_at)
    late = hello(voice)
    fleet.hear(late)
    (again,) = inbox(fleet)
    assert (again.id, again.seen, again.first_at) == (first.id, 3, first.first_at)
    assert again.last_at > first.last_at
    assert (again.product, again.reason, again.topic_name) == ("sensor", "jitp_disabled", "dev-1")
    assert (again.identifier, len(again.key_id)) == ("dev-1", 64)
    assert again.detail == "just-in-time provisioning of 'sensor' is off"


def test_another_reason_ca_or_key_is_another_row(fleet: Fleet) -> None:
    voice = fleet.voice("sensor", "dev-1")
    second = fleet.trust("sensor", "second")
    through_second = fleet.voice("sensor", "dev-1", by=second, private_key=voice.identity.key)
    assert fleet.greet(voice, through_second, fleet.voice("sensor", "dev-1")) == ["jitp_disabled"] * 3
    settings = JitpSettings(enabled=True, identifier_pattern="other-.*")
    products.set_jitp(fleet.desk, fleet.principal, "sensor", settings)
    assert fleet.greet(voice) == ["identifier_pattern"]
    found = inbox(fleet)
    assert [item.seen for item in found] == [1] * 4
    assert len({(item.reason, item.key_id) for item in found}) == 3, "two of them differ by their CA alone"
    assert found[0].reason == "identifier_pattern", "the newest first"


def test_it_lists_the_newest_as_many_as_asked_for_and_what_a_filter_names(fleet: Fleet) -> None:
    for number in range(4):
        fleet.greet(fleet.voice("sensor", f"dev-{number}"))
    fleet.greet(fleet.voice("pump", "pump-1"))
    assert [item.identifier for item in inbox(fleet, limit=3)] == ["pump-1", "dev-3", "dev-2"]
    assert [item.identifier for item in inbox(fleet, product="pump")] == ["pump-1"]
    assert len(inbox(fleet, reason="jitp_disabled")) == 5
    assert inbox(fleet, reason="quota_exhausted") == []
    with fleet.database.read() as tx:
        assert devices.list_inbox(tx, make_organization(fleet.database)) == []
