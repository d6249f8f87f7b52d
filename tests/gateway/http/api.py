"""The API over a real database, asked in process, for tests."""

import secrets
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
from starlette.testclient import TestClient

from gateway.http.app import create_app
from gateway.operations.desk import Desk
from provisioning.access import KEY_BYTES, Role, hash_key, new_key
from provisioning.ids import OrganizationId
from store import organizations
from store.database import Database
from store.ids import new_id
from store.times import now_utc


@dataclass(slots=True)
class Asked:
    """An API, one organization, and how to ask with a key of any role."""

    desk: Desk
    organization_id: OrganizationId
    client: TestClient

    def key(self, name: str, role: Role, *, expires_at: datetime | None = None) -> str:
        """A new key."""
        key = new_key(secrets.token_bytes(KEY_BYTES))
        with self.desk.database.write() as tx:
            organizations.create_key(
                tx,
                id=new_id(),
                organization_id=self.organization_id,
                name=name,
                role=role,
                sha256=hash_key(key),
                at=now_utc(),
                expires_at=expires_at,
            )
        return key

    def ask(
        self, key: str, method: str, path: str, body: Any = None, **headers: str
    ) -> httpx.Response:
        """One request; `If_Match="…"` becomes the header If-Match."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(
            method, f"/api/v1/{path}", json=body, headers={"Authorization": f"Bearer {key}", **named}
        )


def open_api(database: Database, **of_desk: Any) -> Asked:
    """An API over `database` with a new organization."""
    desk = Desk(
        **{
            "database": database,
            "clock": now_utc,
            "new_id": new_id,
            "capath": None,
            "broker": "main",
            "worker": "test",
            "audience": "gw",
            **of_desk,
        }
    )
    number = OrganizationId(new_id())
    with database.write() as tx:
        organizations.create(tx, id=number, name=f"org-{number}", at=now_utc())
    client = TestClient(create_app(desk), raise_server_exceptions=False)
    return Asked(desk, number, client)
