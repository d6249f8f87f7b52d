"""ETags and `If-Match`; cursors of lists that come in pages."""

import base64
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from api_fixtures import Asked, served_api
from broker_fixtures import wait_until
from databases import new_migrated_url

from gateway.device.factory import create_authority
from gateway.http.cursors import make_cursor, parse_cursor
from gateway.operations import products
from provisioning.access import Principal, Role
from provisioning.errors import InvalidError
from provisioning.products import JitpSettings
from store.database import Database
from store.times import now_utc


@pytest.fixture
def admin(asked: Asked) -> str:
    key = asked.key("admin", Role.ADMIN)
    assert asked.ask(key, "POST", "products", {"name": "pump"}).is_success
    assert asked.ask(key, "POST", "products/pump/cohorts", {"name": "main"}).is_success
    assert asked.ask(key, "POST", "products/pump/devices", {"identifier": "p-1"}).is_success
    return key


def etag(asked: Asked, key: str, path: str) -> str:
    shown = asked.ask(key, "GET", path)
    assert shown.status_code == 200
    return shown.headers["ETag"]


EDITS = [
    ("products/pump", "PUT", "products/pump/jitp", {"enabled": True}, {"enabled": False}),
    ("devices/p-1", "POST", "devices/p-1/block", None, None),
    ("devices/p-1", "POST", "devices/p-1/grant", {"hours": 1}, {"hours": 2}),
]


@pytest.mark.parametrize(("shown", "method", "path", "body", "next_body"), EDITS)
def test_an_edit_of_what_has_changed_since_is_not_made(
    asked: Asked, admin: str, shown: str, method: str, path: str, body: Any, next_body: Any
) -> None:
    seen = etag(asked, admin, shown)
    assert etag(asked, admin, shown) == seen
    done = asked.ask(admin, method, path, body, If_Match=f'"other", {seen}')
    assert done.status_code == 200
    before = asked.ask(admin, "GET", shown)
    refused = asked.ask(admin, method, path, next_body, If_Match=seen)
    assert refused.status_code == 412
    assert refused.json()["type"] == "urn:fleetgate:problem:precondition_failed"
    assert f"its ETag is {before.headers['ETag']}, If-Match has {seen}" in refused.json()["detail"]
    assert "GET it again" in refused.json()["detail"]
    assert asked.ask(admin, "GET", shown).json() == before.json()
    for header in (before.headers["ETag"], "*"):
        assert asked.ask(admin, method, path, next_body, If_Match=header).status_code == 200
    assert asked.ask(admin, method, path, body).status_code == 200


def test_a_withdrawal_and_a_cas_moves_are_edits_too(asked: Asked, admin: str) -> None:
    seen = etag(asked, admin, "devices/p-1")
    assert asked.ask(admin, "POST", "devices/p-1/grant", {}).is_success
    assert asked.ask(admin, "DELETE", "devices/p-1/grant", If_Match=seen).status_code == 412
    authority = create_authority("Pump CA", now=now_utc())
    body = {"name": "ca", "certificate": authority.pem.decode()}
    made = asked.ask(admin, "POST", "products/pump/authorities", body).json()
    path = f"authorities/{made['id']}"
    pending = etag(asked, admin, path)
    proof = {"certificate": authority.prove(made["code"], now_utc()).decode()}
    assert asked.ask(admin, "POST", f"{path}/prove", proof, If_Match='"other"').status_code == 412
    assert asked.ask(admin, "POST", f"{path}/prove", proof, If_Match=pending).status_code == 200
    assert asked.ask(admin, "POST", f"{path}/activate", If_Match=pending).status_code == 412
    assert asked.ask(admin, "GET", path).json()["state"] == "pending"
    assert asked.ask(admin, "POST", f"{path}/activate", If_Match=etag(asked, admin, path)).is_success


def test_a_repeated_edit_is_answered_though_the_object_has_changed_by_it(asked: Asked, admin: str) -> None:
    seen = etag(asked, admin, "devices/p-1")
    headers = {"If_Match": seen, "Idempotency_Key": "k"}
    first = asked.ask(admin, "POST", "devices/p-1/block", **headers)
    again = asked.ask(admin, "POST", "devices/p-1/block", **headers)
    assert (first.status_code, again.status_code) == (200, 200)
    assert first.json() == again.json()


def test_of_many_edits_of_one_state_one_is_made(asked: Asked, admin: str) -> None:
    seen = etag(asked, admin, "products/pump")
    answered: list[httpx.Response] = []
    begin = threading.Barrier(6)

    def edit(quota: int) -> None:
        begin.wait(30)
        answered.append(asked.ask(admin, "PUT", "products/pump/jitp", {"quota": quota}, If_Match=seen))

    threads = [threading.Thread(target=edit, args=[100 + number]) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answer.status_code for answer in answered) == [200] + [412] * 5


def test_an_edit_looks_only_once_the_one_before_it_is_over(tmp_path: Path) -> None:
    database = Database(new_migrated_url("postgresql", tmp_path))  # SQLite has one writer at a time anyway
    with served_api(database) as asked:
        key = asked.key("admin", Role.ADMIN)
        assert asked.ask(key, "POST", "products", {"name": "pump"}).is_success
        seen = etag(asked, key, "products/pump")
        principal = Principal(organization_id=asked.organization_id, name="admin", role=Role.ADMIN)
        answered: list[httpx.Response] = []

        def edit() -> None:
            answered.append(asked.ask(key, "PUT", "products/pump/jitp", {"quota": 2}, If_Match=seen))

        def waits() -> bool:
            with database.read() as tx:
                query = (
                    "SELECT count(*) FROM pg_stat_activity "
                    "WHERE wait_event_type = 'Lock' AND datname = current_database()"
                )
                return tx.connection.execute(sa.text(query)).scalar_one() > 0

        thread = threading.Thread(target=edit)
        with database.write() as tx:
            desk = replace(asked.desk, database=database.join(tx))
            products.set_jitp(desk, principal, "pump", JitpSettings(quota=1))
            thread.start()
            wait_until(waits, "the second edit waits for the first")
        thread.join(60)
        assert [answer.status_code for answer in answered] == [412]
        assert asked.ask(key, "GET", "products/pump").json()["jitp"]["quota"] == 1
    database.close()


@pytest.mark.parametrize("header", ["x", 'W/"x"', '"x", y', '""'])
def test_an_if_match_that_is_none_is_refused(asked: Asked, admin: str, header: str) -> None:
    refused = asked.ask(admin, "POST", "devices/p-1/block", If_Match=header)
    assert (refused.status_code, refused.json()["field"]) == (422, "If-Match")


def test_cohorts_have_an_etag(asked: Asked, admin: str) -> None:
    assert etag(asked, admin, "products/pump/cohorts/main").startswith('"')
    missing = asked.ask(admin, "GET", "products/pump/cohorts/none")
    assert (missing.status_code, "has no cohort 'none'" in missing.text) == (404, True)


def test_pages_end_where_the_list_ends(asked: Asked, admin: str) -> None:
    for number in range(2, 7):
        body = {"identifier": f"p-{number}"}
        assert asked.ask(admin, "POST", "products/pump/devices", body).is_success
    seen: list[str] = []
    path = "devices?limit=3"
    pages = 0
    while path:
        page = asked.ask(admin, "GET", path).json()
        seen += [device["identifier"] for device in page["items"]]
        pages += 1
        path = f"devices?limit=3&cursor={page['next_cursor']}" if page["next_cursor"] else ""
    assert seen == [f"p-{number}" for number in range(1, 7)]
    assert pages == 2, "a full last page has no page after it"


@pytest.mark.parametrize(
    "cursor",
    [
        "",
        "17",
        "ü",
        "%%%",
        make_cursor("inbox", 17),
        base64.urlsafe_b64encode(b'[2,"devices",17]').decode(),
        base64.urlsafe_b64encode(b'[1,"devices",-1]').decode(),
        base64.urlsafe_b64encode(b'[1,"devices",true]').decode(),
        base64.urlsafe_b64encode(b'[1,"devices",9223372036854775808]').decode(),
        base64.urlsafe_b64encode(b'{"a":1}').decode(),
        base64.urlsafe_b64encode(b"[" * 140).decode(),
        "A" * 5000,
    ],
)
def test_a_garbled_cursor_is_refused(cursor: str) -> None:
    with pytest.raises(InvalidError, match="this is no cursor of devices") as refused:
        parse_cursor("devices", cursor)
    assert refused.value.field == "cursor"


def test_a_cursor_says_nothing_to_read_and_comes_back_as_it_was(asked: Asked, admin: str) -> None:
    for number in (0, 17, (1 << 63) - 1):
        assert parse_cursor("devices", make_cursor("devices", number)) == number
    refused = asked.ask(admin, "GET", "devices?cursor=17")
    assert (refused.status_code, refused.json()["field"]) == (422, "cursor")


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "devices?product=%00", None),
        ("GET", "devices/a%00", None),
        ("POST", "products", {"name": "valve", "description": "a\0b"}),
        ("POST", "products", {"name": "valve", "tags": ["a\0b"]}),
        ("PUT", "products/pump/jitp", {"identifier_pattern": "a\0b"}),
    ],
)
def test_text_that_no_database_keeps_is_refused(
    asked: Asked, admin: str, method: str, path: str, body: Any
) -> None:
    refused = asked.ask(admin, method, path, body)
    assert (refused.status_code, "U+0000" in refused.json()["detail"]) == (422, True)


@pytest.mark.parametrize("name", ["³", "٣", "9" * 5000, str(1 << 63)])
def test_a_name_that_is_nearly_a_number_is_only_a_name(asked: Asked, admin: str, name: str) -> None:
    assert asked.ask(admin, "GET", f"devices/{name}").status_code == 404
