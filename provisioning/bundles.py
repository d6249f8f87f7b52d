"""Bundles: an immutable, ordered set of artifacts of one product, under a signed statement (protocol, section 13).

Decides whether bytes are such a statement, whose word it is, and whether a product may take it in; and, for
devices and offers alike, whether a bundle fits. The statement is a DSSE envelope of its own: the same signed
bytes travel from the operator's machine to the device, and the gateway only stands in between.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, Any, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from provisioning.decision import Rule, first_failed
from provisioning.envelope import (
    Envelope,
    PrivateKey,
    PublicKey,
    load_spki,
    parse_envelope,
    sign_envelope,
    verify_envelope,
)
from provisioning.errors import MessageError, RejectReason, VerificationError
from provisioning.ids import BundleId, KeyId, ProductId
from provisioning.strictjson import parse_json

STATEMENT_TYPE: Final = "application/vnd.fleetgate.bundle.v1+json"
STATEMENT_VERSION: Final = 1
MAX_STATEMENT_BYTES: Final = 6 * 1024
"""A welcome carries the statement in base64 and an address for each artifact, within 16 KiB."""
MAX_ARTIFACTS: Final = 8
MAX_ARTIFACT_BYTES: Final = 1 << 40

Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9.+_~-]{0,63}$")]
FileName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
HardwareWord = Annotated[str, StringConstraints(min_length=1, max_length=64, pattern=r"^[^\x00-\x1f\x7f]*$")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Artifact:
    """A file, by its content. `size` in bytes, `sha256` in 64 lower-case hex digits."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Hardware:
    """Hardware that a bundle is for; no `revisions`: every one."""

    model: str
    revisions: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleStatement:
    """What the signer says.

    Attributes:
        product: its name; a statement is worth nothing for another product.
        version: for people, unique within the product.
        bundle_seq: the order of the product's bundles; it only ever grows.
        hardware: what it is for; empty: any.
        floor: the lowest `bundle_seq` from which a device may come to this one; None: from any.
        created_at: milliseconds UTC by the signer's clock; for people.
    """

    product: str
    version: str
    bundle_seq: int
    artifacts: tuple[Artifact, ...]
    hardware: tuple[Hardware, ...] = ()
    floor: int | None = None
    notes: str = ""
    created_at: int = 0

    def encode(self) -> bytes:
        """The payload to sign: JSON, UTF-8. Signed as these very bytes, so its spelling does not matter."""
        document = {"v": STATEMENT_VERSION, **asdict(self)}
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that a product has. `digest` is the SHA-256 of the signed payload: what it *is*."""

    id: BundleId
    product_id: ProductId
    digest: str
    envelope: bytes
    statement: BundleStatement

    @property
    def version(self) -> str:
        """For people."""
        return self.statement.version

    @property
    def bundle_seq(self) -> int:
        """Its place in the product's order."""
        return self.statement.bundle_seq


@dataclass(frozen=True, slots=True, kw_only=True)
class TrustedKey:
    """A key that a product knows for signing."""

    name: str
    spki: bytes
    revoked: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PushFacts:
    """What a product has, as far as a new bundle is concerned.

    Attributes:
        keys: the product's own signing keys.
        foreign_keys: ids of keys that other products of the organization know.
        last: the highest `bundle_seq`, 0 for none.
        versions, sequences: digest of the bundle that has this version, this `bundle_seq`.
        stored: sizes of the artifacts that were uploaded, by SHA-256.
    """

    product: str
    keys: Mapping[KeyId, TrustedKey]
    foreign_keys: frozenset[KeyId] = frozenset()
    last: int = 0
    versions: Mapping[str, str]
    sequences: Mapping[int, str]
    stored: Mapping[str, int]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushDecision:
    """Whether a product takes a bundle in, by rules; `known`: it has this very one already."""

    rules: tuple[Rule, ...]
    statement: BundleStatement | None = None
    digest: str = ""
    key_id: KeyId | None = None
    known: bool = False
    missing: tuple[Artifact, ...] = ()

    @property
    def refused(self) -> Rule | None:
        """The rule that refused, or None."""
        return first_failed(self.rules)


class _Wire(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, extra="ignore")


class _ArtifactWire(_Wire):
    name: FileName
    size: Annotated[int, Field(ge=1, le=MAX_ARTIFACT_BYTES)]
    sha256: Sha256


class _HardwareWire(_Wire):
    model: HardwareWord
    revisions: Annotated[list[HardwareWord], Field(max_length=32)] = Field(default_factory=list)


class _StatementWire(_Wire):
    product: Annotated[str, StringConstraints(pattern=r"^[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?$")]
    version: Word
    bundle_seq: Annotated[int, Field(ge=1, le=(1 << 53) - 1)]
    artifacts: Annotated[list[_ArtifactWire], Field(min_length=1, max_length=MAX_ARTIFACTS)]
    hardware: Annotated[list[_HardwareWire], Field(max_length=32)] = Field(default_factory=list)
    floor: Annotated[int, Field(ge=1, le=(1 << 53) - 1)] | None = None
    notes: Annotated[str, StringConstraints(max_length=1024)] = ""
    created_at: Annotated[int, Field(ge=0)] = 0


def parse_statement(payload: bytes) -> BundleStatement:
    """Reads a signed payload, unproven.

    Raises:
        MessageError: BUNDLE_MALFORMED, naming the member at fault; MALFORMED_JSON, MESSAGE_TOO_LARGE.
    """
    document = parse_json(payload, MAX_STATEMENT_BYTES)
    if not isinstance(document, dict) or document.get("v") != STATEMENT_VERSION:
        raise MessageError(
            RejectReason.BUNDLE_MALFORMED, f"expected a JSON object with v {STATEMENT_VERSION}"
        )
    try:
        wire = _StatementWire.model_validate(document)
    except ValidationError as error:
        first = error.errors(include_input=False, include_context=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise MessageError(RejectReason.BUNDLE_MALFORMED, f"{place}: {first['msg']}") from error
    names = [artifact.name for artifact in wire.artifacts]
    if len(set(names)) != len(names):
        raise MessageError(RejectReason.BUNDLE_MALFORMED, "artifacts: two have the same name")
    return BundleStatement(
        product=wire.product,
        version=wire.version,
        bundle_seq=wire.bundle_seq,
        artifacts=tuple(Artifact(name=a.name, size=a.size, sha256=a.sha256) for a in wire.artifacts),
        hardware=tuple(Hardware(model=h.model, revisions=tuple(h.revisions)) for h in wire.hardware),
        floor=wire.floor,
        notes=wire.notes,
        created_at=wire.created_at,
    )


def sign_statement(key: PrivateKey, statement: BundleStatement) -> bytes:
    """The envelope of a statement, as it is pushed and as devices get it.

    Raises:
        VerificationError: KEY_NOT_ALLOWED, the key is neither P-256 nor Ed25519.
    """
    check_bundle_key(key.public_key())
    return sign_envelope(key, STATEMENT_TYPE, statement.encode())


def check_bundle_key(key: PublicKey) -> None:
    """Refuses keys that may not sign bundles: devices must be able to verify with little.

    Raises:
        VerificationError: KEY_NOT_ALLOWED.
    """
    match key:
        case ed25519.Ed25519PublicKey():
            return
        case ec.EllipticCurvePublicKey() if isinstance(key.curve, ec.SECP256R1):
            return
    raise VerificationError(RejectReason.KEY_NOT_ALLOWED, "bundles are signed by P-256 or Ed25519 keys")


def digest_of(payload: bytes) -> str:
    """What a bundle is: the SHA-256 of its signed payload, in hex."""
    return hashlib.sha256(payload).hexdigest()


def read_envelope(data: bytes) -> Envelope:
    """Takes a statement's envelope apart, unproven.

    Raises:
        MessageError: BUNDLE_UNSIGNED, it is a statement without an envelope; BUNDLE_MALFORMED, MALFORMED_JSON,
            MALFORMED_ENVELOPE, MESSAGE_TOO_LARGE.
    """
    document = parse_json(data, 2 * MAX_STATEMENT_BYTES)
    if isinstance(document, dict) and "payload" not in document and "artifacts" in document:
        raise MessageError(
            RejectReason.BUNDLE_UNSIGNED, "this is the statement alone; `fleetgate bundle sign` signs it"
        )
    envelope = parse_envelope(data, 2 * MAX_STATEMENT_BYTES)
    if envelope.payload_type != STATEMENT_TYPE:
        raise MessageError(RejectReason.BUNDLE_MALFORMED, f"payloadType must be {STATEMENT_TYPE}")
    return envelope


def verify_statement(data: bytes, keys: Mapping[KeyId, bytes], *, product: str) -> BundleStatement:
    """Proves a bundle statement, as a device does with the keys that it was made with.

    Args:
        data: the envelope.
        keys: SPKI by key id of those that may sign for this product.
        product: the product it must be for.

    Raises:
        MessageError: as `read_envelope` and `parse_statement`.
        VerificationError: SIGNING_KEY_UNKNOWN, BAD_SIGNATURE, KEY_NOT_ALLOWED, BUNDLE_PRODUCT.
    """
    envelope = read_envelope(data)
    spki = keys.get(envelope.key_id)
    if spki is None:
        raise VerificationError(
            RejectReason.SIGNING_KEY_UNKNOWN, f"signed by {envelope.key_id}, which is not trusted here"
        )
    key = load_spki(spki)
    check_bundle_key(key)
    verify_envelope(envelope, key)
    statement = parse_statement(envelope.payload)
    if statement.product != product:
        raise VerificationError(
            RejectReason.BUNDLE_PRODUCT, f"the bundle is of product {statement.product!r}, not {product!r}"
        )
    return statement


def decide_push(data: bytes, facts: PushFacts) -> PushDecision:
    """Whether a product takes a bundle in; the rules say why, and stop at the first that fails.

    Args:
        data: the envelope, as it came.
        facts: of the product, under the lock of its bundles.
    """
    rules: list[Rule] = []

    def check(name: str, ok: bool, yes: str, no: str, reason: RejectReason) -> bool:
        rules.append(Rule(name=name, passed=ok, detail=yes if ok else no, reason=None if ok else reason))
        return ok

    try:
        envelope = read_envelope(data)
    except MessageError as error:
        rules.append(Rule(name="envelope", passed=False, detail=error.detail, reason=error.reason))
        return PushDecision(rules=tuple(rules))
    rules.append(Rule(name="envelope", passed=True, detail="a signed statement"))
    key = facts.keys.get(envelope.key_id)
    if key is None:
        foreign = envelope.key_id in facts.foreign_keys
        reason = RejectReason.SIGNING_KEY_FOREIGN if foreign else RejectReason.SIGNING_KEY_UNKNOWN
        whose = "another product's" if foreign else "unknown"
        check(
            "signing_key", False, "", f"key {envelope.key_id} is {whose}; `fleetgate key add {facts.product}"
            " FILE` makes it this product's", reason,
        )  # fmt: skip
        return PushDecision(rules=tuple(rules))
    if not check(
        "signing_key", not key.revoked, f"signed by {key.name!r}", f"key {key.name!r} is revoked",
        RejectReason.SIGNING_KEY_REVOKED,
    ):  # fmt: skip
        return PushDecision(rules=tuple(rules))
    try:
        verify_envelope(envelope, load_spki(key.spki))
        statement = parse_statement(envelope.payload)
    except (MessageError, VerificationError) as error:
        name = "statement" if isinstance(error, MessageError) else "signature"
        rules.append(Rule(name=name, passed=False, detail=error.detail, reason=error.reason))
        return PushDecision(rules=tuple(rules))
    rules.append(Rule(name="signature", passed=True, detail="made over these bytes by that key"))
    digest = digest_of(envelope.payload)
    _check_place(check, statement, digest, facts)
    known = facts.versions.get(statement.version) == digest
    missing = []
    if first_failed(rules) is None:
        missing = [one for one in statement.artifacts if facts.stored.get(one.sha256) is None]
        wrong = [one for one in statement.artifacts if facts.stored.get(one.sha256) not in (None, one.size)]
        if check(
            "artifact_sizes", not wrong, "as the statement says",
            f"{wrong[0].name} is {facts.stored.get(wrong[0].sha256)} bytes, the statement says {wrong[0].size}"
            if wrong else "", RejectReason.ARTIFACT_MISMATCH,
        ):  # fmt: skip
            check(
                "artifacts", not missing, f"all {len(statement.artifacts)} are here",
                f"{', '.join(one.name for one in missing)} not uploaded yet", RejectReason.ARTIFACT_MISSING,
            )  # fmt: skip
    return PushDecision(
        rules=tuple(rules),
        statement=statement,
        digest=digest,
        key_id=envelope.key_id,
        known=known,
        missing=tuple(missing),
    )


def _check_place(check: Any, statement: BundleStatement, digest: str, facts: PushFacts) -> None:
    """Whether the statement belongs here: its product, its version, and its place in the order."""
    if not check(
        "product", statement.product == facts.product, f"it is for {facts.product}",
        f"it is for product {statement.product!r}, not {facts.product!r}", RejectReason.BUNDLE_PRODUCT,
    ):  # fmt: skip
        return
    here = {facts.versions.get(statement.version), facts.sequences.get(statement.bundle_seq)} - {None}
    if not check(
        "content", here <= {digest}, "new" if not here else "this very bundle is here already",
        f"version {statement.version} or bundle_seq {statement.bundle_seq} is here under other content; "
        "bundles never change: give it a new version and a higher bundle_seq", RejectReason.BUNDLE_EXISTS,
    ):  # fmt: skip
        return
    check(
        "bundle_seq", bool(here) or statement.bundle_seq > facts.last,
        f"{statement.bundle_seq}, the last one was {facts.last}",
        f"{statement.bundle_seq} is not above {facts.last}, the product's last", RejectReason.BUNDLE_SEQ,
    )  # fmt: skip


def check_hardware(statement: BundleStatement, model: str, revision: str) -> Rule:
    """Whether a bundle is for this hardware."""
    if not statement.hardware:
        return Rule(name="hardware", passed=True, detail="for any hardware")
    for hardware in statement.hardware:
        if hardware.model == model and (not hardware.revisions or revision in hardware.revisions):
            return Rule(name="hardware", passed=True, detail=f"for {model}")
    return Rule(
        name="hardware",
        passed=False,
        detail=f"for {_list_hardware(statement.hardware)}, the device is {f'{model} {revision}'.strip()!r}",
    )


def check_floor(statement: BundleStatement, running_seq: int) -> Rule:
    """Whether a device may come to a bundle from what it runs."""
    if statement.floor is None or running_seq >= statement.floor:
        return Rule(name="floor", passed=True, detail="may be installed from what runs")
    return Rule(
        name="floor",
        passed=False,
        detail=f"needs bundle {statement.floor} or later first, bundle {running_seq} runs",
    )


def check_forward(statement: BundleStatement, highest_seq: int) -> Rule:
    """Whether a bundle is above every one that the device has had."""
    return Rule(
        name="forward",
        passed=statement.bundle_seq > highest_seq,
        detail=f"bundle {statement.bundle_seq}, the device has had {highest_seq}",
    )


def _list_hardware(entries: Sequence[Hardware]) -> str:
    return ", ".join(
        f"{one.model} ({'/'.join(one.revisions)})" if one.revisions else one.model for one in entries
    )
