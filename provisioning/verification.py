"""Chain verification: from a device's certificates to the product that vouches for it (protocol, section 5).

Decides which registered CA stands behind a chain and whether it, the chain and the device's certificate hold
at a given time. The product is that of the registered CA nearest the leaf, never what the device says. Path
validation proper (RFC 5280 §6) is the library's, with exactly one trust anchor; the checks here give exact
reasons, and cover what the library lets pass. Blocked keys, and whether the device may enroll, are decided
elsewhere.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Final, NoReturn, assert_never

from cryptography import x509
from cryptography.x509.verification import VerificationError as PathError

from provisioning.anchors import Anchor, TrustAnchors
from provisioning.authorities import AuthorityState, is_issued_by
from provisioning.certificates import PARSE_ERRORS, CertificateFacts, check_profile, read_facts
from provisioning.decision import Rule
from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import AuthorityId, KeyId, ProductId, TopicName

__all__ = [
    "Anchor",
    "TrustAnchors",
    "VerifiedIdentity",
    "check_validity",
    "explain_chain",
    "verify_chain",
]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedIdentity:
    """Proof that a chain was verified: only this module makes one.

    Attributes:
        key_id: SHA-256 of `spki`.
        spki: the device's public key, DER.
        topic_name: its CN.
        authority_id: the registered CA nearest the leaf.
        product_id: that CA's product.
        certificate: what the device's certificate says.
    """

    key_id: KeyId
    spki: bytes
    topic_name: TopicName
    authority_id: AuthorityId
    product_id: ProductId
    certificate: CertificateFacts


def verify_chain(
    chain: tuple[x509.Certificate, ...], anchors: TrustAnchors, now: datetime
) -> VerifiedIdentity:
    """Prove whose device a chain belongs to.

    Args:
        chain: as `certificates.parse_chain` returned it.
        anchors: every registered CA, in every state: a revoked one must be found to be named.
        now: the time of the check, aware.

    Raises:
        VerificationError: CERTIFICATE_NAME, UNKNOWN_CA, CHAIN_INVALID, CA_NOT_ACTIVE, CA_REVOKED, CA_EXPIRED,
            CERTIFICATE_NOT_YET_VALID, CERTIFICATE_EXPIRED, CERTIFICATE_PROFILE, KEY_NOT_ALLOWED.
    """
    case = _Case(chain, anchors, now)
    for step in _STEPS:
        step.check(case)
    facts, anchor = case.facts, case.anchor
    assert facts is not None
    assert anchor is not None
    return VerifiedIdentity(
        key_id=facts.key_id,
        spki=facts.spki,
        topic_name=TopicName(facts.common_name),
        authority_id=anchor.authority_id,
        product_id=anchor.product_id,
        certificate=facts,
    )


def explain_chain(chain: tuple[x509.Certificate, ...], anchors: TrustAnchors, now: datetime) -> list[Rule]:
    """The steps of `verify_chain`, each with its outcome; it raises nothing and changes nothing.

    Args:
        chain: as `certificates.parse_chain` returned it.
        anchors: every registered CA, in every state.
        now: the time of the check, aware.
    """
    case = _Case(chain, anchors, now)
    rules: list[Rule] = []
    failed = False
    for step in _STEPS:
        if failed:
            rules.append(Rule(name=step.name, passed=None, detail="not reached"))
            continue
        try:
            step.check(case)
        except VerificationError as error:
            failed = True
            rules.append(
                Rule(
                    name=step.name,
                    passed=False,
                    detail=error.detail,
                    changes_at=_valid_from(case, error.reason),
                    reason=error.reason,
                )
            )
        else:
            detail, changes_at = step.describe(case)
            rules.append(Rule(name=step.name, passed=True, detail=detail, changes_at=changes_at))
    return rules


def check_validity(certificate: CertificateFacts, anchor: Anchor, now: datetime) -> None:
    """The checks that time and operators can change, repeated on every message of a known key.

    Args:
        certificate: the facts remembered from when the chain was verified.
        anchor: the CA that it was verified by, as it stands now.
        now: the time of the check, aware.

    Raises:
        VerificationError: CA_NOT_ACTIVE, CA_REVOKED, CA_EXPIRED, CERTIFICATE_NOT_YET_VALID,
            CERTIFICATE_EXPIRED.
    """
    _check_state(anchor)
    _check_authority_time(anchor.certificate, now)
    _check_certificate_time(certificate, now)


class _Case:
    """One chain on its way through the steps."""

    __slots__ = ("anchor", "anchors", "chain", "depth", "facts", "now", "path_fault")

    def __init__(self, chain: tuple[x509.Certificate, ...], anchors: TrustAnchors, now: datetime) -> None:
        self.chain = chain
        self.anchors = anchors
        self.now = now
        self.facts: CertificateFacts | None = None
        self.anchor: Anchor | None = None
        self.depth = 0  # the certificate that the anchor issued
        self.path_fault: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    name: str
    check: Callable[[_Case], None]
    describe: Callable[[_Case], tuple[str, datetime | None]]


def _check_name(case: _Case) -> None:
    case.facts = read_facts(case.chain[0])


def _find_anchor(case: _Case) -> None:
    """Walk from the leaf upward to the first certificate that a registered CA issued (design: nearest CA).

    Path validation includes the costly signature, so it is tried at once on every CA of the right name, and
    only its failure is looked into. CAs that nobody proved are looked at last: otherwise anybody could
    register another's public intermediate and so stand between its devices and their product.
    """
    for proven in (True, False):
        for depth, certificate in enumerate(case.chain):
            for anchor in case.anchors.named(certificate.issuer):
                if (anchor.state is not AuthorityState.PENDING) is proven and _try_anchor(
                    case, anchor, depth
                ):
                    return
    top = case.chain[-1].issuer
    known = any(case.anchors.named(certificate.issuer) for certificate in case.chain)
    found = (
        "a registered CA has that name, but another key signed" if known else "no registered CA has that name"
    )
    _refuse(RejectReason.UNKNOWN_CA, f"{_device(case)} leads to issuer {_quote(top)}: {found}")


def _try_anchor(case: _Case, anchor: Anchor, depth: int) -> bool:
    """Whether `anchor` issued certificate `depth`; whether the whole path holds is left in `path_fault`."""
    fault = None
    try:
        verifier = case.anchors.builder_of(anchor).time(case.now).build_client_verifier()
        path = verifier.verify(case.chain[0], list(case.chain[1 : depth + 1])).chain
        if len(path) != depth + 2:
            fault = f"expected a path over {depth} intermediates, got {len(path) - 2}"
    except (PathError, *PARSE_ERRORS) as error:
        fault = str(error)
    if fault is not None:
        if not is_issued_by(case.chain[depth], anchor.certificate):
            return False
        for index in range(depth):
            if not is_issued_by(case.chain[index], case.chain[index + 1]):
                _refuse(
                    RejectReason.CHAIN_INVALID,
                    f"{_device(case)}: certificate {index} of its chain is not signed by the next",
                )
    case.anchor, case.depth, case.path_fault = anchor, depth, fault
    return True


def _check_case_state(case: _Case) -> None:
    _check_state(_anchor(case))


def _check_case_authority_time(case: _Case) -> None:
    _check_authority_time(_anchor(case).certificate, case.now)
    for intermediate in case.chain[1 : case.depth + 1]:
        _check_authority_time(intermediate, case.now)


def _check_case_certificate_time(case: _Case) -> None:
    assert case.facts is not None
    _check_certificate_time(case.facts, case.now)


def _check_case_profile(case: _Case) -> None:
    check_profile(case.chain[0])


def _check_path(case: _Case) -> None:
    if case.path_fault is not None:
        # The library's words; they may quote names from the chain.
        _refuse(RejectReason.CHAIN_INVALID, f"{_device(case)}: {_clip(case.path_fault)}")


def _check_state(anchor: Anchor) -> None:
    match anchor.state:
        case AuthorityState.ACTIVE | AuthorityState.RETIRING:
            return  # whether a retiring CA may enroll new devices is decided at enrollment
        case AuthorityState.PENDING:
            _refuse(
                RejectReason.CA_NOT_ACTIVE,
                f"CA {_quote(anchor.certificate.subject)} is pending: prove and activate it",
            )
        case AuthorityState.REVOKED:
            _refuse(RejectReason.CA_REVOKED, f"CA {_quote(anchor.certificate.subject)} is revoked")
        case _:
            assert_never(anchor.state)


def _check_authority_time(authority: x509.Certificate, now: datetime) -> None:
    if now > authority.not_valid_after_utc:
        _refuse(
            RejectReason.CA_EXPIRED,
            f"CA {_quote(authority.subject)} expired: valid until {_time(authority.not_valid_after_utc)},"
            f" checked at {_time(now)}",
        )
    if now < authority.not_valid_before_utc:
        _refuse(
            RejectReason.CA_NOT_ACTIVE,
            f"CA {_quote(authority.subject)} is not valid yet: from {_time(authority.not_valid_before_utc)},"
            f" checked at {_time(now)}",
        )


def _check_certificate_time(certificate: CertificateFacts, now: datetime) -> None:
    """RFC 5280 §4.1.2.5: both ends belong to the period."""
    if now > certificate.not_after:
        _refuse(
            RejectReason.CERTIFICATE_EXPIRED,
            f"certificate of device '{certificate.common_name}' expired: valid until"
            f" {_time(certificate.not_after)}, checked at {_time(now)}",
        )
    if now < certificate.not_before:
        _refuse(
            RejectReason.CERTIFICATE_NOT_YET_VALID,
            f"certificate of device '{certificate.common_name}' is not valid yet: from"
            f" {_time(certificate.not_before)}, checked at {_time(now)}",
        )


def _describe_anchor(case: _Case) -> tuple[str, datetime | None]:
    anchor = _anchor(case)
    return (
        f"{_quote(anchor.certificate.subject)} is CA {anchor.authority_id} of product {anchor.product_id}",
        None,
    )


def _describe_authority_time(case: _Case) -> tuple[str, datetime | None]:
    issuers = (_anchor(case).certificate, *case.chain[1 : case.depth + 1])
    ends = min(issuer.not_valid_after_utc for issuer in issuers)
    return f"valid until {_time(ends)}", ends


def _describe_certificate_time(case: _Case) -> tuple[str, datetime | None]:
    ends = case.chain[0].not_valid_after_utc
    return f"valid until {_time(ends)}", ends


_STEPS: Final = (
    _Step(
        name="certificate_name",
        check=_check_name,
        describe=lambda case: (f"'{case.facts.common_name if case.facts else ''}'", None),
    ),
    _Step(name="registered_ca", check=_find_anchor, describe=_describe_anchor),
    _Step(
        name="ca_state",
        check=_check_case_state,
        describe=lambda case: (_anchor(case).state.value, None),
    ),
    _Step(
        name="ca_valid",
        check=_check_case_authority_time,
        describe=_describe_authority_time,
    ),
    _Step(
        name="certificate_valid",
        check=_check_case_certificate_time,
        describe=_describe_certificate_time,
    ),
    _Step(
        name="device_profile",
        check=_check_case_profile,
        describe=lambda _: ("an end entity that may sign and be a TLS client", None),
    ),
    _Step(
        name="path",
        check=_check_path,
        describe=lambda case: (f"the path holds over {case.depth} intermediates", None),
    ),
)


def _valid_from(case: _Case, reason: RejectReason) -> datetime | None:
    if reason is RejectReason.CERTIFICATE_NOT_YET_VALID:
        return case.chain[0].not_valid_before_utc
    return None


def _anchor(case: _Case) -> Anchor:
    assert case.anchor is not None
    return case.anchor


def _device(case: _Case) -> str:
    assert case.facts is not None
    return f"certificate of device '{case.facts.common_name}'"


def _quote(name: x509.Name) -> str:
    """A name that may be a stranger's: ASCII without control characters, and short."""
    return _clip(ascii(name.rfc4514_string()))


def _clip(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def _time(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def _refuse(reason: RejectReason, detail: str) -> NoReturn:
    raise VerificationError(reason, detail) from None
