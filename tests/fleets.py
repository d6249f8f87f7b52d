"""A fleet without a broker, for tests of the store: operators' commands and devices' messages, the real way through."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.device.factory import Authority, PrivateKey, create_authority
from gateway.device.messages import Profile, Voice, load_identity, new_nonce
from gateway.offerer import Offerer
from gateway.operations import authorities, bundles, products, rollouts
from gateway.operations.desk import Desk
from gateway.pipeline import Pipeline
from gateway.scheduler import Scheduler
from provisioning.access import Principal, Role
from provisioning.authorities import AuthorityState
from provisioning.bundles import Artifact, BundleStatement, sign_statement
from provisioning.greeting import Terms
from provisioning.ids import OrganizationId
from provisioning.messages import Reply
from provisioning.products import JitpSettings
from provisioning.rollouts import Plan
from provisioning.topics import Up
from store import organizations
from store.blobs import Blobs
from store.database import Database
from store.ids import new_id
from store.times import now_utc

TERMS: Final = Terms(audience="gw", challenge_key=b"k" * 32, heartbeat_seconds=60)
KEY: Final = ec.generate_private_key(ec.SECP256R1())
"""Signs every bundle of these tests."""


@dataclass(frozen=True, slots=True)
class Said:
    """A message as the broker would deliver it."""

    topic: str
    payload: bytes
    received_at: datetime


@dataclass(slots=True, kw_only=True)
class Fleet:
    """One organization over a database, its operator, and a worker."""

    database: Database
    desk: Desk
    principal: Principal
    pipeline: Pipeline
    made: dict[str, Authority] = field(default_factory=dict)

    def product(self, name: str, **jitp: Any) -> None:
        """A product with the cohorts canary and main, an active CA, and JITP on; hardware `lab` is canary."""
        products.create(self.desk, self.principal, name=name, description="")
        for cohort in ("canary", "main"):
            products.create_cohort(self.desk, self.principal, product=name, name=cohort, description="")
        rules = [{"hardware": {"model": "lab"}, "cohort": "canary"}]
        settings = {"enabled": True, "default_cohort": "main", "cohort_rules": rules} | jitp
        products.set_jitp(self.desk, self.principal, name, JitpSettings.model_validate(settings))
        self.made[name] = self.trust(name, "first")

    def trust(self, product: str, name: str) -> Authority:
        """A new CA of a product, active."""
        authority = create_authority(f"{name} CA {secrets.token_hex(4)}", now=now_utc())
        made = authorities.register(self.desk, self.principal, product=product, name=name, pem=authority.pem)
        proof = authority.prove(made.code, now_utc())
        authorities.prove(self.desk, self.principal, made.id, proof)
        authorities.move(self.desk, self.principal, made.id, AuthorityState.ACTIVE)
        return authority

    def voice(
        self,
        product: str,
        name: str,
        *,
        by: Authority | None = None,
        private_key: PrivateKey | None = None,
        send_issuer: bool = False,
        **profile: Any,
    ) -> Voice:
        """A device's voice, on its first connection; it has said nothing yet.

        Args:
            by: the CA that certifies it; else the product's first.
            private_key: to certify an existing key.
            send_issuer: whether its chain holds that CA too.
        """
        made = (by or self.made[product]).issue(
            name, now=now_utc(), private_key=private_key, send_issuer=send_issuer
        )
        identity = load_identity(made.pem, made.key_pem)
        voice = Voice(identity, audience=TERMS.audience, profile=Profile(**profile))
        voice.begin_connection()
        return voice

    def hear(self, *said: Said) -> list[Reply | None]:
        """Works messages as one batch."""
        return self.pipeline.work(said).replies

    def greet(self, *voices: Voice) -> list[str]:
        """Hellos as one batch. Returns how each was answered: the result, or the reason for another one."""
        return [
            str(reply.reason or reply.result)
            for reply in self.hear(*(hello(voice) for voice in voices))
            if reply is not None
        ]

    def enroll(self, product: str, *names: str, **profile: Any) -> list[Voice]:
        """Devices that say hello and are welcomed."""
        voices = [self.voice(product, name, **profile) for name in names]
        assert self.greet(*voices) == ["welcome"] * len(names)
        return voices

    def sign_bundles(self, product: str) -> None:
        """Lets KEY sign the product's bundles."""
        pem = KEY.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        bundles.add_key(self.desk, self.principal, product=product, name="first", pem=pem.decode())

    def push(self, product: str, version: str, bundle_seq: int) -> None:
        """A bundle of one artifact."""
        content = secrets.token_bytes(100)
        sha256 = hashlib.sha256(content).hexdigest()
        number, upload = bundles.begin_upload(self.desk, self.principal, product)
        with upload:
            upload.write(content)
            bundles.finish_upload(self.desk, self.principal, number, upload, sha256)
        statement = BundleStatement(
            product=product,
            version=version,
            bundle_seq=bundle_seq,
            artifacts=(Artifact(name="image.bin", size=len(content), sha256=sha256),),
        )
        bundles.push(self.desk, self.principal, product, sign_statement(KEY, statement))

    def roll_out(self, product: str, version: str, cohort: str, **plan: Any) -> int:
        """A rollout that has begun, and has offered what its plan allows. Returns its number."""
        number = self.begin_rollout(product, version, cohort, **plan)
        self.offer()
        return number

    def begin_rollout(self, product: str, version: str, cohort: str, **plan: Any) -> int:
        """A rollout that has begun, and whose cohort is marked. Returns its number."""
        (made,) = rollouts.create(
            self.desk,
            self.principal,
            product=product,
            version=version,
            cohorts=[cohort],
            plan=Plan(**plan),
            start_at=None,
        )
        scheduler = Scheduler(self.database, worker="w", wake=lambda: None)
        assert scheduler.advance()
        return int(made.rollout.id)

    def offerer(self) -> Offerer:
        """The offerer of the broker that the devices are on."""
        return Offerer(self.database, broker="main", worker="w", clock=now_utc, new_id=new_id)

    def offer(self) -> None:
        """One round of the offerer."""
        for _ in self.offerer().work():
            pass


def make_organization(database: Database) -> OrganizationId:
    """A new organization."""
    number = OrganizationId(new_id())
    with database.write() as tx:
        organizations.create(tx, id=number, name=f"org-{number}", at=now_utc())
    return number


def make_fleet(database: Database, directory: Path) -> Fleet:
    """An organization without anything.

    Args:
        directory: for artifacts.
    """
    number = make_organization(database)
    return Fleet(
        database=database,
        desk=Desk(
            database=database,
            clock=now_utc,
            new_id=new_id,
            capath=None,
            broker="main",
            worker="desk",
            audience=TERMS.audience,
            blobs=Blobs(str(directory / "blobs"), directory / "uploads"),
        ),
        principal=Principal(organization_id=number, name="admin", role=Role.ADMIN),
        pipeline=make_pipeline(database),
    )


def make_pipeline(database: Database, worker: str = "w") -> Pipeline:
    """A worker's pipeline."""
    return Pipeline(
        database, terms=lambda: TERMS, broker="main", worker=worker, prefix="fg/v1", new_id=new_id
    )


def hello(voice: Voice, **more: Any) -> Said:
    """A hello by the clock."""
    now = now_utc()
    payload = voice.hello(**({"nonce": new_nonce(), "ts": int(now.timestamp() * 1000)} | more))
    return Said(voice.topic(Up.HELLO), payload, now)


def says(voice: Voice, verb: Up, payloads: Sequence[bytes]) -> list[Said]:
    """Presences or progress reports, in order."""
    return [Said(voice.topic(verb), payload, now_utc()) for payload in payloads]
