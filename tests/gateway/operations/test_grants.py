"""A grant lets one new key bind, in its time: hellos over the real pipeline."""

import base64
import json
import threading
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from broker_fixtures import wait_until

from gateway.device.factory import Authority, create_authority
from gateway.operations import authorities, devices, products
from gateway.operations.desk import Desk
from gateway.pipeline import Pipeline
from provisioning.access import Principal, Role
from provisioning.authorities import AuthorityState
from provisioning.envelope import payload_type, sign_envelope
from provisioning.errors import AccessError, InvalidError, NotFoundError
from provisioning.greeting import Terms
from provisioning.ids import OrganizationId
from provisioning.products import JitpSettings
from store import organizations
from store.database import Database
from store.ids import new_id
from store.locks import device_lock
from store.schema import audit
from store.times import now_utc
from store.verify import verify

TERMS = Terms(audience="gw", challenge_key=b"k" * 32, heartbeat_seconds=60)
HOUR = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Said:
    topic: str
    payload: bytes
    received_at: datetime


@dataclass(slots=True)
class Place:
    """A product that takes in whoever its CA has signed."""

    desk: Desk
    admin: Principal
    pipeline: Pipeline
    authority: Authority

    def hello(self, name: str = "d-1") -> str:
        """One hello of a device that has just got a new key; returns the result, or the reason."""
        now = now_utc()
        made = self.authority.issue(name, now=now)
        number = new_id()
        document = {
            "v": 1,
            "aud": "gw",
            "topic": f"fg/v1/{name}/hello",
            "conn": f"{number:016x}"[-16:],
            "boot": "b" * 16,
            "seq": 1,
            "ts": int(now.timestamp() * 1000),
            "nonce": f"nonce-{number}",
            "chain": [base64.b64encode(der).decode() for der in made.der_chain],
            "hardware": {"model": "m"},
            "firmware": {"version": "1"},
        }
        payload = sign_envelope(made.key, payload_type("hello"), json.dumps(document).encode())
        (reply,) = self.pipeline.work([Said(f"fg/v1/{name}/hello", payload, now)]).replies
        assert reply is not None
        return str(reply.reason or reply.result)

    def until(self) -> datetime | None:
        return devices.find(self.desk, self.admin, "d-1").device.new_key_until


@pytest.fixture
def place(database: Database) -> Place:
    desk = Desk(
        database=database,
        clock=now_utc,
        new_id=new_id,
        capath=None,
        broker="main",
        worker="test",
        audience="gw",
    )
    number = OrganizationId(new_id())
    with database.write() as tx:
        organizations.create(tx, id=number, name="acme", at=now_utc())
    admin = Principal(organization_id=number, name="admin", role=Role.ADMIN)
    authority = create_authority("Pump CA", now=now_utc())
    products.create(desk, admin, name="pump", description="")
    products.set_jitp(desk, admin, "pump", JitpSettings(enabled=True))
    made = authorities.register(desk, admin, product="pump", name="ca", pem=authority.pem)
    authorities.prove(desk, admin, made.id, authority.prove(made.code, now_utc()))
    authorities.move(desk, admin, made.id, AuthorityState.ACTIVE)
    pipeline = Pipeline(
        database, terms=lambda: TERMS, broker="main", worker="w", prefix="fg/v1", new_id=new_id
    )
    return Place(desk, admin, pipeline, authority)


def test_one_new_key_binds_in_the_grants_time_and_uses_it_up(place: Place) -> None:
    assert place.hello() == "welcome"
    assert place.hello() == "key_change_unproven"
    granted = devices.grant(place.desk, place.admin, "d-1", life=HOUR)
    assert granted.device.new_key_until is not None
    assert timedelta(minutes=59) < granted.device.new_key_until - now_utc() <= HOUR
    assert place.hello() == "welcome"
    assert place.until() is None
    assert place.hello() == "key_change_unproven"
    assert verify(place.desk.database).ok  # type: ignore[arg-type]


def test_a_grant_that_is_over_binds_nothing(place: Place) -> None:
    assert place.hello() == "welcome"
    earlier = replace(place.desk, clock=lambda: now_utc() - 2 * HOUR)
    devices.grant(earlier, place.admin, "d-1", life=HOUR)
    assert place.until() is not None
    assert place.hello() == "key_change_unproven"
    devices.grant(earlier, place.admin, "d-1", life=3 * HOUR)
    assert place.hello() == "welcome"


def test_a_grant_that_is_withdrawn_binds_nothing_and_both_are_audited(place: Place) -> None:
    assert place.hello() == "welcome"
    devices.grant(place.desk, place.admin, "d-1", life=HOUR)
    for _ in range(2):
        assert devices.grant(place.desk, place.admin, "d-1", life=None).device.new_key_until is None
    assert place.hello() == "key_change_unproven"
    with place.desk.database.read() as tx:
        rows = tx.connection.execute(
            sa.select(audit).where(audit.c.object_type == "device").order_by(audit.c.id)
        ).all()
    assert [(row.action, row.actor) for row in rows] == [
        ("device.grant", "admin"),
        ("device.withdraw_grant", "admin"),
    ]
    granted, withdrawn = rows
    assert granted.before == withdrawn.after == {"new_key_until": None}
    assert granted.after == withdrawn.before
    assert granted.after["new_key_until"].endswith("+00:00")


def test_who_may_grant_what(place: Place) -> None:
    assert place.hello() == "welcome"
    viewer = replace(place.admin, name="look", role=Role.VIEWER)
    with pytest.raises(AccessError, match="'look' is viewer"):
        devices.grant(place.desk, viewer, "d-1", life=HOUR)
    with pytest.raises(NotFoundError):
        devices.grant(place.desk, place.admin, "d-2", life=HOUR)
    for life in (timedelta(), -HOUR, timedelta(hours=721)):
        with pytest.raises(InvalidError, match="a grant lasts 1–720 hours"):
            devices.grant(place.desk, place.admin, "d-1", life=life)
    assert place.until() is None


def test_a_grant_waits_for_a_hello_and_takes_nothing_of_it_back(place: Place) -> None:
    assert place.hello() == "welcome"
    database = place.desk.database
    assert isinstance(database, Database)
    thread = threading.Thread(
        target=devices.grant, args=[place.desk, place.admin, "d-1"], kwargs={"life": HOUR}
    )

    def waits() -> bool:
        if database.is_sqlite:
            return thread.is_alive()  # one writer at a time: it cannot be over
        with database.read() as tx:
            query = (
                "SELECT count(*) FROM pg_stat_activity "
                "WHERE wait_event_type = 'Lock' AND datname = current_database()"
            )
            return tx.connection.execute(sa.text(query)).scalar_one() > 0

    with database.write([device_lock("main", "d-1")]) as tx:  # as the pipeline does for a hello
        tx.connection.execute(sa.text("UPDATE devices SET firmware_version = '2'"))
        thread.start()
        wait_until(waits, "the grant waits for the hello")
    thread.join(60)
    device = devices.find(place.desk, place.admin, "d-1").device
    assert device.firmware_version == "2"
    assert device.new_key_until is not None
