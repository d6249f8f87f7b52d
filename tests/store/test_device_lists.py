"""The list of devices: its filters, and pages that lose and repeat nothing while devices arrive."""

from pathlib import Path

import pytest
from api_fixtures import Asked
from fleets import Fleet, make_fleet, make_organization

from gateway.operations import devices as operations
from gateway.operations import products
from provisioning.access import Principal, Role
from provisioning.ids import DeviceId
from store import devices
from store.database import Database


@pytest.fixture
def fleet(database: Database, tmp_path: Path) -> Fleet:
    """Two products, each with devices in canary and main; one is blocked, one was never seen."""
    fleet = make_fleet(database, tmp_path)
    for product in ("sensor", "pump"):
        fleet.product(product)
        fleet.enroll(product, f"{product}-1", f"{product}-2")
        fleet.enroll(product, f"{product}-lab", model="lab")
    operations.set_blocked(fleet.desk, fleet.principal, "sensor-2", blocked=True)
    operations.create(
        fleet.desk, fleet.principal, product="sensor", identifier="sensor-waiting", cohort="canary"
    )
    return fleet


def listed(fleet: Fleet, **filters: object) -> list[str]:
    with fleet.database.read() as tx:
        found = devices.list_all(tx, fleet.principal.organization_id, **filters)  # type: ignore[arg-type]
    return [view.device.identifier for view in found]


def test_each_filter_lists_what_it_names(fleet: Fleet) -> None:
    everybody = ["sensor-1", "sensor-2", "sensor-lab", "pump-1", "pump-2", "pump-lab", "sensor-waiting"]
    assert listed(fleet) == everybody
    assert listed(fleet, product="pump") == ["pump-1", "pump-2", "pump-lab"]
    assert listed(fleet, cohort="canary") == ["sensor-lab", "pump-lab", "sensor-waiting"]
    assert listed(fleet, state="blocked") == ["sensor-2"]
    assert listed(fleet, state="pending") == ["sensor-waiting"]
    assert listed(fleet, product="sensor", cohort="main") == ["sensor-1", "sensor-2"]
    assert listed(fleet, product="sensor", cohort="main", state="active") == ["sensor-1"]
    assert listed(fleet, cohort="main", limit=3) == ["sensor-1", "sensor-2", "pump-1"]
    for unknown in ("product", "cohort", "state"):
        assert listed(fleet, **{unknown: "none"}) == []
    stranger = make_organization(fleet.database)
    with fleet.database.read() as tx:
        assert devices.list_all(tx, stranger) == devices.list_all(tx, stranger, product="sensor") == []


def test_a_page_begins_after_the_last_device_of_the_one_before(fleet: Fleet) -> None:
    with fleet.database.read() as tx:
        views = devices.list_all(tx, fleet.principal.organization_id, product="pump")
    numbers = [view.device.id for view in views]
    assert listed(fleet, product="pump", after=numbers[0]) == ["pump-2", "pump-lab"]
    assert listed(fleet, product="pump", after=DeviceId(numbers[1] - 1), limit=1) == ["pump-2"]
    assert listed(fleet, product="pump", after=numbers[2]) == []


def test_pages_lose_and_repeat_nothing_while_devices_arrive(asked: Asked) -> None:
    key = asked.key("admin", Role.ADMIN)
    principal = Principal(organization_id=asked.organization_id, name="admin", role=Role.ADMIN)
    products.create(asked.desk, principal, name="pump", description="")

    def arrive(identifier: str) -> None:
        operations.create(asked.desk, principal, product="pump", identifier=identifier)

    first = [f"first-{number}" for number in range(7)]
    for identifier in first:
        arrive(identifier)
    seen: list[str] = []
    late: list[str] = []
    path = "devices?product=pump&limit=2"
    while path:
        page = asked.ask(key, "GET", path).json()
        seen += [device["identifier"] for device in page["items"]]
        if len(late) < 3:
            late.append(f"late-{len(late)}")
            arrive(late[-1])
        cursor = page["next_cursor"]
        path = f"devices?product=pump&limit=2&cursor={cursor}" if cursor else ""
    assert seen == [*first, *late]
