"""API keys over HTTP: made once, listed without the key, dead at once."""

from datetime import datetime, timedelta

import pytest
import sqlalchemy as sa
from api_fixtures import Asked, served_api

from provisioning.access import Role
from store.database import Database
from store.schema import audit
from store.times import now_utc


@pytest.fixture
def admin(asked: Asked) -> str:
    return asked.key("admin", Role.ADMIN)


def test_a_key_works_by_its_role_until_it_is_revoked(asked: Asked, admin: str, database: Database) -> None:
    made = asked.ask(admin, "POST", "api-keys", {"name": "look", "role": "viewer"})
    assert made.status_code == 201
    key = made.json()["key"]
    assert asked.ask(key, "GET", "products").status_code == 200
    assert asked.ask(key, "POST", "products", {"name": "pump"}).status_code == 403
    assert asked.ask(key, "GET", "api-keys").status_code == 403
    listed = asked.ask(admin, "GET", "api-keys")
    assert [(one["name"], one["role"]) for one in listed.json()] == [("admin", "admin"), ("look", "viewer")]
    assert key not in listed.text
    revoked = asked.ask(admin, "POST", "api-keys/look/revoke").json()
    assert revoked["revoked_at"] is not None
    assert asked.ask(admin, "POST", "api-keys/look/revoke").json() == revoked
    refused = asked.ask(key, "GET", "products")
    assert (refused.status_code, refused.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert refused.json()["type"] == "urn:fleetgate:problem:unknown_key"
    with database.read() as tx:
        rows = tx.connection.execute(sa.select(audit).order_by(audit.c.id)).all()
    assert [row.action for row in rows] == ["api_key.create", "api_key.revoke"]
    assert rows[0].after == {"name": "look", "role": "viewer", "expires_at": None}
    assert not any(key in str(row) for row in rows)


def test_a_key_ends_by_its_time(database: Database) -> None:
    at: list[datetime] = [now_utc()]
    with served_api(database, clock=lambda: at[0]) as asked:
        admin = asked.key("admin", Role.ADMIN)
        until = (at[0] + timedelta(hours=1)).isoformat()
        body = {"name": "ci", "role": "operator", "expires_at": until}
        key = asked.ask(admin, "POST", "api-keys", body).json()["key"]
        assert asked.ask(key, "POST", "products", {"name": "pump"}).status_code == 201
        at[0] += timedelta(hours=1)
        assert asked.ask(key, "GET", "products").status_code == 401
        for wrong in (until, (at[0] + timedelta(days=4000)).isoformat(), "2030-01-01T00:00:00", "soon"):
            body = {"name": "ci-2", "role": "operator", "expires_at": wrong}
            assert asked.ask(admin, "POST", "api-keys", body).status_code == 422, wrong


def test_the_last_admin_key_that_works_stays(asked: Asked, admin: str) -> None:
    expired = asked.key("old", Role.ADMIN, expires_at=now_utc() - timedelta(seconds=1))
    assert asked.ask(expired, "GET", "api-keys").status_code == 401
    refused = asked.ask(admin, "POST", "api-keys/admin/revoke")
    assert refused.status_code == 409
    assert "'admin' is the last admin key that works; make another first" in refused.json()["detail"]
    body = {"name": "second", "role": "admin"}
    second = asked.ask(admin, "POST", "api-keys", body).json()["key"]
    assert asked.ask(admin, "POST", "api-keys/admin/revoke").status_code == 200
    assert asked.ask(admin, "GET", "products").status_code == 401
    assert asked.ask(second, "POST", "api-keys/second/revoke").status_code == 409
    assert asked.ask(second, "POST", "api-keys/old/revoke").status_code == 200


def test_names_are_not_used_twice_and_only_an_admin_makes_keys(asked: Asked, admin: str) -> None:
    body = {"name": "ci", "role": "operator"}
    key = asked.ask(admin, "POST", "api-keys", body).json()["key"]
    assert asked.ask(key, "POST", "api-keys", {"name": "more", "role": "admin"}).status_code == 403
    assert asked.ask(key, "POST", "api-keys/admin/revoke").status_code == 403
    assert asked.ask(admin, "POST", "api-keys/ci/revoke").status_code == 200
    taken = asked.ask(admin, "POST", "api-keys", body)
    assert (taken.status_code, "names are not used twice" in taken.text) == (409, True)
    assert asked.ask(admin, "POST", "api-keys/none/revoke").status_code == 404


def test_another_organizations_keys_are_not_found(asked: Asked, admin: str, database: Database) -> None:
    with served_api(database) as other:
        theirs = other.key("theirs", Role.ADMIN)
        other.key("theirs-2", Role.ADMIN)
        assert asked.ask(admin, "POST", "api-keys/theirs/revoke").status_code == 404
        assert other.ask(theirs, "GET", "products").status_code == 200
