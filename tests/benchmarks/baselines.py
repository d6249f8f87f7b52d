"""What the machine and the broker do without us, measured in the same run: B1, B2, B3 and B5.

None of it is our code: `cryptography` and mosquitto alone, so that no improvement of ours moves the yardstick.
"""

import base64
import json
import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.verification import Criticality, ExtensionPolicy, PolicyBuilder, Store

from benchmarks.helpers import Helper, Side
from benchmarks.wire import PUBLISH, Access, Line, drive, publish_packet
from benchmarks.world import World
from store.times import now_utc

MESSAGE_BYTES: Final = 1500
_WINDOW: Final = 1000
_ECDSA: Final = ec.ECDSA(hashes.SHA256())
_ANY: Final = Criticality.AGNOSTIC


def measure_b5(seconds: float) -> float:
    """B5: P-256 verifies per second of one thread."""
    key = ec.generate_private_key(ec.SECP256R1())
    data = b"x" * 1000
    signature, public = key.sign(data, _ECDSA), key.public_key()
    return _rate(lambda: public.verify(signature, data, _ECDSA), seconds)


def measure_b2(packets: Sequence[bytes], authority: x509.Certificate, seconds: float) -> float:
    """B2: first hellos per second of one thread, of which only the cryptography is done.

    Reads the certificate, validates its path to the CA, and verifies the message's signature with its key.
    JSON and base64 are read beforehand.
    """
    leaf = (
        ExtensionPolicy.webpki_defaults_ee()
        .may_be_present(x509.SubjectAlternativeName, _ANY, None)
        .may_be_present(x509.AuthorityKeyIdentifier, _ANY, None)
        .may_be_present(x509.KeyUsage, _ANY, None)
        .may_be_present(x509.ExtendedKeyUsage, _ANY, None)
    )
    policy = (
        PolicyBuilder()
        .store(Store([authority]))
        .max_chain_depth(2)
        .extension_policies(ca_policy=ExtensionPolicy.webpki_defaults_ca(), ee_policy=leaf)
    )
    hellos = [_take_apart(packet) for packet in packets]
    at, now = 0, now_utc()

    def verify_next() -> None:
        nonlocal at
        der, signed, signature = hellos[at % len(hellos)]
        at += 1
        _verify(der, signed, signature, policy, now)

    return _rate(verify_next, seconds)


def _verify(der: bytes, signed: bytes, signature: bytes, policy: PolicyBuilder, now: datetime) -> None:
    certificate = x509.load_der_x509_certificate(der)
    policy.time(now).build_client_verifier().verify(certificate, [])
    key = certificate.public_key()
    assert isinstance(key, ec.EllipticCurvePublicKey)
    key.verify(signature, signed, _ECDSA)


def _take_apart(packet: bytes) -> tuple[bytes, bytes, bytes]:
    """Certificate, signed bytes and signature of a hello (protocol, section 4)."""
    envelope = json.loads(packet[packet.index(b'{"payloadType') :])
    kind, payload = envelope["payloadType"].encode(), base64.b64decode(envelope["payload"])
    signed = b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)
    der = base64.b64decode(json.loads(payload)["chain"][0])
    return der, signed, base64.b64decode(envelope["signatures"][0]["sig"])


def measure_b3(world: World, messages: int) -> float:
    """B3: messages per second from one publisher through the broker to one subscriber, all at QoS 1."""
    topic = "bench/one-to-one"
    packets = [publish_packet(topic, b"x" * MESSAGE_BYTES, number) for number in range(messages)]
    with Helper(_subscribe, world.access, topic, messages) as subscriber:
        subscriber.wait_ready()
        with world.line() as line:
            drive(line, packets, window=_WINDOW, heard=None)
        return messages / subscriber.result()


def _subscribe(side: Side, access: Access, topic: str, messages: int) -> float:
    """Takes and acknowledges that many; returns the seconds from the first to the last."""
    with Line(access, "bench-subscriber") as line:
        line.subscribe(topic, 1)
        side.say_ready()
        at = 2 + len(topic)  # where the packet identifier stands
        taken, first = 0, 0.0
        while taken < messages:
            line.wait(1.0)
            ids = [body[at : at + 2] for kind, body in line.read() if kind & 0xF0 == PUBLISH]
            if ids:
                first = first or time.perf_counter()
                taken += len(ids)
                line.write(b"".join(b"\x40\x02" + one for one in ids))
        return time.perf_counter() - first


def measure_generator(world: World, packets: Sequence[bytes]) -> float:
    """Hellos per second that the load generator gets rid of: the broker takes them, and nobody else is there."""
    with world.line() as line:
        return len(packets) / drive(line, packets, window=_WINDOW, heard=None)


def _rate(action: object, seconds: float) -> float:
    assert callable(action)
    done, started = 0, time.perf_counter()
    while True:
        for _ in range(100):
            action()
        done += 100
        took = time.perf_counter() - started
        if took >= seconds:
            return done / took
