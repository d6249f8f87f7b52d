"""The steps of chain verification, in order: each gives one exact reason (RFC 5280 §6, protocol section 5).

Path validation proper is the library's, with exactly one trust anchor; the checks here give exact reasons,
and cover what the library lets pass. `verification` runs them, to decide and to explain.
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
from provisioning.errors import RejectReason, VerificationError


class Case:
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

    def found(self) -> Anchor:
        """The CA that the walk found; only for steps after it."""
        assert self.anchor is not None
        return self.anchor


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One check: `check` raises VerificationError; `describe` says what it found and until when that holds."""

    name: str
    check: Callable[[Case], None]
    describe: Callable[[Case], tuple[str, datetime | None]]


def _check_name(case: Case) -> None:
    case.facts = read_facts(case.chain[0])


def _find_anchor(case: Case) -> None:
    """Walk from the leaf upward to the first certificate that a registered CA issued (design: nearest CA).

    Without intermediates, path validation is that one costly signature, so it is tried at once on every CA of the
    right name, and only its failure is looked into. CAs that nobody proved are looked at last: otherwise anybody could
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
    refuse(RejectReason.UNKNOWN_CA, f"{_device(case)} leads to issuer {_quote(top)}: {found}")


def _try_anchor(case: Case, anchor: Anchor, depth: int) -> bool:
    """Whether `anchor` issued certificate `depth`; whether the whole path holds is left in `path_fault`.

    Over intermediates, the library tries every order of them, with keys that a stranger chose: a chain whose
    names fit everywhere cost two dozen signatures for each CA of the name. So the CA's own is looked at first.
    """
    if depth and not is_issued_by(case.chain[depth], anchor.certificate):
        return False
    fault = None
    try:
        verifier = case.anchors.builder_of(anchor).time(case.now).build_client_verifier()
        path = verifier.verify(case.chain[0], list(case.chain[1 : depth + 1])).chain
        if len(path) != depth + 2:
            fault = f"expected a path over {depth} intermediates, got {len(path) - 2}"
    except (PathError, *PARSE_ERRORS) as error:
        fault = str(error)
    if fault is not None:
        if not depth and not is_issued_by(case.chain[0], anchor.certificate):
            return False
        for index in range(depth):
            if not is_issued_by(case.chain[index], case.chain[index + 1]):
                refuse(
                    RejectReason.CHAIN_INVALID,
                    f"{_device(case)}: certificate {index} of its chain is not signed by the next",
                )
    case.anchor, case.depth, case.path_fault = anchor, depth, fault
    return True


def _check_case_state(case: Case) -> None:
    check_state(case.found())


def _check_case_authority_time(case: Case) -> None:
    check_authority_time(case.found().certificate, case.now)
    for intermediate in case.chain[1 : case.depth + 1]:
        check_authority_time(intermediate, case.now)


def _check_case_certificate_time(case: Case) -> None:
    assert case.facts is not None
    check_certificate_time(case.facts, case.now)


def _check_case_profile(case: Case) -> None:
    check_profile(case.chain[0])


def _check_path(case: Case) -> None:
    if case.path_fault is not None:
        # The library's words; they may quote names from the chain.
        refuse(RejectReason.CHAIN_INVALID, f"{_device(case)}: {_clip(case.path_fault)}")


def check_state(anchor: Anchor) -> None:
    """Raises VerificationError unless the CA may vouch."""
    match anchor.state:
        case AuthorityState.ACTIVE | AuthorityState.RETIRING:
            return  # whether a retiring CA may enroll new devices is decided at enrollment
        case AuthorityState.PENDING:
            refuse(
                RejectReason.CA_NOT_ACTIVE,
                f"CA {_quote(anchor.certificate.subject)} is pending: prove and activate it",
            )
        case AuthorityState.REVOKED:
            refuse(RejectReason.CA_REVOKED, f"CA {_quote(anchor.certificate.subject)} is revoked")
        case _:
            assert_never(anchor.state)


def check_authority_time(authority: x509.Certificate, now: datetime) -> None:
    """Raises VerificationError outside a CA's period."""
    if now > authority.not_valid_after_utc:
        refuse(
            RejectReason.CA_EXPIRED,
            f"CA {_quote(authority.subject)} expired: valid until {time(authority.not_valid_after_utc)},"
            f" checked at {time(now)}",
        )
    if now < authority.not_valid_before_utc:
        refuse(
            RejectReason.CA_NOT_ACTIVE,
            f"CA {_quote(authority.subject)} is not valid yet: from {time(authority.not_valid_before_utc)},"
            f" checked at {time(now)}",
        )


def check_certificate_time(certificate: CertificateFacts, now: datetime) -> None:
    """RFC 5280 §4.1.2.5: both ends belong to the period."""
    if now > certificate.not_after:
        refuse(
            RejectReason.CERTIFICATE_EXPIRED,
            f"certificate of device '{certificate.common_name}' expired: valid until"
            f" {time(certificate.not_after)}, checked at {time(now)}",
        )
    if now < certificate.not_before:
        refuse(
            RejectReason.CERTIFICATE_NOT_YET_VALID,
            f"certificate of device '{certificate.common_name}' is not valid yet: from"
            f" {time(certificate.not_before)}, checked at {time(now)}",
        )


def _describe_anchor(case: Case) -> tuple[str, datetime | None]:
    anchor = case.found()
    return (
        f"{_quote(anchor.certificate.subject)} is CA {anchor.authority_id} of product {anchor.product_id}",
        None,
    )


def _describe_authority_time(case: Case) -> tuple[str, datetime | None]:
    issuers = (case.found().certificate, *case.chain[1 : case.depth + 1])
    ends = min(issuer.not_valid_after_utc for issuer in issuers)
    return f"valid until {time(ends)}", ends


def _describe_certificate_time(case: Case) -> tuple[str, datetime | None]:
    ends = case.chain[0].not_valid_after_utc
    return f"valid until {time(ends)}", ends


STEPS: Final = (
    Step(
        name="certificate_name",
        check=_check_name,
        describe=lambda case: (f"'{case.facts.common_name if case.facts else ''}'", None),
    ),
    Step(name="registered_ca", check=_find_anchor, describe=_describe_anchor),
    Step(
        name="ca_state",
        check=_check_case_state,
        describe=lambda case: (case.found().state.value, None),
    ),
    Step(
        name="ca_valid",
        check=_check_case_authority_time,
        describe=_describe_authority_time,
    ),
    Step(
        name="certificate_valid",
        check=_check_case_certificate_time,
        describe=_describe_certificate_time,
    ),
    Step(
        name="device_profile",
        check=_check_case_profile,
        describe=lambda _: ("an end entity that may sign and be a TLS client", None),
    ),
    Step(
        name="path",
        check=_check_path,
        describe=lambda case: (f"the path holds over {case.depth} intermediates", None),
    ),
)


def _device(case: Case) -> str:
    assert case.facts is not None
    return f"certificate of device '{case.facts.common_name}'"


def _quote(name: x509.Name) -> str:
    """A name that may be a stranger's: ASCII without control characters, and short."""
    return _clip(ascii(name.rfc4514_string()))


def _clip(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}…"


def time(at: datetime) -> str:
    """A time as people read it, UTC."""
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def refuse(reason: RejectReason, detail: str) -> NoReturn:
    """Ends the verification with one word and one sentence."""
    raise VerificationError(reason, detail) from None
