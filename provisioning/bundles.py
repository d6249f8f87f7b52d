"""Bundles: an immutable, ordered set of artifacts of one product, under a signed statement (protocol, section 13).

Decides whether a product may take a bundle in; and, for devices and offers alike, whether a bundle fits. What the
statement says and who signed it is read and proven in `statements`, whose names are here too.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from provisioning.decision import Rule, first_failed
from provisioning.envelope import load_spki, verify_envelope
from provisioning.errors import MessageError, RejectReason, VerificationError
from provisioning.ids import BundleId, KeyId, ProductId
from provisioning.statements import (
    MAX_ARTIFACT_BYTES,
    MAX_ARTIFACTS,
    MAX_STATEMENT_BYTES,
    STATEMENT_TYPE,
    STATEMENT_VERSION,
    Artifact,
    BundleStatement,
    Hardware,
    StatementCheck,
    check_artifact,
    check_bundle_key,
    check_statement,
    digest_of,
    parse_statement,
    read_envelope,
    sign_payload,
    sign_statement,
    verify_statement,
)

__all__ = [
    "MAX_ARTIFACTS",
    "MAX_ARTIFACT_BYTES",
    "MAX_STATEMENT_BYTES",
    "REFUSAL_WORDS",
    "STATEMENT_TYPE",
    "STATEMENT_VERSION",
    "Artifact",
    "Bundle",
    "BundleStatement",
    "Hardware",
    "PushDecision",
    "PushFacts",
    "StatementCheck",
    "TrustedKey",
    "check_artifact",
    "check_bundle_key",
    "check_floor",
    "check_forward",
    "check_hardware",
    "check_statement",
    "check_update",
    "decide_push",
    "digest_of",
    "parse_statement",
    "read_envelope",
    "sign_payload",
    "sign_statement",
    "verify_statement",
]


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
        public = load_spki(key.spki)
        check_bundle_key(public)
        verify_envelope(envelope, public)
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


REFUSAL_WORDS: Final[Mapping[str, str]] = {
    "product": "wrong_product",
    "forward": "not_above_installed",
    "hardware": "wrong_hardware",
    "floor": "below_floor",
}
"""What a device reports where one of the rules of `check_update` refuses."""


def check_update(
    statement: BundleStatement,
    *,
    product: str,
    model: str,
    revision: str,
    highest_seq: int,
    running_seq: int,
) -> tuple[Rule, ...]:
    """Whether a device may install a bundle whose statement it has verified; the rules stop at the first that fails.

    Args:
        statement: from `verify_statement`.
        product: the device's own, by its certificate.
        model, revision: its hardware.
        highest_seq: the highest `bundle_seq` that was ever installed on it, 0 for none. Kept across rollbacks:
            who holds an old signed bundle cannot take the device back to it.
        running_seq: that of the running image, 0 where it came from no bundle. Below `highest_seq` after a
            rollback.
    """
    rules: list[Rule] = []
    for rule in (
        _check_product(statement, product),
        check_forward(statement, highest_seq),
        check_hardware(statement, model, revision),
        check_floor(statement, running_seq),
    ):
        refused = first_failed(rules) is not None
        rules.append(Rule(name=rule.name, passed=None, detail="not reached") if refused else rule)
    return tuple(rules)


def _check_product(statement: BundleStatement, product: str) -> Rule:
    ok = statement.product == product
    return Rule(
        name="product",
        passed=ok,
        detail=f"it is for {product}" if ok else f"it is for product {statement.product!r}, not {product!r}",
        reason=None if ok else RejectReason.BUNDLE_PRODUCT,
    )


def _list_hardware(entries: Sequence[Hardware]) -> str:
    return ", ".join(
        f"{one.model} ({'/'.join(one.revisions)})" if one.revisions else one.model for one in entries
    )
