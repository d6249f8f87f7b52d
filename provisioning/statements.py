"""Bundle statements: what a signer says of a bundle, as bytes, and the proof of who said it (protocol, section 13).

Decides whether bytes are such a statement and whose word it is. The same signed bytes travel from the operator's
machine to the device, and the gateway only stands in between. Whether a product takes the bundle in, and whether
it fits a device, is `bundles`' to decide.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Final

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from provisioning.decision import Rule
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
from provisioning.ids import KeyId
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
    # In Python 1 == 1.0 == True; on the wire they differ.
    if (
        not isinstance(document, dict)
        or type(document.get("v")) is not int
        or document["v"] != STATEMENT_VERSION
    ):
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
    if wire.floor is not None and wire.floor >= wire.bundle_seq:
        raise MessageError(
            RejectReason.BUNDLE_MALFORMED,
            f"floor: {wire.floor} must be below bundle_seq {wire.bundle_seq}, or no device could ever come to it",
        )
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
    return sign_payload(key, statement.encode())


def sign_payload(key: PrivateKey, payload: bytes) -> bytes:
    """The envelope over a statement as it is written: these bytes are signed, and not what was understood of them.

    Raises:
        MessageError: as `parse_statement`; what the gateway would refuse is not signed.
        VerificationError: KEY_NOT_ALLOWED, the key is neither P-256 nor Ed25519.
    """
    check_bundle_key(key.public_key())
    parse_statement(payload)
    return sign_envelope(key, STATEMENT_TYPE, payload)


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
    return _prove(data, keys, product, [])


@dataclass(frozen=True, slots=True, kw_only=True)
class StatementCheck:
    """What is proven of a statement, by rules; `statement` and `digest` only where all of them passed."""

    rules: tuple[Rule, ...]
    statement: BundleStatement | None = None
    digest: str = ""


def check_statement(data: bytes, keys: Mapping[KeyId, bytes], *, product: str | None) -> StatementCheck:
    """The steps of `verify_statement` as rules, for people.

    Args:
        data: the envelope.
        keys: SPKI by key id of those that may have signed.
        product: the product it must be for; None: any, and there is no rule on it.
    """
    rules: list[Rule] = []
    try:
        statement = _prove(data, keys, product, rules)
    except (MessageError, VerificationError) as error:
        steps = _STEPS if product is not None else _STEPS[:-1]
        failed, *rest = steps[len(rules) :]
        rules.append(Rule(name=failed, passed=False, detail=error.detail, reason=error.reason))
        rules += [Rule(name=name, passed=None, detail="not reached") for name in rest]
        return StatementCheck(rules=tuple(rules))
    return StatementCheck(
        rules=tuple(rules), statement=statement, digest=digest_of(read_envelope(data).payload)
    )


_STEPS: Final = ("envelope", "signing_key", "signature", "statement", "product")


def _prove(
    data: bytes, keys: Mapping[KeyId, bytes], product: str | None, passed: list[Rule]
) -> BundleStatement:
    """Takes the steps in order, noting each that passes; the first that does not raises."""

    def note(detail: str) -> None:
        passed.append(Rule(name=_STEPS[len(passed)], passed=True, detail=detail))

    envelope = read_envelope(data)
    note("a signed statement")
    spki = keys.get(envelope.key_id)
    if spki is None:
        raise VerificationError(
            RejectReason.SIGNING_KEY_UNKNOWN, f"signed by {envelope.key_id}, which is not trusted here"
        )
    key = load_spki(spki)
    check_bundle_key(key)
    note(f"signed by {envelope.key_id}")
    verify_envelope(envelope, key)
    note("made over these bytes by that key")
    statement = parse_statement(envelope.payload)
    note(f"version {statement.version}, bundle_seq {statement.bundle_seq}")
    if product is not None:
        if statement.product != product:
            raise VerificationError(
                RejectReason.BUNDLE_PRODUCT,
                f"the bundle is of product {statement.product!r}, not {product!r}",
            )
        note(f"it is for {product}")
    return statement


def check_artifact(artifact: Artifact, *, size: int, sha256: str) -> Rule:
    """Whether bytes are the artifact of a statement.

    Args:
        artifact: as the statement says it.
        size, sha256: what the bytes measure, in bytes and lower-case hex.
    """
    ok = (size, sha256) == (artifact.size, artifact.sha256)
    return Rule(
        name=f"artifact {artifact.name}",
        passed=ok,
        detail=f"{size} bytes with the SHA-256 of the statement"
        if ok
        else f"{size} bytes with SHA-256 {sha256}, the statement says {artifact.size} bytes and "
        f"{artifact.sha256}",
        reason=None if ok else RejectReason.ARTIFACT_MISMATCH,
    )
