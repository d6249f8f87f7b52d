"""The gateway that fuzzed messages come to: registered CAs, a known device, a signing key; the same in every run.

All private keys are computed from numbers, so that an input that was saved once means the same for ever.
"""

import base64
import json
import tempfile
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from databases import new_migrated_url

from gateway.device.factory import Authority, DeviceCertificate, create_authority
from gateway.operations import authorities, products
from gateway.operations.desk import Desk
from gateway.pipeline import Pipeline
from gateway.prover import Delivered, Prover, Tally, Work
from provisioning.access import Principal, Role
from provisioning.authorities import AuthorityState
from provisioning.envelope import PublicKey, key_id_of, payload_type, sign_envelope, spki_of
from provisioning.greeting import Terms
from provisioning.ids import OrganizationId
from provisioning.messages import Result
from provisioning.products import JitpSettings
from store import organizations
from store.database import Database
from store.ids import new_id
from store.times import now_utc

NOW: Final = datetime(2026, 1, 1, tzinfo=UTC)
"""When everything arrives: the instant of the worked examples in docs/protocol.md."""
AUDIENCE: Final = "mqtt.example.com"
DEVICE: Final = "pump-1"
TERMS: Final = Terms(audience=AUDIENCE, challenge_key=b"k" * 32, heartbeat_seconds=60)
DOWNLOAD_KEY: Final = b"d" * 32


def p256(number: int) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of a number."""
    return ec.derive_private_key(number, ec.SECP256R1())


DEVICE_KEY: Final = p256(11)
BUNDLE_KEY: Final = p256(12)
CA_KEY: Final = p256(13)
KEYS: Final[tuple[PublicKey, ...]] = (
    DEVICE_KEY.public_key(),
    ec.derive_private_key(14, ec.SECP384R1()).public_key(),
    ed25519.Ed25519PrivateKey.from_private_bytes(b"\x0f" * 32).public_key(),
)
TRUSTED: Final = {key_id_of(BUNDLE_KEY.public_key()): spki_of(BUNDLE_KEY.public_key())}


@dataclass(frozen=True, slots=True)
class Said:
    """A message as the broker hands it over."""

    topic: str
    payload: bytes
    received_at: datetime = NOW


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What the targets ask; `pump` is the CA that issued the known device, `valve` one of another product."""

    database: Database
    prover: Prover
    faults: list[Exception]
    pump: Authority
    valve: Authority
    device: DeviceCertificate

    def say(self, topic: str, payload: bytes) -> Work:
        """Takes a message through parse and verify, all that is done before the transaction.

        Raises:
            Exception: a fault of ours, which the gateway would have set aside.
        """
        work = Work(delivered=Said(topic, payload), now=NOW)
        self.prover.parse([work])
        self.prover.verify([work])
        if self.faults:
            raise self.faults.pop()
        return work


@cache
def world() -> World:
    """The one of this process."""
    # Kept from going away, and taken with the process.
    directory = tempfile.TemporaryDirectory(prefix="fleetgate-fuzz-")
    database = Database(new_migrated_url("sqlite", Path(directory.name)))
    organization = OrganizationId(new_id())
    with database.write() as tx:
        organizations.create(tx, id=organization, name="acme", at=now_utc())
    desk = Desk(
        database=database,
        clock=now_utc,
        new_id=new_id,
        capath=None,
        broker="main",
        worker="w",
        audience=AUDIENCE,
    )
    owner = Principal(organization_id=organization, name="admin", role=Role.ADMIN)
    made = {}
    for product, number in (("pump", CA_KEY.private_numbers().private_value), ("valve", 15)):
        products.create(desk, owner, name=product, description="")
        products.create_cohort(desk, owner, product=product, name="main", description="")
        products.set_jitp(desk, owner, product, JitpSettings(enabled=True, default_cohort="main"))
        made[product] = make_authority(f"{product} CA", number)
        view = authorities.register(desk, owner, product=product, name="first", pem=made[product].pem)
        authorities.prove(desk, owner, view.id, made[product].prove(view.code, now_utc()))
        authorities.move(desk, owner, view.id, AuthorityState.ACTIVE)
    device = made["pump"].issue(DEVICE, now=NOW, private_key=DEVICE_KEY, valid_days=3650)
    faults: list[Exception] = []
    prover = Prover(
        database,
        terms=lambda: TERMS,
        prefix="fg/v1",
        tally=Tally(),
        on_fault=lambda _, error: faults.append(error),
    )
    found = World(
        database=database, prover=prover, faults=faults, pump=made["pump"], valve=made["valve"], device=device
    )
    _enroll(found)
    _kept.append(directory)
    return found


_kept: Final[list[tempfile.TemporaryDirectory[str]]] = []


def make_authority(name: str, number: int) -> Authority:
    """A root CA whose key is that of a number."""
    root = create_authority(name, now=NOW)
    own = p256(number)
    return _self_signed(root, own)


def _self_signed(root: Authority, own: ec.EllipticCurvePrivateKey) -> Authority:
    """The CA once more, under a key that is known beforehand."""
    old = root.cert
    builder = x509.CertificateBuilder(
        issuer_name=old.subject,
        subject_name=old.subject,
        public_key=own.public_key(),
        serial_number=1,
        not_valid_before=old.not_valid_before_utc,
        not_valid_after=old.not_valid_after_utc,
    )
    for extension in old.extensions:
        value: x509.ExtensionType = extension.value
        if isinstance(value, x509.SubjectKeyIdentifier):
            value = x509.SubjectKeyIdentifier.from_public_key(own.public_key())
        builder = builder.add_extension(value, critical=extension.critical)
    return Authority(cert=builder.sign(own, hashes.SHA256()), key=own)


def _enroll(found: World) -> None:
    """The known device says its first hello, and is welcomed."""
    pipeline = Pipeline(
        found.database, terms=lambda: TERMS, broker="main", worker="w", prefix="fg/v1", new_id=new_id
    )
    topic, payload = f"fg/v1/{DEVICE}/hello", signed("hello", hello_payload(found.device))
    (reply,) = pipeline.work([_delivered(topic, payload)]).replies
    assert reply is not None
    assert reply.result is Result.WELCOME, reply


def _delivered(topic: str, payload: bytes) -> Delivered:
    return Said(topic, payload)


def signed(verb: str, payload: bytes) -> bytes:
    """A payload in the envelope of the known device."""
    return sign_envelope(DEVICE_KEY, payload_type(verb), payload)


def hello_payload(device: DeviceCertificate) -> bytes:
    """A full hello of the known device, with every member that there is."""
    document = {
        "v": 1,
        "aud": AUDIENCE,
        "topic": f"fg/v1/{DEVICE}/hello",
        "conn": "7c1f0a9e55d24b38",
        "boot": "02b9d6c4e18f7a60",
        "seq": 1,
        "stays": True,
        "ts": int(NOW.timestamp() * 1000),
        "nonce": "q3J8vN0xTtWm2K5a",
        "chain": [base64.b64encode(der).decode() for der in device.der_chain],
        "hardware": {"model": "pump", "revision": "b"},
        "firmware": {"version": "1.4.0", "bundle_seq": 9},
        "time_zone": "Europe/Berlin",
        "attributes": {"site": "north", "floor": 3, "wet": True, "flow": 1.5},
        "last_update": {"offer_id": "252116099483605972", "result": "failed", "reason": "no_space"},
        "previous": {"keyid": "0" * 64, "signature": "AAAA" * 24},
    }
    return json.dumps(document).encode()
