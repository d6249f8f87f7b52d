"""A whole gateway for tests: the real broker on the shipped configuration, a real database, the real service."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
from broker_fixtures import DEADLINE_SECONDS, InstalledBroker, Pair, Party, install, wait_until
from cryptography import x509

from gateway.device.factory import Authority, DeviceCertificate, create_authority
from gateway.device.messages import Identity, Profile, Reply, Voice, load_identity, new_nonce, parse_reply
from gateway.mqtt.capath import CaPath
from gateway.operations import authorities, products
from gateway.operations.desk import Desk
from gateway.service import Gateway
from gateway.settings import Settings
from provisioning.access import Principal, Role, hash_key, new_key
from provisioning.authorities import AuthorityState
from provisioning.ids import OrganizationId
from provisioning.products import JitpSettings
from provisioning.topics import Up
from store import migrate, organizations
from store.database import Database
from store.ids import new_id
from store.times import now_utc


@dataclass(slots=True, kw_only=True)
class Running:
    """A gateway that runs, its operator, and what tests need of both."""

    installed: InstalledBroker
    settings: Settings
    database: Database
    desk: Desk
    principal: Principal
    key: str
    gateway: Gateway
    made: dict[str, Authority] = field(default_factory=dict)

    def restart(self) -> None:
        """Starts a gateway again after `gateway.stop()`."""
        self.gateway = start_gateway(self.settings, self.database)

    def api(self) -> httpx.Client:
        """A client with the operator's key."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self.settings.http.port}",
            headers={"Authorization": f"Bearer {self.key}"},
            timeout=DEADLINE_SECONDS,
        )

    def product(self, name: str, **jitp: Any) -> Authority:
        """A product with the cohorts canary and main, JITP on, and an active CA; returns the CA."""
        authority = create_authority(f"{name} CA {secrets.token_hex(4)}", now=now_utc())
        products.create(self.desk, self.principal, name=name, description="")
        for cohort in ("canary", "main"):
            products.create_cohort(self.desk, self.principal, product=name, name=cohort, description="")
        settings = JitpSettings.model_validate({"enabled": True, "default_cohort": "main"} | jitp)
        products.set_jitp(self.desk, self.principal, name, settings)
        self.trust(name, "first", authority)
        self.made[name] = authority
        return authority

    def trust(self, product: str, name: str, authority: Authority) -> authorities.Authority:
        """Registers, proves and activates a CA, as an operator does."""
        made = authorities.register(self.desk, self.principal, product=product, name=name, pem=authority.pem)
        proof = authority.prove(made.code, now_utc())
        authorities.prove(self.desk, self.principal, made.id, proof)
        return authorities.move(self.desk, self.principal, made.id, AuthorityState.ACTIVE)


class TestDevice:
    """A device of a test: says what it is told to, and collects what it is answered."""

    __test__ = False

    def __init__(
        self, running: Running, made: DeviceCertificate, directory: Path, *, v5: bool = True, **profile: Any
    ) -> None:
        self.made = made
        name = f"{made.certificate.serial_number:x}"
        cert, key = made.write(directory, name)
        self.identity: Identity = load_identity(made.pem, made.key_pem)
        self.voice = Voice(
            self.identity,
            audience=running.settings.audience,
            prefix=running.settings.prefix,
            profile=Profile(**profile),
        )
        self._running = running
        self._pair = Pair(certificate=cert, key=key)
        self._v5 = v5
        self.party: Party | None = None

    def connect(self) -> "TestDevice":
        """Connects over mutual TLS, with a will, and listens for replies."""
        will = (self.voice.topic(Up.PRESENCE), self.voice.begin_connection())
        self.party = Party(self._running.installed, self._pair, v5=self._v5, will=will).connect()
        self.party.subscribe(self.voice.reply_topic)
        return self

    def send(self, verb: Up, payload: bytes) -> None:
        """Publishes and waits for the broker's PUBACK."""
        assert self.party is not None
        self.party.publish(self.voice.topic(verb), payload)

    def reply(self) -> Reply:
        """The next reply."""
        assert self.party is not None
        replies: Queue[Any] = self.party.received
        return parse_reply(replies.get(timeout=DEADLINE_SECONDS).payload)

    def hello(self, **more: Any) -> Reply:
        """Says hello by the clock and waits for the answer."""
        if "challenge" not in more:
            more.setdefault("ts", int(now_utc().timestamp() * 1000))
        self.send(Up.HELLO, self.voice.hello(**({"nonce": new_nonce()} | more)))
        return self.reply()

    def disconnect(self) -> None:
        """Disconnects in order, without a goodbye."""
        assert self.party is not None
        self.party.__exit__()


def start_gateway(settings: Settings, database: Database) -> Gateway:
    """Starts the service's parts in this process and waits until the broker has taken its subscriptions."""
    gateway = Gateway(settings, database)
    gateway.start()
    wait_until(lambda: gateway.transport.stats().connected, "the gateway connects")
    assert gateway.transport.wait_ready(DEADLINE_SECONDS), gateway.transport.stats()
    return gateway


@contextmanager
def running_gateway(directory: Path, database_url: str | None = None) -> Iterator[Running]:
    """Installs, starts broker and gateway, and ends both."""
    installed = install(directory)
    settings = Settings.load(installed.installation.settings)
    database = Database(database_url or settings.database.url)
    migrate.upgrade(database)
    organization = OrganizationId(new_id())
    key = new_key(secrets.token_bytes(32))
    now = datetime.now(UTC)
    with database.write() as tx:
        organizations.create(tx, id=organization, name="acme", at=now)
        organizations.create_key(
            tx,
            id=new_id(),
            organization_id=organization,
            name="admin",
            role=Role.ADMIN,
            sha256=hash_key(key),
            at=now,
        )
    with installed.broker:
        gateway = start_gateway(settings, database)
        running = Running(
            installed=installed,
            settings=settings,
            database=database,
            desk=Desk(
                database=database,
                clock=now_utc,
                new_id=new_id,
                capath=CaPath(settings.broker.capath),
                broker=settings.broker.name,
                worker="test",
                audience=settings.audience,
            ),
            principal=Principal(organization_id=organization, name="admin", role=Role.ADMIN),
            key=key,
            gateway=gateway,
        )
        try:
            yield running
        finally:
            running.gateway.stop()
            database.close()


def random_name(stem: str) -> str:
    """A topic name that no other test has used."""
    return f"{stem}-{x509.random_serial_number() % 10**8}"
