"""`certificates.json`: chains of a hello, and whose they are (protocol, section 5)."""

from datetime import UTC, datetime, timedelta
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from making import pki
from making.keys import PrivateKey, b64, edwards, elliptic, expected, key_id, load_rsa, sign
from making.pki import authority, cn, leaf, name

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
KEY = elliptic(ec.SECP256R1(), "device")

ROOT = authority("Factory Root")
INNER = authority("Line 7", issuer=ROOT, serial=2)
INNERMOST = authority("Line 7 Station 2", issuer=INNER, serial=3)
PENDING = authority("Pending CA")
REVOKED = authority("Revoked CA")
RETIRING = authority("Retiring CA")
ENDED = authority("Ended CA", end=NOW - SECOND)
STRANGER = authority("Stranger CA")

REGISTERED = (
    ("root", ROOT, "active"),
    ("pending", PENDING, "pending"),
    ("revoked", REVOKED, "revoked"),
    ("retiring", RETIRING, "retiring"),
    ("ended", ENDED, "active"),
)


def make() -> dict[str, Any]:
    """The file."""
    cases: list[dict[str, Any]] = []

    def add(
        case_id: str,
        about: str,
        reason: str | None,
        *chain: x509.Certificate | bytes,
        key: PrivateKey = KEY,
        topic_name: str = "pump-17",
    ) -> None:
        cases.append(
            {
                "id": case_id,
                "about": about,
                "topic_name": topic_name,
                "keyid": key_id(key),
                "chain": [b64(one if isinstance(one, bytes) else pki.der(one)) for one in chain],
                "expected": expected(reason),
            }
        )

    _keys(add)
    _chains(add)
    _names(add)
    _times(add)
    _profile(add)
    return {
        "now": int(NOW.timestamp() * 1000),
        "authorities": [
            {"name": label, "state": state, "certificate": b64(pki.der(made.certificate))}
            for label, made, state in REGISTERED
        ],
        "cases": cases,
    }


def _keys(add: Any) -> None:
    add("p256", "Nothing is wrong: P-256.", None, leaf("pump-17", KEY, ROOT))
    p384, ed = elliptic(ec.SECP384R1(), "device"), edwards("device")
    add("p384", "Nothing is wrong: P-384.", None, leaf("pump-17", p384, ROOT), key=p384)
    add(
        "rsa2048",
        "Nothing is wrong: RSA of 2048 bits.",
        None,
        leaf("pump-17", load_rsa(), ROOT),
        key=load_rsa(),
    )
    add(
        "ed25519",
        "Nothing is wrong: Ed25519 in the device's own certificate.",
        None,
        leaf("pump-17", ed, ROOT),
        key=ed,
    )
    k1 = elliptic(ec.SECP256K1(), "device")
    add(
        "secp256k1",
        "The key is on the curve secp256k1.",
        "key_not_allowed",
        leaf("pump-17", k1, ROOT),
        key=k1,
    )
    numbers = rsa.RSAPublicNumbers(65537, load_rsa().public_key().public_numbers().n >> 1024 | 1)
    small = _with_public(numbers.public_key())
    add("rsa1024", "The key is RSA of 1024 bits.", "key_not_allowed", small)
    add(
        "not-the-keys", "The certificate is that of another key than `keyid` names.", "key_mismatch",
        leaf("pump-17", elliptic(ec.SECP256R1(), "another device"), ROOT),
    )  # fmt: skip


def _with_public(key: rsa.RSAPublicKey) -> x509.Certificate:
    """A certificate of a key whose private half nobody needs."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(cn("pump-17"))
        .issuer_name(ROOT.certificate.subject)
        .public_key(key)
        .serial_number(1000)
        .not_valid_before(pki.BEGIN)
        .not_valid_after(pki.END)
    )
    return pki.finish(builder, ROOT.key, None)


def _chains(add: Any) -> None:
    through = leaf("pump-17", KEY, INNER)
    deep = leaf("pump-17", KEY, INNERMOST)
    add("one-intermediate", "Nothing is wrong: device, intermediate; the root is registered.", None, through,
        INNER.certificate)  # fmt: skip
    add("two-intermediates", "Nothing is wrong: the longest chain.", None, deep, INNERMOST.certificate,
        INNER.certificate)  # fmt: skip
    add(
        "no-intermediate",
        "The intermediate is missing, and only the root is registered.",
        "unknown_ca",
        through,
    )
    add("out-of-order", "The two intermediates are in the wrong order.", "chain_invalid", deep, INNER.certificate,
        INNERMOST.certificate)  # fmt: skip
    add(
        "root-first", "The intermediate stands before the device's own certificate.", "certificate_name",
        INNER.certificate, through,
    )  # fmt: skip
    add("unknown-ca", "No registered CA is on the way.", "unknown_ca", leaf("pump-17", KEY, STRANGER))
    add(
        "same-name-other-key", "Signed by another key under the registered CA's name.", "unknown_ca",
        leaf("pump-17", KEY, ROOT, signer=STRANGER.key),
    )  # fmt: skip
    short = authority("Short Path", issuer=ROOT, serial=4, path_length=0)
    below = authority("Below Short Path", issuer=short, serial=5)
    add(
        "path-length", "The upper intermediate may have no CA below it (pathLenConstraint 0).", "chain_invalid",
        leaf("pump-17", KEY, below), below.certificate, short.certificate,
    )  # fmt: skip
    no_ca = authority("No CA", issuer=ROOT, serial=6, ca=False)
    add("intermediate-no-ca", "The intermediate is not a CA.", "chain_invalid", leaf("pump-17", KEY, no_ca),
        no_ca.certificate)  # fmt: skip
    add(
        "pending-ca",
        "The CA is registered and not active yet.",
        "ca_not_active",
        leaf("pump-17", KEY, PENDING),
    )
    add("revoked-ca", "The CA is revoked.", "ca_revoked", leaf("pump-17", KEY, REVOKED))
    add(
        "retiring-ca", "Nothing is wrong with the chain: a CA that retires still vouches; whether a new device "
        "may enroll is another question.", None, leaf("pump-17", KEY, RETIRING),
    )  # fmt: skip
    add("no-certificate", "An empty chain.", "malformed_certificate")
    add("not-der", "Bytes that are no certificate.", "malformed_certificate", b"certificate")
    add("cut-off", "The certificate's last byte is missing.", "malformed_certificate",
        pki.der(leaf("pump-17", KEY, ROOT))[:-1])  # fmt: skip


def _names(add: Any) -> None:
    def issued(subject: x509.Name | str) -> x509.Certificate:
        return leaf(subject, KEY, ROOT)

    none = name((NameOID.ORGANIZATION_NAME, "Acme"))
    add("no-cn", "No CN.", "certificate_name", issued(none))
    two = name((NameOID.COMMON_NAME, "pump-17"), (NameOID.COMMON_NAME, "pump-18"))
    add("two-cns", "Two CNs.", "certificate_name", issued(two))
    for case_id, about, text in (
        ("cn-slash", "A slash in the CN, which is a level of a topic.", "pump/17"),
        ("cn-plus", "A plus in the CN, which is a wildcard.", "+"),
        ("cn-blank", "A blank in the CN.", "pump 17"),
        ("cn-umlaut", "A letter beyond ASCII in the CN.", "pümp-17"),
    ):
        add(case_id, about, "certificate_name", issued(text), topic_name=text)
    longest = "p" * 64
    add("cn-64", "Nothing is wrong: a CN of 64 characters.", None, issued(longest), topic_name=longest)
    add("other-topic", "The CN is not the topic name that it came on.", "wrong_topic", issued("pump-18"))
    add("cn-case", "The CN differs from the topic name in case.", "wrong_topic", issued("PUMP-17"))


def _times(add: Any) -> None:
    add(
        "begins-now",
        "Nothing is wrong: it begins at this very second.",
        None,
        leaf("pump-17", KEY, ROOT, begin=NOW),
    )
    add(
        "ends-now",
        "Nothing is wrong: it ends at this very second.",
        None,
        leaf("pump-17", KEY, ROOT, end=NOW),
    )
    add(
        "expired",
        "It ended a second ago.",
        "certificate_expired",
        leaf("pump-17", KEY, ROOT, end=NOW - SECOND),
    )
    add("not-yet-valid", "It begins in a second.", "certificate_not_yet_valid",
        leaf("pump-17", KEY, ROOT, begin=NOW + SECOND))  # fmt: skip
    add("ca-expired", "The registered CA ended a second ago.", "ca_expired", leaf("pump-17", KEY, ENDED))
    old = authority("Old Line", issuer=ROOT, serial=7, end=NOW - SECOND)
    add("intermediate-expired", "The intermediate ended a second ago.", "ca_expired",
        leaf("pump-17", KEY, old), old.certificate)  # fmt: skip


def _profile(add: Any) -> None:
    def of(case_id: str, about: str, reason: str | None, **more: Any) -> None:
        add(case_id, about, reason, leaf("pump-17", KEY, ROOT, **more))

    profile = "certificate_profile"
    of("ca-leaf", "The device's certificate is a CA's.", profile, ca=True, key_cert_sign=True)
    of(
        "may-sign-certificates",
        "Its key usage has keyCertSign, though it is no CA.",
        profile,
        key_cert_sign=True,
    )
    of("no-digital-signature", "Its key usage lacks digitalSignature.", profile, digital_signature=False)
    of("server-only", "Its extended key usage is serverAuth alone.", profile,
       purposes=(ExtendedKeyUsageOID.SERVER_AUTH,))  # fmt: skip
    of("client-and-server", "Nothing is wrong: clientAuth beside serverAuth.", None,
       purposes=(ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH))  # fmt: skip
    of("bare", "Nothing is wrong: neither key usage nor extended key usage, as plain factories make them.", None,
       bare=True)  # fmt: skip
    add("serial-too-long", "Its serial number has 161 bits.", profile, _long_serial())


def _long_serial() -> bytes:
    """A builder makes no such number, so one of 159 bits is made longer in the DER, and signed again."""
    made = leaf("pump-17", KEY, ROOT, serial=(1 << 159) - 1)
    body = made.tbs_certificate_bytes
    number = b"\x02\x14\x7f" + b"\xff" * 19
    assert body.count(number) == 1
    longer = body.replace(number, b"\x02\x15\x01" + b"\x00" * 20)
    assert longer[:2] == b"\x30\x82"
    longer = b"\x30\x82" + (len(longer) - 4).to_bytes(2, "big") + longer[4:]
    assert isinstance(ROOT.key, ec.EllipticCurvePrivateKey)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    signature = sign(ROOT.key, longer)
    rest = longer + algorithm + b"\x03" + bytes([len(signature) + 1]) + b"\0" + signature
    return b"\x30\x82" + len(rest).to_bytes(2, "big") + rest
