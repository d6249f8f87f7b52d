"""x509-limbo, client side: each case through registration and every step of verification but the name.

The certificates of x509-limbo were made for web servers, so their CNs are no topic names; that step has tests
of its own. Trusted certificates are registered as an operator would register them, and a refused registration
is a refused chain. Each outcome that differs from x509-limbo's is listed with its reason, and the list is
held exact in both directions.
"""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import pytest
from cryptography import x509

from provisioning import chain_steps
from provisioning.authorities import AuthorityState, inspect_authority, is_issued_by
from provisioning.certificates import CertificateFacts, parse_chain
from provisioning.errors import InvalidError, VerificationError
from provisioning.ids import AuthorityId, Fingerprint, KeyId, ProductId
from provisioning.verification import Anchor, TrustAnchors

NOW = datetime(2026, 1, 1, tzinfo=UTC)
"""For cases that name no time; x509-limbo's certificates last from 1970 to 2969."""

NO_LEAF_CA = "a CA's certificate is never a device's (design: device profile)"
DEPTH = "the case sets a limit of its own; ours is always two intermediates, as many as a hello can carry"
IDENTIFIERS = "key identifiers help to choose among issuers; a path is accepted by its signatures alone"
ONE_PATH = "the pool offers several paths; a device sends one chain of at most three, and only that is tried"
CLIENT_EKU = (
    "a rule for web servers; factory certificates differ, and clientAuth is demanded where EKU is present"
)
RSA_BYTES = "a rule of the web PKI; an RSA key from 2048 bits is as strong with an odd length"

DIVERGENCES = {
    "pathlen::validation-ignores-pathlen-in-leaf": NO_LEAF_CA,
    "rfc5280::ca-as-leaf": NO_LEAF_CA,
    "pathlen::self-issued-certs-pathlen": "three intermediates, and a chain holds at most two",
    "pathlen::max-chain-depth-0-exhausted": DEPTH,
    "pathlen::max-chain-depth-1-exhausted": DEPTH,
    "rfc5280::aki::leaf-missing-aki": IDENTIFIERS,
    "rfc5280::aki::intermediate-missing-aki": IDENTIFIERS,
    "rfc5280::aki::cross-signed-root-missing-aki": IDENTIFIERS,
    "rfc5280::ski::root-missing-ski": IDENTIFIERS,
    "rfc5280::ski::intermediate-missing-ski": IDENTIFIERS,
    "webpki::aki::root-with-aki-all-fields": IDENTIFIERS,
    "webpki::aki::root-with-aki-ski-mismatch": IDENTIFIERS,
    "rfc5280::nc::permitted-dns-match-noncritical": "the constraint is applied whether or not it is critical",
    "rfc5280::nc::permitted-dn-match": "directory name constraints are not supported; registration says so",
    "rfc5280::nc::nc-forbids-alternate-chain-ica": ONE_PATH,
    "rfc5280::nc::nc-forbids-same-chain-ica": ONE_PATH,
    "rfc5280::validity::notafter-fractional": "half a second past the end is past it",
    "webpki::eku::ee-anyeku": "anyExtendedKeyUsage stands beside clientAuth, which is what we ask for",
    "webpki::eku::ee-critical-eku": CLIENT_EKU,
    "webpki::eku::ee-without-eku": CLIENT_EKU,
    "webpki::eku::root-has-eku": "a rule of the web PKI; a CA limited to clientAuth is narrower, not wider",
    "webpki::forbidden-rsa-not-divisible-by-8-in-root": RSA_BYTES,
    "webpki::forbidden-rsa-key-not-divisible-by-8-in-leaf": RSA_BYTES,
}

# x509-limbo has serial numbers that are not positive; the library warns before our check refuses them.
pytestmark = pytest.mark.filterwarnings("ignore:Parsed a serial number which wasn't positive")


def _outcome(case: dict[str, Any]) -> str | None:
    """None where the chain is accepted, or why it is not."""
    now = datetime.fromisoformat(case["validation_time"]) if case["validation_time"] else NOW
    anchors, refused = _register(case["trusted_certs"], now)
    try:
        chain = parse_chain(_in_order(case["peer_certificate"], case["untrusted_intermediates"]))
        steps = chain_steps.Case(chain, anchors, now)
        steps.facts = _facts(chain[0])
        for step in chain_steps.STEPS[1:]:
            step.check(steps)
    except VerificationError as error:
        return "; ".join([str(error), *refused])
    return None


def _register(pems: Iterable[str], now: datetime) -> tuple[TrustAnchors, list[str]]:
    anchors, refused = [], []
    for number, pem in enumerate(pems, start=1):
        try:
            facts = inspect_authority(pem.encode(), now=now)
        except InvalidError as error:
            refused.append(error.detail)
            continue
        anchors.append(
            Anchor(
                authority_id=AuthorityId(number),
                product_id=ProductId(1),
                certificate=facts.certificate,
                key_id=facts.key_id,
                state=AuthorityState.ACTIVE,
                legacy=facts.legacy,
            )
        )
    return TrustAnchors(anchors), refused


def _in_order(leaf: str, pool: list[str]) -> list[bytes]:
    """A chain as a device sends it, at most three and each issued by the next, from a pool in any order."""
    chain, left = [_der(leaf)], [_der(pem) for pem in pool]
    while left and len(chain) < 3:
        below = _load(chain[-1])
        above = [der for der in left if below and (one := _load(der)) and is_issued_by(below, one)]
        chain.append(above[0] if above else left[0])
        left.remove(chain[-1])
    return chain


def _load(der: bytes) -> x509.Certificate | None:
    try:
        return x509.load_der_x509_certificate(der)
    except ValueError:
        return None


def _der(pem: str) -> bytes:
    """The bytes between the armour, whether or not they are a certificate that can be read."""
    return base64.b64decode("".join(line for line in pem.splitlines() if "-----" not in line))


def _facts(leaf: x509.Certificate) -> CertificateFacts:
    return CertificateFacts(
        fingerprint=Fingerprint(""),
        key_id=KeyId(""),
        spki=b"",
        common_name="limbo",
        subject_serial_number=None,
        san_uris=(),
        san_dns=(),
        organization=None,
        organizational_unit=None,
        serial_number=leaf.serial_number,
        not_before=leaf.not_valid_before_utc,
        not_after=leaf.not_valid_after_utc,
        subject="",
        issuer="",
    )


def test_outcomes(vectors: Any) -> None:
    cases = vectors.load("x509-limbo-client.json")
    vectors.ran("x509-limbo", len(cases))
    differing = {}
    for case in cases:
        why = _outcome(case)
        if (why is None) is not (case["expected_result"] == "SUCCESS"):
            differing[case["id"]] = why or "accepted"
    unlisted = {id_: why for id_, why in differing.items() if id_ not in DIVERGENCES}
    assert unlisted == {}, "differs from x509-limbo without a reason here"
    assert sorted(DIVERGENCES.keys() - differing.keys()) == [], "listed, and does not differ"
