"""The API over a real database, asked over HTTP, for tests."""

import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import httpx
import pytest

from gateway.http.app import create_app
from gateway.http.listener import Listener
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
    client: httpx.Client
    url: str

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

    def ask(self, key: str, method: str, path: str, body: Any = None, **headers: str) -> httpx.Response:
        """One request; `If_Match="…"` becomes the header If-Match."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.client.request(
            method, path, json=body, headers={"Authorization": f"Bearer {key}", **named}
        )


@contextmanager
def served_api(database: Database, **of_desk: Any) -> Iterator[Asked]:
    """The API of a new organization over `database`, on a port of its own."""
    named: dict[str, Any] = {
        "database": database,
        "clock": now_utc,
        "new_id": new_id,
        "capath": None,
        "broker": "main",
        "worker": "test",
        "audience": "gw",
    }
    desk = Desk(**(named | of_desk))
    number = OrganizationId(new_id())
    with database.write() as tx:
        organizations.create(tx, id=number, name=f"org-{number}", at=now_utc())
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    listener = Listener(create_app(desk), name="api", host="127.0.0.1", port=port)
    listener.start()
    url = f"http://127.0.0.1:{port}"
    try:
        with httpx.Client(base_url=f"{url}/api/v1/", timeout=60, trust_env=False) as client:
            yield Asked(desk, number, client, url)
    finally:
        listener.stop()


@pytest.fixture
def asked(database: Database) -> Iterator[Asked]:
    """An API over each kind of database."""
    with served_api(database) as made:
        yield made
