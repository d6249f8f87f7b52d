"""Operators' commands on both databases: what they refuse, and what they leave behind."""

import secrets

import pytest
import sqlalchemy as sa

from gateway.device.factory import Authority, create_authority
from gateway.operations import authorities, devices, products
from gateway.operations.desk import Desk
from provisioning.access import Principal, Role
from provisioning.authorities import AuthorityState
from provisioning.devices import DeviceState
from provisioning.errors import AccessError, ConflictError, InvalidError, NotFoundError, TransitionError
from provisioning.ids import OrganizationId
from provisioning.products import JitpSettings
from store import audit, organizations
from store.database import Database
from store.ids import new_id
from store.times import now_utc
from store.verify import verify


@pytest.fixture
def desk(database: Database) -> Desk:
    return Desk(
        database=database,
        clock=now_utc,
        new_id=new_id,
        capath=None,
        broker="main",
        worker="test",
        audience="gw",
    )


def new_principal(desk: Desk, role: Role = Role.ADMIN) -> Principal:
    number = OrganizationId(new_id())
    with desk.database.write() as tx:
        organizations.create(tx, id=number, name=f"org-{number}", at=now_utc())
    return Principal(organization_id=number, name="key", role=role)


@pytest.fixture
def admin(desk: Desk) -> Principal:
    return new_principal(desk)


def register(desk: Desk, admin: Principal, product: str, authority: Authority) -> authorities.Authority:
    return authorities.register(desk, admin, product=product, name="ca", pem=authority.pem)


def prove(
    desk: Desk, admin: Principal, made: authorities.Authority, authority: Authority
) -> authorities.Authority:
    return authorities.prove(desk, admin, made.id, authority.prove(made.code, now_utc()))


def new_authority(issuer: Authority | None = None) -> Authority:
    return create_authority(f"CA {secrets.token_hex(4)}", now=now_utc(), issuer=issuer)


def test_another_organizations_objects_are_not_found(desk: Desk, admin: Principal) -> None:
    products.create(desk, admin, name="one", description="")
    device = devices.create(desk, admin, product="one", identifier="d-1")
    stranger = new_principal(desk)
    for name in ("d-1", str(device.device.id)):
        with pytest.raises(NotFoundError):
            devices.find(desk, stranger, name)
    with pytest.raises(NotFoundError):
        products.load(desk, stranger, "one")
    assert products.list_all(desk, stranger) == []


def test_names_are_taken_once_and_a_viewer_changes_nothing(desk: Desk, admin: Principal) -> None:
    products.create(desk, admin, name="one", description="")
    with pytest.raises(ConflictError, match="there is a product 'one' already"):
        products.create(desk, admin, name="one", description="")
    viewer = Principal(organization_id=admin.organization_id, name="look", role=Role.VIEWER)
    with pytest.raises(AccessError, match="'look' is viewer"):
        products.create(desk, viewer, name="two", description="")
    assert [product.name for product in products.list_all(desk, admin)] == ["one"]


def test_jitp_settings_must_name_cohorts_that_are_there(desk: Desk, admin: Principal) -> None:
    products.create(desk, admin, name="one", description="")
    with pytest.raises(InvalidError, match="cohort 'main' is not there"):
        products.set_jitp(desk, admin, "one", JitpSettings(default_cohort="main"))


def test_a_ca_is_active_only_once_proven_and_revoked_for_good(desk: Desk, admin: Principal) -> None:
    products.create(desk, admin, name="one", description="")
    authority = new_authority()
    made = register(desk, admin, "one", authority)
    with pytest.raises(TransitionError):
        authorities.move(desk, admin, made.id, AuthorityState.ACTIVE)
    with pytest.raises(InvalidError):
        authorities.prove(desk, admin, made.id, new_authority().prove(made.code, now_utc()))
    prove(desk, admin, made, authority)
    assert authorities.move(desk, admin, made.id, AuthorityState.ACTIVE).state is AuthorityState.ACTIVE
    authorities.move(desk, admin, made.id, AuthorityState.REVOKED)
    with pytest.raises(TransitionError):
        authorities.move(desk, admin, made.id, AuthorityState.RETIRING)


def test_registering_an_unproven_ca_again_gives_a_new_code(desk: Desk, admin: Principal) -> None:
    products.create(desk, admin, name="one", description="")
    authority = new_authority()
    first = register(desk, admin, "one", authority)
    second = register(desk, admin, "one", authority)
    assert first.id == second.id
    assert first.code != second.code
    prove(desk, admin, second, authority)
    with pytest.raises(ConflictError):
        register(desk, admin, "one", authority)


def test_a_claim_without_proof_locks_nobody_out_and_a_key_is_one_products(
    desk: Desk, admin: Principal
) -> None:
    for name in ("one", "two"):
        products.create(desk, admin, name=name, description="")
    authority = new_authority()
    claim, true = (register(desk, admin, name, authority) for name in ("one", "two"))
    prove(desk, admin, true, authority)
    with pytest.raises(ConflictError):
        prove(desk, admin, claim, authority)


def test_related_cas_of_two_products_are_refused_also_when_both_were_pending(
    desk: Desk, admin: Principal
) -> None:
    for name in ("one", "two"):
        products.create(desk, admin, name=name, description="")
    root = new_authority()
    below = new_authority(issuer=root)
    first, second = register(desk, admin, "one", root), register(desk, admin, "two", below)
    prove(desk, admin, first, root)
    with pytest.raises(ConflictError, match="one"):
        prove(desk, admin, second, below)


def test_blocking_and_unblocking_return_a_device_to_what_it_was(desk: Desk, admin: Principal) -> None:
    products.create(desk, admin, name="one", description="")
    devices.create(desk, admin, product="one", identifier="d-1")

    def state(*, blocked: bool) -> DeviceState:
        return devices.set_blocked(desk, admin, "d-1", blocked=blocked).device.state

    assert state(blocked=False) is DeviceState.PENDING, "unblocking activates nobody"
    assert state(blocked=True) is DeviceState.BLOCKED
    assert state(blocked=True) is DeviceState.BLOCKED
    assert state(blocked=False) is DeviceState.PENDING
    assert verify(desk.database).ok


def test_every_change_has_an_audit_row_and_a_changed_row_breaks_the_chain(
    desk: Desk, admin: Principal
) -> None:
    products.create(desk, admin, name="one", description="")
    products.create_cohort(desk, admin, product="one", name="main", description="")
    with desk.database.write(["audit"]) as tx:
        assert audit.seal(tx) == 2
    assert verify(desk.database).ok
    with desk.database.write() as tx:
        tx.connection.execute(sa.text("UPDATE audit SET actor = 'somebody' WHERE position = 1"))
    report = verify(desk.database)
    assert not report.ok
    assert [finding.invariant for finding in report.findings if finding.breaches] == ["I9"]


def test_a_counter_that_lies_is_found(desk: Desk, admin: Principal) -> None:
    products.create(desk, admin, name="one", description="")
    devices.create(desk, admin, product="one", identifier="d-1")
    assert verify(desk.database).ok
    with desk.database.write() as tx:
        tx.connection.execute(sa.text("UPDATE counters SET value = value + 1"))
    report = verify(desk.database)
    assert {finding.invariant for finding in report.findings if finding.breaches} == {"I5"}
