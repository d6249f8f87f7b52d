"""What reads bytes from strangers, each as one function of bytes; both drivers run these very functions.

A target may raise our own errors (`provisioning.errors`) and nothing else. It asserts what must hold of whatever it
accepts. Inputs come from strangers in three ways: as they are; signed by a device whose key is genuine and whose
owner is not; and signed by a product's own CA.
"""

import base64
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from fuzz_mutations import Choose, mutate_bytes, mutate_der, mutate_json
from fuzz_world import (
    BUNDLE_KEY,
    CA_KEY,
    DEVICE,
    DOWNLOAD_KEY,
    KEYS,
    NOW,
    TRUSTED,
    make_authority,
    signed,
    world,
)

from gateway.device.messages import parse_reply, spread
from gateway.device.updates import Trust, check_offer, parse_offer
from gateway.http.downloads import is_digest, parse_range
from gateway.mqtt.packets import PacketError, find_mid, parse_puback, parse_publish, take_packets
from provisioning.anchors import Anchor, TrustAnchors
from provisioning.authorities import AuthorityState, inspect_authority, verify_possession
from provisioning.bundles import PushFacts, TrustedKey, decide_push
from provisioning.certificates import check_profile, parse_chain, read_facts
from provisioning.downloads import check_token
from provisioning.envelope import key_id_of, parse_envelope, sign_envelope, verify_envelope
from provisioning.errors import VerificationError
from provisioning.ids import AuthorityId, ProductId
from provisioning.statements import STATEMENT_TYPE, check_statement, verify_statement
from provisioning.strictjson import MAX_MESSAGE_BYTES, parse_json
from provisioning.verification import explain_chain, verify_chain


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """One reader.

    Attributes:
        run: takes an input through it.
        mutate: how its inputs are changed by structure.
    """

    name: str
    run: Callable[[bytes], None]
    mutate: Callable[[bytes, Choose], bytes]


def strictjson(data: bytes) -> None:
    """Any bytes as JSON."""
    parse_json(data)


def envelope(data: bytes) -> None:
    """Any bytes as an envelope, and its signature under every kind of key."""
    found = parse_envelope(data)
    for key in KEYS:
        try:
            verify_envelope(found, key)
        except VerificationError:
            continue
        assert found.key_id == key_id_of(key) or found.signature


def packet(data: bytes) -> None:
    """What the broker sends, with a stranger's properties, topic and payload in it."""
    for is_v5 in (True, False):
        buffer = bytearray(data)
        try:
            found = take_packets(buffer)
        except PacketError:
            continue
        assert sum(len(body) for _, body in found) + len(buffer) <= len(data)
        for first, body in found:
            try:
                published = parse_publish(first, body, is_v5=is_v5)
            except PacketError:
                assert 0 <= find_mid(body) < 1 << 16
                continue
            assert body.endswith(published.payload)
            assert bool(published.mid) <= bool(published.qos)
            parse_puback(body)


def message(data: bytes) -> None:
    """A topic, a line break, and what was published there."""
    topic, _, payload = data.partition(b"\n")
    _say(topic.decode("utf-8", "replace"), payload)


def hello(data: bytes) -> None:
    """The payload of a hello that the known device signed."""
    _say(f"fg/v1/{DEVICE}/hello", signed("hello", data))


def presence(data: bytes) -> None:
    """The payload of a presence that the known device signed."""
    _say(f"fg/v1/{DEVICE}/presence", signed("presence", data))


def progress(data: bytes) -> None:
    """The payload of a progress report that the known device signed."""
    _say(f"fg/v1/{DEVICE}/progress", signed("progress", data))


def _say(topic: str, payload: bytes) -> None:
    work = world().say(topic, payload)
    if work.done:
        assert work.identity is None
        if work.reply is not None:
            assert len(work.reply.encode(NOW)) <= MAX_MESSAGE_BYTES
            assert topic.split("/")[2] == work.reply.topic_name, "answered where nobody asked"
        return
    # What goes on to the transaction speaks for the topic it came on.
    assert work.identity is not None
    assert topic.split("/")[2] == work.identity.topic_name


def chain(data: bytes) -> None:
    """Up to four certificates in DER, each after its length in two bytes."""
    ders, at = [], 0
    while at < len(data) and len(ders) < 4:
        length = int.from_bytes(data[at : at + 2], "big")
        ders.append(data[at + 2 : at + 2 + length])
        at += 2 + length
    _verify(ders)


def certificate(data: bytes) -> None:
    """The signed part of a certificate, signed by the product's own CA: as a device's, and as a CA's below it."""
    der = sign_certificate(data)
    _verify([der])
    _verify([world().device.der_chain[0], der])


def sign_certificate(body: bytes) -> bytes:
    """A certificate in DER from its TBSCertificate, by the key of the pump CA."""
    signature = CA_KEY.sign(body, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    inside = body + algorithm + b"\x03" + _length(len(signature) + 1) + b"\0" + signature
    return b"\x30" + _length(len(inside)) + inside


def _length(number: int) -> bytes:
    if number < 128:
        return bytes((number,))
    size = (number.bit_length() + 7) // 8
    return bytes((0x80 | size,)) + number.to_bytes(size, "big")


def _verify(ders: list[bytes]) -> None:
    """Reads a chain, and finds its product by both ways, which must agree."""
    try:
        parsed = parse_chain(ders)
    except VerificationError:
        return
    anchors = _anchors()
    rules = explain_chain(parsed, anchors, NOW)
    try:
        identity = verify_chain(parsed, anchors, NOW)
    except VerificationError as error:
        refused = error.reason
    else:
        refused = None
    assert [rule.reason for rule in rules if rule.passed is False] == ([refused] if refused else [])
    if refused is not None:
        return
    assert all(rule.passed for rule in rules)
    check_profile(parsed[0])
    assert read_facts(parsed[0]) == identity.certificate
    assert anchors.by_id(identity.authority_id) is not None


def _anchors() -> TrustAnchors:
    if not _ANCHORS:
        made = [
            (world().pump.cert, 1, AuthorityState.ACTIVE, False),
            (world().valve.cert, 2, AuthorityState.RETIRING, True),
        ]
        # Anybody may claim a name: what is pending must not make the others' messages slow.
        claims = (make_authority("pump CA", number).cert for number in range(100, 120))
        made += [(claim, 2, AuthorityState.PENDING, True) for claim in claims]
        _ANCHORS.append(
            TrustAnchors(
                Anchor(
                    authority_id=AuthorityId(number),
                    product_id=ProductId(product),
                    certificate=cert,
                    key_id=key_id_of(cert.public_key()),  # type: ignore[arg-type]
                    state=state,
                    legacy=legacy,
                )
                for number, (cert, product, state, legacy) in enumerate(made, 1)
            )
        )
    return _ANCHORS[0]


_ANCHORS: Final[list[TrustAnchors]] = []


def authority(data: bytes) -> None:
    """A CA that somebody wants to register."""
    inspect_authority(_as_pem(data), now=NOW)


def proof(data: bytes) -> None:
    """What is to prove that somebody has the key of a CA."""
    verify_possession(
        _as_pem(data), world().pump.cert.public_bytes(serialization.Encoding.DER), "c" * 32, NOW
    )


def _as_pem(data: bytes) -> bytes:
    """PEM as it is, DER put into PEM."""
    if data[:1] != b"\x30":
        return data
    return b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(data) + b"-----END CERTIFICATE-----\n"


def statement(data: bytes) -> None:
    """A bundle statement: bytes as pushed, and as a payload that a trusted key signed."""
    for pushed in (data, sign_envelope(BUNDLE_KEY, STATEMENT_TYPE, data)):
        check = check_statement(pushed, TRUSTED, product="pump")
        decision = decide_push(
            pushed,
            PushFacts(
                product="pump",
                keys={key: TrustedKey(name="first", spki=spki) for key, spki in TRUSTED.items()},
                last=3,
                versions={},
                sequences={},
                stored={},
            ),
        )
        if check.statement is not None:
            assert verify_statement(pushed, TRUSTED, product="pump") == check.statement
            assert decision.statement == check.statement
        else:
            assert decision.refused is not None


def address(data: bytes) -> None:
    """What the downloads listener takes from a request: token, digest and Range, a line each."""
    token, _, rest = data.decode("utf-8", "replace").partition("\n")
    digest, _, header = rest.partition("\n")
    size = 9
    span = parse_range(header, size)
    assert not isinstance(span, tuple) or 0 <= span[0] < span[1] <= size
    if is_digest(digest):
        check_token([DOWNLOAD_KEY], token, digest, NOW)


def reply(data: bytes) -> None:
    """A reply as a device reads it, with the offer in it."""
    found = parse_reply(data)
    if found.retry_after_seconds is not None:
        assert 0 <= spread(found.retry_after_seconds) <= 3600 * 1.2
    if found.offer is not None:
        _take(found.offer)


def offer(data: bytes) -> None:
    """An offer on its own topic, as a device reads it; its statement may be another's than its artifacts say."""
    _take(parse_json(data))


def _take(document: object) -> None:
    found = parse_offer(document)
    if found is None or found.cancelled:
        return
    trust = Trust(
        keys=TRUSTED,
        product="pump",
        hardware_model="pump",
        hardware_revision="b",
        running_seq=9,
        highest_seq=9,
    )
    proven = check_offer(found, trust)
    assert proven.bundle_seq > trust.highest_seq
    assert {one.sha256 for one in found.artifacts} == {one.sha256 for one in proven.artifacts}


TARGETS: Final = {
    target.name: target
    for target in (
        Target(name="strictjson", run=strictjson, mutate=mutate_json),
        Target(name="envelope", run=envelope, mutate=mutate_json),
        Target(name="packet", run=packet, mutate=mutate_bytes),
        Target(name="message", run=message, mutate=lambda data, choose: _mutate_message(data, choose)),
        Target(name="hello", run=hello, mutate=mutate_json),
        Target(name="presence", run=presence, mutate=mutate_json),
        Target(name="progress", run=progress, mutate=mutate_json),
        Target(name="chain", run=chain, mutate=lambda data, choose: _mutate_chain(data, choose)),
        Target(name="certificate", run=certificate, mutate=mutate_der),
        Target(name="authority", run=authority, mutate=mutate_der),
        Target(name="proof", run=proof, mutate=mutate_der),
        Target(name="statement", run=statement, mutate=mutate_json),
        Target(name="address", run=address, mutate=mutate_bytes),
        Target(name="reply", run=reply, mutate=mutate_json),
        Target(name="offer", run=offer, mutate=mutate_json),
    )
}


def _mutate_message(data: bytes, choose: Choose) -> bytes:
    topic, _, payload = data.partition(b"\n")
    if choose(4) == 0:
        topic = mutate_bytes(topic, choose)
    return topic + b"\n" + mutate_json(payload, choose)


def _mutate_chain(data: bytes, choose: Choose) -> bytes:
    length = int.from_bytes(data[:2], "big")
    first = mutate_der(data[2 : 2 + length], choose)[:65_535]
    rest = data[2 + length :]
    if choose(4) == 0:
        rest = mutate_bytes(rest, choose)
    return len(first).to_bytes(2, "big") + first + rest
