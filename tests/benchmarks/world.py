"""What is measured: the real broker on the shipped configuration, a database, and `fleetgate serve` as processes.

The only liberty is a user `bench` on the broker's loopback listener, who may say every hello and read every answer,
so that one connection can speak for thousands of devices. Devices' own listener is as it is shipped.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from databases import PostgresServer, new_postgresql

from benchmarks.fleet import Place
from benchmarks.wire import Access, Line
from gateway.device.factory import create_authority
from gateway.installation import Installation, create_installation
from gateway.mqtt import pki
from gateway.mqtt.broker import LocalBroker, free_ports
from gateway.mqtt.capath import CaPath
from gateway.operations import authorities, bundles, products
from gateway.operations.desk import Desk
from provisioning.access import Principal, Role, hash_key, new_key
from provisioning.authorities import AuthorityState
from provisioning.bundles import Artifact, BundleStatement, sign_statement
from provisioning.ids import OrganizationId
from provisioning.products import JitpSettings
from store import migrate, organizations
from store.database import Database
from store.ids import new_id
from store.times import now_utc

PRODUCT: Final = "bench"
COHORT: Final = "main"
_ACL: Final = """
user bench
topic write {prefix}/+/hello
topic read {prefix}/+/reply
topic read {prefix}/+/offer
topic readwrite bench/#
"""
_READY_SECONDS: Final = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What a process has used."""

    cpu_seconds: float
    resident_bytes: int

    @classmethod
    def of(cls, pid: int) -> "Usage":
        """Of a process and its living threads, by Linux's /proc: schedstat counts nanoseconds, stat only ticks."""
        nanoseconds = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # a thread that has just ended
                nanoseconds += int((task / "schedstat").read_text().split()[0])
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        return cls(
            cpu_seconds=nanoseconds / 1e9,
            resident_bytes=resident * os.sysconf("SC_PAGE_SIZE"),
        )


class World:
    """An installation with its broker, which runs for the whole benchmark; databases come and go."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.installation: Installation = create_installation(
            directory / "fleetgate",
            device_host="localhost",
            now=now_utc(),
            device_port=0,
            gateway_port=0,
            http_port=0,
            download_port=0,
        )
        place = self.installation
        with (place.broker_files / "gateway.acl").open("a") as file:
            file.write(_ACL.format(prefix=place.prefix))
        self.access = self._access()
        self.authority = create_authority("Benchmark CA", now=now_utc())
        self.place = Place(
            audience=place.audience,
            prefix=place.prefix,
            authority_pem=self.authority.pem,
            authority_key_pem=self.authority.key_pem,
        )
        self.broker: LocalBroker = place.local_broker()
        self.key = new_key(secrets.token_bytes(32))
        self.signing_key = ec.generate_private_key(ec.SECP256R1())
        self.principal = Principal(organization_id=OrganizationId(new_id()), name="admin", role=Role.ADMIN)
        self._postgres: PostgresServer | None = None
        self._templates: dict[str, str] = {}

    def __enter__(self) -> "World":
        CaPath(self.installation.capath).sync([self.authority.pem])
        self.broker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.broker.stop()
        if self._postgres is not None:
            self._postgres.end()

    def _access(self) -> Access:
        private = self.installation.private
        key: Any = serialization.load_pem_private_key((private / "gateway-ca.key").read_bytes(), None)
        pem = (self.installation.broker_files / "gateway-ca.pem").read_bytes()
        client = pki.issue_client(
            pki.Signed(certificate=x509.load_pem_x509_certificate(pem), key=key), "bench", now_utc()
        )
        certfile, keyfile = private / "bench.pem", private / "bench.key"
        certfile.write_bytes(client.pem)
        keyfile.write_bytes(client.key_pem)
        return Access(
            port=self.installation.gateway_port,
            cafile=self.installation.broker_ca,
            certfile=certfile,
            keyfile=keyfile,
        )

    def line(self, client_id: str = "bench") -> Line:
        """A connection that may speak for every device."""
        return Line(self.access, client_id)

    def broker_usage(self) -> Usage:
        """What the broker has used."""
        assert self.broker.pid is not None
        return Usage.of(self.broker.pid)

    def new_database(self, kind: str) -> str:
        """The URL of a new database of `kind`, with a product, its CA and its cohort, and no device."""
        if kind not in self._templates:
            self._templates[kind] = self._new_template(kind)
        template = self._templates[kind]
        if kind == "postgresql":
            assert self._postgres is not None
            return new_postgresql(Database(template).url.database or "", self._postgres.url)
        file = self.directory / f"{secrets.token_hex(4)}.db"
        shutil.copyfile(template.removeprefix("sqlite:///"), file)
        return f"sqlite:///{file}"

    def _new_template(self, kind: str) -> str:
        if kind == "postgresql":
            # Commits reach the disk, as they do in earnest: the tests' own server does without.
            self._postgres = PostgresServer(durable=True)
            url = new_postgresql(server_url=self._postgres.url)
        else:
            url = f"sqlite:///{self.directory / 'template.db'}"
        database = Database(url)
        migrate.upgrade(database)
        with database.write() as tx:
            organization = self.principal.organization_id
            organizations.create(tx, id=organization, name="acme", at=now_utc())
            organizations.create_key(
                tx,
                id=new_id(),
                organization_id=organization,
                name="admin",
                role=Role.ADMIN,
                sha256=hash_key(self.key),
                at=now_utc(),
            )
        self._set_up(self.desk(database))
        database.close()  # the last connection of SQLite moves all of its log into the file
        return url

    def desk(self, database: Database) -> Desk:
        """Where this process does what an operator asks for."""
        return Desk(
            database=database,
            clock=now_utc,
            new_id=new_id,
            capath=None,
            broker="main",
            worker="bench",
            audience=self.place.audience,
        )

    def _set_up(self, desk: Desk) -> None:
        who = self.principal
        products.create(desk, who, name=PRODUCT, description="")
        products.create_cohort(desk, who, product=PRODUCT, name=COHORT, description="")
        jitp = JitpSettings.model_validate({"enabled": True, "default_cohort": COHORT})
        products.set_jitp(desk, who, PRODUCT, jitp)
        made = authorities.register(desk, who, product=PRODUCT, name="first", pem=self.authority.pem)
        authorities.prove(desk, who, made.id, self.authority.prove(made.code, now_utc()))
        authorities.move(desk, who, made.id, AuthorityState.ACTIVE)
        pem = self.signing_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        bundles.add_key(desk, who, product=PRODUCT, name="first", pem=pem.decode())

    def environment(self, url: str, number: int, http_port: int, download_port: int) -> dict[str, str]:
        """What differs between the settings of the worker of that number and the installation's."""
        place = self.installation
        return {
            "FLEETGATE_DATABASE__URL": url,
            "FLEETGATE_WORKER": f"worker-{number}",
            "FLEETGATE_STATE_DIRECTORY": str(place.directory / f"state-{number}"),
            "FLEETGATE_BROKER__CLIENT_ID": f"{place.client_id}-{number}",
            "FLEETGATE_BROKER__SESSION_EXPIRY_SECONDS": "0",  # nothing of one measurement reaches the next
            "FLEETGATE_HTTP__PORT": str(http_port),
            "FLEETGATE_DOWNLOADS__PORT": str(download_port),
        }

    @contextlib.contextmanager
    def gateways(self, url: str, workers: int = 1) -> Iterator["Gateways"]:
        """`fleetgate serve`, that many times on one shared subscription; ends with the block."""
        started: list[_Worker] = []
        try:
            for number in range(1, workers + 1):
                started.append(_Worker(self, url, number))
            for worker in started:
                worker.wait_ready()
            yield Gateways(self, started)
        finally:
            for worker in started:
                worker.stop()


class _Worker:
    """One `fleetgate serve`."""

    def __init__(self, world: World, url: str, number: int) -> None:
        self.http_port, download_port = free_ports(2)
        environment = world.environment(url, number, self.http_port, download_port)
        self._log = world.directory / "gateway.log"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "gateway", "serve", "--config", world.installation.settings],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **environment},
            )

    def usage(self) -> Usage:
        return Usage.of(self._process.pid)

    def wait_ready(self) -> None:
        """Waits until broker and database are there."""
        deadline = time.monotonic() + _READY_SECONDS
        address = f"http://127.0.0.1:{self.http_port}/readyz"
        while True:
            with contextlib.suppress(httpx.HTTPError):
                if httpx.get(address, timeout=5).status_code == 200:
                    return
            ended = self._process.poll()
            if ended is not None or time.monotonic() > deadline:
                raise RuntimeError(
                    f"a gateway is not ready (exit code {ended}):\n{self._log.read_text()[-3000:]}"
                )
            time.sleep(0.05)  # a process being born has no event to wait for

    def stop(self) -> None:
        """Ends it in order, or kills it."""
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Gateways:
    """The workers that run, as one."""

    def __init__(self, world: World, workers: list[_Worker]) -> None:
        self._world = world
        self._workers = workers

    def usage(self) -> Usage:
        """What they have used, together."""
        used = [worker.usage() for worker in self._workers]
        return Usage(
            cpu_seconds=sum(one.cpu_seconds for one in used),
            resident_bytes=sum(one.resident_bytes for one in used),
        )

    def api(self) -> httpx.Client:
        """A client of the first worker's API with the operator's key."""
        return httpx.Client(
            base_url=f"http://127.0.0.1:{self._workers[0].http_port}/api/v1",
            headers={"Authorization": f"Bearer {self._world.key}"},
            timeout=60,
        )

    def push(self, number: int) -> str:
        """A bundle of one small artifact; returns its version."""
        content = secrets.token_bytes(1000)
        sha256 = hashlib.sha256(content).hexdigest()
        statement = BundleStatement(
            product=PRODUCT,
            version=f"2.{number}.0",
            bundle_seq=number,
            artifacts=(Artifact(name="image.bin", size=len(content), sha256=sha256),),
        )
        with self.api() as api:
            api.put(f"/products/{PRODUCT}/artifacts/{sha256}", content=content).raise_for_status()
            envelope = sign_statement(self._world.signing_key, statement).decode()
            api.post(f"/products/{PRODUCT}/bundles", json={"envelope": envelope}).raise_for_status()
        return statement.version
