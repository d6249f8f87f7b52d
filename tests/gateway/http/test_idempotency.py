"""`Idempotency-Key`: what is asked for twice is done once, and answered twice."""

import threading
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from api_fixtures import Asked, served_api

from gateway.cli.api import Api
from gateway.device.factory import create_authority
from gateway.housekeeping import Housekeeping
from gateway.http.idempotency import Order
from gateway.http.views import ProductOut
from gateway.mqtt.capath import CaPath
from gateway.operations import products
from gateway.operations.desk import Desk
from provisioning.access import Principal, Role
from provisioning.errors import NotFoundError
from store.database import Database
from store.schema import answers, audit
from store.times import now_utc


@pytest.fixture
def admin(asked: Asked) -> str:
    return asked.key("admin", Role.ADMIN)


def count(database: Database, table: sa.Table) -> int:
    with database.read() as tx:
        return tx.connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one()


def test_the_same_key_is_answered_again_and_changes_nothing(
    asked: Asked, admin: str, database: Database
) -> None:
    first = asked.ask(admin, "POST", "products", {"name": "pump"}, Idempotency_Key="k-1")
    again = asked.ask(admin, "POST", "products", {"name": "pump"}, Idempotency_Key="k-1")
    assert first.status_code == again.status_code == 201
    assert first.json() == again.json()
    assert "Idempotency-Replayed" not in first.headers
    assert again.headers["Idempotency-Replayed"] == "true"
    assert count(database, audit) == 1
    without = asked.ask(admin, "POST", "products", {"name": "pump"})
    assert without.status_code == 409


def test_a_key_is_for_one_request_of_one_caller(asked: Asked, admin: str) -> None:
    assert asked.ask(admin, "POST", "products", {"name": "pump"}, Idempotency_Key="k-1").is_success
    for path, body in (("products", {"name": "valve"}), ("products/pump/cohorts", {"name": "pump"})):
        refused = asked.ask(admin, "POST", path, body, Idempotency_Key="k-1")
        assert refused.status_code == 422
        assert refused.json()["type"] == "urn:fleetgate:problem:idempotency_key_reused"
        assert "take a new key" in refused.json()["detail"]
    other = asked.key("other", Role.OPERATOR)
    theirs = asked.ask(other, "POST", "products", {"name": "valve"}, Idempotency_Key="k-1")
    assert (theirs.status_code, theirs.json()["name"]) == (201, "valve")


@pytest.mark.parametrize("key", ["", "x" * 256])
def test_a_key_that_cannot_be_kept_is_refused(asked: Asked, admin: str, key: str) -> None:
    refused = asked.ask(admin, "POST", "products", {"name": "pump"}, Idempotency_Key=key)
    assert (refused.status_code, refused.json()["field"]) == (422, "Idempotency-Key")


def test_many_at_once_with_one_key_are_done_once(asked: Asked, admin: str, database: Database) -> None:
    answered: list[httpx.Response] = []
    begin = threading.Barrier(8)

    def ask() -> None:
        begin.wait(30)
        answered.append(asked.ask(admin, "POST", "products", {"name": "pump"}, Idempotency_Key="k"))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [answer.status_code for answer in answered] == [201] * 8, [answer.text for answer in answered]
    assert len({answer.json()["id"] for answer in answered}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answered) == 1
    assert count(database, audit) == 1


def test_a_refusal_is_not_kept(asked: Asked, admin: str, database: Database) -> None:
    def create() -> httpx.Response:
        return asked.ask(admin, "POST", "products/pump/cohorts", {"name": "main"}, Idempotency_Key="k")

    assert create().status_code == 404
    assert count(database, answers) == 0
    assert asked.ask(admin, "POST", "products", {"name": "pump"}).is_success
    assert create().status_code == 201
    taken = asked.ask(admin, "POST", "products/pump/cohorts", {"name": "main"}, Idempotency_Key="k-2")
    assert taken.status_code == 409
    assert "product 'pump' has a cohort 'main' already" in taken.json()["detail"]


def test_change_audit_and_answer_are_there_together_or_not_at_all(asked: Asked, database: Database) -> None:
    principal = Principal(organization_id=asked.organization_id, name="admin", role=Role.ADMIN)
    order = Order(desk=asked.desk, principal=principal, key="k", request_sha256="0" * 64, status=201)

    def create(desk: Desk) -> ProductOut:
        return ProductOut.of(products.create(desk, principal, name="pump", description=""))

    def create_and_fail(desk: Desk) -> ProductOut:
        create(desk)
        raise OSError("the process ends here")

    with pytest.raises(OSError, match="ends here"):
        order.answer(create_and_fail)
    with pytest.raises(NotFoundError):
        products.load(asked.desk, principal, "pump")
    assert count(database, audit) == count(database, answers) == 0
    assert order.answer(create).name == "pump"
    assert count(database, audit) == count(database, answers) == 1


def test_after_a_day_a_key_is_new_and_housekeeping_forgets_it(database: Database) -> None:
    at: list[datetime] = [now_utc()]
    with served_api(database, clock=lambda: at[0]) as asked:
        admin = asked.key("admin", Role.ADMIN)
        keeper = Housekeeping(database, broker="main", worker="test", clock=lambda: at[0])
        body: dict[str, Any] = {"name": "pump"}
        assert asked.ask(admin, "POST", "products", body, Idempotency_Key="k").status_code == 201
        at[0] += timedelta(hours=23, minutes=59)
        keeper.work()
        assert asked.ask(admin, "POST", "products", body, Idempotency_Key="k").status_code == 201
        at[0] += timedelta(minutes=2)
        assert asked.ask(admin, "POST", "products", body, Idempotency_Key="k").status_code == 409
        assert count(database, answers) == 1, "a refusal leaves it to housekeeping"
        keeper.work()
        assert count(database, answers) == 0


def test_the_brokers_trust_follows_the_commit(database: Database, tmp_path: Path) -> None:
    with served_api(database, capath=CaPath(tmp_path)) as asked:
        admin = asked.key("admin", Role.ADMIN)
        authority = create_authority("Pump CA", now=now_utc())
        assert asked.ask(admin, "POST", "products", {"name": "pump"}).is_success
        body = {"name": "ca", "certificate": authority.pem.decode()}
        made = asked.ask(admin, "POST", "products/pump/authorities", body, Idempotency_Key="1").json()
        proof = {"certificate": authority.prove(made["code"], now_utc()).decode()}
        path = f"authorities/{made['id']}"
        assert asked.ask(admin, "POST", f"{path}/prove", proof, Idempotency_Key="2").is_success
        assert not list(tmp_path.glob("*.0"))
        activated = asked.ask(admin, "POST", f"{path}/activate", Idempotency_Key="3")
        assert activated.json()["state"] == "active"
        (link,) = tmp_path.glob("*.0")
        link.unlink()  # as if the process had ended between the commit and this
        assert asked.ask(admin, "POST", f"{path}/activate", Idempotency_Key="3").json() == activated.json()
        assert link.exists()


def test_no_api_key_is_kept_and_its_answer_comes_again_without_it(
    asked: Asked, admin: str, database: Database
) -> None:
    body = {"name": "ci", "role": "operator"}
    first = asked.ask(admin, "POST", "api-keys", body, Idempotency_Key="k").json()
    again = asked.ask(admin, "POST", "api-keys", body, Idempotency_Key="k").json()
    assert first["key"].startswith("fgk_")
    assert again == {**first, "key": None}
    with database.read() as tx:
        kept = tx.connection.execute(sa.select(answers.c.body)).scalar_one()
    assert first["key"] not in kept


class LosesAnswers(httpx.HTTPTransport):
    """Sends every request, and breaks off before the first answers arrive."""

    def __init__(self, lost: int) -> None:
        super().__init__()
        self.left = lost

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = super().handle_request(request)
        if self.left > 0:
            self.left -= 1
            response.close()
            raise httpx.ReadError("connection reset by peer")
        return response


def test_the_command_line_repeats_a_post_whose_answer_was_lost(
    asked: Asked, admin: str, database: Database
) -> None:
    with Api(asked.url, admin, LosesAnswers(2)) as api:
        assert api.post("products", body={"name": "pump"})["name"] == "pump"
        assert [product["name"] for product in api.items("products")] == ["pump"]
    assert count(database, audit) == 1


def test_every_post_that_changes_something_takes_a_key(asked: Asked) -> None:
    paths = asked.client.get(f"{asked.url}/api/openapi.json").json()["paths"]
    posts = {path: verbs["post"] for path, verbs in paths.items() if "post" in verbs}
    without = {
        path
        for path, verb in posts.items()
        if "idempotency-key" not in {parameter["name"] for parameter in verb.get("parameters", ())}
    }
    assert len(posts) >= 20
    assert without == {"/api/v1/certificates/check", "/api/v1/products/{product}/bundles/check"}
