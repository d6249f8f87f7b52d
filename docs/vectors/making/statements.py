"""`statements.json`: bundle statements, and whether a device installs them (protocol, section 13, steps 1 to 8)."""

import hashlib
from typing import Any

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from making.keys import (
    RFC_8032_TEST_1,
    PrivateKey,
    b64,
    compact,
    describe,
    edwards,
    elliptic,
    load_rsa,
    pae,
    seal,
    sign,
)

TYPE = "application/vnd.fleetgate.bundle.v1+json"
IMAGE = b"fleetgate"

SIGNERS: dict[str, PrivateKey] = {
    "ed25519": ed25519.Ed25519PrivateKey.from_private_bytes(RFC_8032_TEST_1),
    "p256": elliptic(ec.SECP256R1(), "signer"),
    "p384": elliptic(ec.SECP384R1(), "signer"),
    "rsa2048": load_rsa(),
    "stranger": edwards("a stranger's signer"),
}

DEVICE: dict[str, Any] = {
    "trusted": ["ed25519", "p256"],
    "product": "pump",
    "hardware": {"model": "pump", "revision": "b"},
    "highest_bundle_seq": 9,
    "running_bundle_seq": 9,
}
"""The device of every case that says nothing else."""

WORDS = {
    1: "statement_invalid",
    2: "statement_invalid",
    3: "statement_invalid",
    4: "wrong_product",
    5: "not_above_installed",
    6: "wrong_hardware",
    7: "below_floor",
    8: "digest_mismatch",
}


def statement(**changes: Any) -> dict[str, Any]:
    """The worked bundle of section 13, with some members changed; None takes one away."""
    made = {
        "v": 1,
        "product": "pump",
        "version": "1.5.0",
        "bundle_seq": 12,
        "artifacts": [artifact("pump.img")],
        "hardware": [{"model": "pump", "revisions": ["b", "c"]}],
        "floor": 9,
        "created_at": 1767225600000,
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def artifact(name: str, **changes: Any) -> dict[str, Any]:
    """An entry of `artifacts`."""
    return {"name": name, "size": len(IMAGE), "sha256": hashlib.sha256(IMAGE).hexdigest()} | changes


class Cases:
    """Collects cases."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def add(
        self, name: str, about: str, step: int | None, envelope: bytes, content: bytes = IMAGE, **device: Any
    ) -> None:
        """One case: the step at which a device refuses, or None where it installs."""
        found: dict[str, Any] = {"result": "installed"}
        if step is not None:
            found = {"result": "refused", "step": step, "reason": WORDS[step]}
        self.made.append(
            {
                "id": name,
                "about": about,
                "device": DEVICE | device,
                "statement": b64(envelope),
                "artifacts": {"pump.img": b64(content)},
                "expected": found,
            }
        )

    def signed(
        self, name: str, about: str, step: int | None, payload: dict[str, Any] | bytes, **more: Any
    ) -> None:
        """A case whose statement is rightly signed."""
        data = payload if isinstance(payload, bytes) else compact(payload)
        self.add(name, about, step, compact(seal(SIGNERS["ed25519"], TYPE, data)), **more)


def make() -> dict[str, Any]:
    """The file."""
    cases = Cases()
    _envelope(cases)
    _signature(cases)
    _payload(cases)
    _fit(cases)
    return {
        "keys": {name: describe(key) for name, key in SIGNERS.items()},
        "cases": cases.made,
    }


def _envelope(cases: Cases) -> None:
    """Step 1."""
    right = compact(statement())
    sealed = seal(SIGNERS["ed25519"], TYPE, right)
    cases.signed("worked-example", "Nothing is wrong: the worked bundle of the protocol.", None, right)
    cases.add(
        "signed-p256", "Nothing is wrong: signed by the other trusted key, P-256.", None,
        compact(seal(SIGNERS["p256"], TYPE, right)),
    )  # fmt: skip
    cases.add(
        "untrusted-key", "Signed by a key that the device does not trust.", 1,
        compact(seal(SIGNERS["stranger"], TYPE, right)),
    )  # fmt: skip
    cases.add(
        "key-brought-along", "The same, and the envelope carries that key: a key that comes with an offer proves "
        "nothing.", 1,
        compact(seal(SIGNERS["stranger"], TYPE, right) | {"key": describe(SIGNERS["stranger"])["spki"]}),
    )  # fmt: skip
    cases.add(
        "trusted-keyid-of-stranger", "A stranger signs under the `keyid` of a trusted key.", 2,
        compact(seal(SIGNERS["ed25519"], TYPE, right, sign(SIGNERS["stranger"], pae(TYPE, right)))),
    )  # fmt: skip
    for name, kind in (("p384", "P-384"), ("rsa2048", "RSA")):
        cases.add(
            f"signed-{name}", f"A trusted key of kind {kind} signs: only P-256 and Ed25519 may sign bundles.", 1,
            compact(seal(SIGNERS[name], TYPE, right)), trusted=[name],
        )  # fmt: skip
    cases.add(
        "type-of-hello", "`payloadType` is that of a hello, and was signed so.", 1,
        compact(seal(SIGNERS["ed25519"], "application/vnd.fleetgate.hello.v1+json", right)),
    )  # fmt: skip
    cases.add("no-envelope", "The statement alone, without envelope and signature.", 1, right)
    cases.add(
        "two-signatures", "Two signatures by trusted keys: exactly one is allowed.", 1,
        compact(
            sealed | {"signatures": sealed["signatures"] + seal(SIGNERS["p256"], TYPE, right)["signatures"]}
        ),
    )  # fmt: skip
    cases.add(
        "payload-without-padding", "`payload` is base64 without its padding.", 1,
        compact(sealed | {"payload": sealed["payload"].rstrip("=")}),
    )  # fmt: skip
    cases.add(
        "envelope-bom", "The envelope begins with a byte order mark.", 1, b"\xef\xbb\xbf" + compact(sealed)
    )
    cases.add(
        "envelope-repeated-member", "The envelope has `payload` twice.", 1,
        compact(sealed)[:-1] + b',"payload":"e30="}',
    )  # fmt: skip
    cases.add(
        "envelope-unknown-members", "Nothing is wrong: members that the envelope does not have are ignored.", None,
        compact(sealed | {"hint": {"a": 1}}),
    )  # fmt: skip
    spare = 12_288 - len(compact(sealed | {"pad": ""}))
    cases.add(
        "envelope-12288", "Nothing is wrong: an envelope of exactly 12 288 bytes.", None,
        compact(sealed | {"pad": "x" * spare}),
    )  # fmt: skip
    cases.add(
        "envelope-12289", "An envelope of one byte more than 12 288.", 1,
        compact(sealed | {"pad": "x" * (spare + 1)}),
    )  # fmt: skip


def _signature(cases: Cases) -> None:
    """Step 2."""
    right = compact(statement())
    p256 = SIGNERS["p256"]
    assert isinstance(p256, ec.EllipticCurvePrivateKey)
    r, s = decode_dss_signature(sign(p256, pae(TYPE, right)))
    table: list[tuple[str, str, str, bytes]] = [
        ("signed-payload-alone", "Signed without the pre-authentication encoding.", "ed25519",
         sign(SIGNERS["ed25519"], right)),
        ("signed-with-newline", "A line feed stands at the end of the signed bytes.", "ed25519",
         sign(SIGNERS["ed25519"], pae(TYPE, right) + b"\n")),
        ("p256-raw", "The ECDSA signature is r‖s, 64 bytes, and not DER.", "p256",
         r.to_bytes(32, "big") + s.to_bytes(32, "big")),
        ("p256-sha384", "The P-256 key signs with SHA-384.", "p256",
         sign(p256, pae(TYPE, right), hashes.SHA384())),
        ("signature-of-another-statement", "The signature is that of an older statement.", "ed25519",
         sign(SIGNERS["ed25519"], pae(TYPE, compact(statement(bundle_seq=10, version="1.4.1"))))),
    ]  # fmt: skip
    for name, about, signer, signature in table:
        cases.add(name, about, 2, compact(seal(SIGNERS[signer], TYPE, right, signature)))
    pretty = right.replace(b":", b": ")
    cases.add(
        "payload-reformatted", "The payload was read and written anew after signing: same JSON, other bytes.", 2,
        compact(seal(SIGNERS["ed25519"], TYPE, pretty, sign(SIGNERS["ed25519"], pae(TYPE, right)))),
    )  # fmt: skip


def _payload(cases: Cases) -> None:
    """Step 3: signed by the right key, and no statement."""
    faults: list[tuple[str, str, dict[str, Any]]] = [
        ("version-2", "`v` is 2.", {"v": 2}),
        ("version-missing", "`v` is missing.", {"v": None}),
        ("no-product", "`product` is missing.", {"product": None}),
        ("product-upper-case", "`product` is no product's name.", {"product": "Pump"}),
        ("version-with-blank", "`version` has a blank.", {"version": "1.5 beta"}),
        ("version-long", "`version` has 65 characters.", {"version": "1" * 65}),
        ("seq-zero", "`bundle_seq` is 0.", {"bundle_seq": 0, "floor": None}),
        ("seq-text", "`bundle_seq` is text.", {"bundle_seq": "12"}),
        ("seq-fraction", "`bundle_seq` is 12.5.", {"bundle_seq": 12.5}),
        ("seq-beyond-double", "`bundle_seq` is 2⁵³.", {"bundle_seq": 2**53}),
        ("no-artifacts", "`artifacts` is missing.", {"artifacts": None}),
        ("empty-artifacts", "`artifacts` is empty.", {"artifacts": []}),
        ("nine-artifacts", "Nine artifacts.", {"artifacts": [artifact(f"{n}.img") for n in range(9)]}),
        ("artifact-twice", "Two artifacts of one name.", {"artifacts": [artifact("a.img")] * 2}),
        ("artifact-path", "An artifact's name is a path.", {"artifacts": [artifact("../pump.img")]}),
        ("artifact-hidden", "An artifact's name begins with a dot.", {"artifacts": [artifact(".img")]}),
        ("artifact-empty", "An artifact of no bytes.", {"artifacts": [artifact("pump.img", size=0)]}),
        (
            "artifact-huge",
            "An artifact of 2⁴⁰+1 bytes.",
            {"artifacts": [artifact("pump.img", size=2**40 + 1)]},
        ),
        (
            "digest-upper-case",
            "A digest in upper-case hex digits.",
            {"artifacts": [artifact("pump.img", sha256=hashlib.sha256(IMAGE).hexdigest().upper())]},
        ),
        ("hardware-text", "`hardware` is text.", {"hardware": "pump"}),
        ("hardware-33", "`hardware` has 33 entries.", {"hardware": [{"model": f"m{n}"} for n in range(33)]}),
        ("floor-zero", "`floor` is 0.", {"floor": 0}),
        ("floor-equal", "`floor` is `bundle_seq` itself, so that no device could come to it.", {"floor": 12}),
        ("notes-long", "`notes` has 1025 characters.", {"notes": "x" * 1025}),
    ]
    for name, about, changes in faults:
        cases.signed(name, f"{about} It is rightly signed.", 3, statement(**changes))
    right = compact(statement())
    for name, about, data in (
        ("payload-nan", "NaN in a member that nobody knows.", right[:-1] + b',"extra":NaN}'),
        ("payload-repeated-member", "`product` twice.", right[:-1] + b',"product":"pump"}'),
        ("payload-list", "The payload is a list.", b"[" + right + b"]"),
    ):
        cases.signed(name, f"{about} It is rightly signed.", 3, data)
    spare = 6144 - len(compact(statement(extra="")))
    cases.signed("payload-6144", "Nothing is wrong: 6144 bytes.", None, statement(extra="x" * spare))
    cases.signed("payload-6145", "One byte more than 6144.", 3, statement(extra="x" * (spare + 1)))
    cases.signed(
        "payload-unknown-members", "Nothing is wrong: members that are not described are ignored, everywhere.", None,
        statement(artifacts=[artifact("pump.img", slot="a")], colour="blue"),
    )  # fmt: skip
    cases.signed(
        "payload-spelled-otherwise", "Nothing is wrong: white space and another order of members.", None,
        b'{ "bundle_seq" : 12,\n' + compact(statement(bundle_seq=None))[1:],
    )  # fmt: skip
    cases.signed(
        "least-statement", "Nothing is wrong: only what must be there.", None,
        statement(hardware=None, floor=None, created_at=None),
    )  # fmt: skip
    cases.signed(
        "largest-seq", "Nothing is wrong: `bundle_seq` 2⁵³−1.", None, statement(bundle_seq=2**53 - 1)
    )


def _fit(cases: Cases) -> None:
    """Steps 4 to 8: a true statement, and this device."""
    none = {"highest_bundle_seq": 0, "running_bundle_seq": 0}
    cases.signed("other-product", "It is for another product.", 4, statement(product="valve"))
    cases.signed(
        "product-prefix", "Its product's name only begins like the device's.", 4, statement(product="pump-2")
    )
    cases.signed("same-seq", "The device has had this very number.", 5, statement(), highest_bundle_seq=12)
    cases.signed(
        "below-highest-after-rollback", "The device has had 13 and went back to 9: 12 stays refused.", 5,
        statement(), highest_bundle_seq=13,
    )  # fmt: skip
    cases.signed(
        "one-above", "Nothing is wrong: one above the highest.", None, statement(), highest_bundle_seq=11
    )
    cases.signed("other-model", "Its hardware is another model.", 6, statement(hardware=[{"model": "valve"}]))
    cases.signed("model-case", "The model differs in case.", 6, statement(hardware=[{"model": "PUMP"}]))
    cases.signed(
        "other-revision", "The model fits, the revision does not.", 6,
        statement(hardware=[{"model": "pump", "revisions": ["c", "d"]}]),
    )  # fmt: skip
    cases.signed(
        "device-without-revision", "The statement names revisions, the device has none.", 6, statement(),
        hardware={"model": "pump"},
    )  # fmt: skip
    cases.signed(
        "every-revision", "Nothing is wrong: no revisions named, so every one.", None,
        statement(hardware=[{"model": "pump"}]),
    )  # fmt: skip
    cases.signed(
        "empty-revisions", "Nothing is wrong: an empty list of revisions is every one.", None,
        statement(hardware=[{"model": "pump", "revisions": []}]),
    )  # fmt: skip
    cases.signed(
        "empty-hardware", "Nothing is wrong: an empty `hardware` is any.", None, statement(hardware=[])
    )
    cases.signed(
        "second-entry-fits", "Nothing is wrong: the second entry fits.", None,
        statement(hardware=[{"model": "valve"}, {"model": "pump", "revisions": ["a", "b"]}]),
    )  # fmt: skip
    cases.signed(
        "below-floor", "8 is running, the floor is 9.", 7, statement(), running_bundle_seq=8,
        highest_bundle_seq=8,
    )  # fmt: skip
    cases.signed(
        "below-floor-after-rollback", "The floor is 9. The device has had 10, but 8 is running again.", 7,
        statement(), running_bundle_seq=8, highest_bundle_seq=10,
    )  # fmt: skip
    cases.signed(
        "floor-without-bundle",
        "The running image came from no bundle, which counts as 0.",
        7,
        statement(),
        **none,
    )
    cases.signed("at-floor", "Nothing is wrong: the floor itself is running.", None, statement())
    null = compact(statement() | {"floor": None})
    cases.signed("null-floor", "Nothing is wrong: `floor` is null.", None, null, **none)
    cases.signed(
        "no-floor", "Nothing is wrong: no floor, and no bundle runs.", None, statement(floor=None), **none
    )
    cases.signed(
        "product-before-seq", "Another product's, and an old number: the first step that fails has the word.", 4,
        statement(product="valve"), highest_bundle_seq=20,
    )  # fmt: skip
    cases.signed(
        "artifact-changed", "The artifact has the right size and another content.", 8, statement(),
        content=b"fleetgatE",
    )  # fmt: skip
    cases.signed("artifact-cut-off", "The artifact is one byte short.", 8, statement(), content=b"fleetgat")
    cases.signed(
        "artifact-size-lies", "The digest is right, and the statement's size is not.", 8,
        statement(artifacts=[artifact("pump.img", size=10)]),
    )  # fmt: skip
