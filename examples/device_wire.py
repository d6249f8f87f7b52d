"""What device.py says and hears, from docs/protocol.md sections 2 to 4: the envelope, and one connection."""

import argparse
import hashlib
import json
import os
import queue
import secrets
import signal
import sys
import time
from base64 import b64encode
from pathlib import Path

import paho.mqtt.client as mqtt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa


def parse_options(description):
    options = argparse.ArgumentParser(description=description)
    options.add_argument("--host", required=True)
    options.add_argument("--ca", required=True, help="PEM: whom to trust for the broker's certificate")
    options.add_argument("--certificate", required=True, help="PEM: the device's own, then its issuers")
    options.add_argument("--key", required=True, help="PEM: P-256, P-384, RSA or Ed25519")
    options.add_argument("--signers", required=True, help="PEM: public keys whose firmware is taken")
    options.add_argument("--state", required=True, help="directory of the image and of what must be kept")
    options.add_argument("--port", type=int, default=8883)
    options.add_argument("--mqtt", choices=["5", "3.1.1"], default="5")
    options.add_argument("--audience", help="default: the host")
    options.add_argument("--prefix", default="fg/v1")
    options.add_argument("--model", default="pump")
    options.add_argument("--revision", help="of the hardware")
    options.add_argument("--version", default="1.0.0", help="of the image that the factory put on")
    return options.parse_args()


def encode(kind, payload):
    return f"DSSEv1 {len(kind)} {kind} {len(payload)} ".encode() + payload  # this is what is signed


def key_id(public):
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return hashlib.sha256(public.public_bytes(serialization.Encoding.DER, spki)).hexdigest()


def sign(key, message):
    """The algorithm follows from the key."""
    if isinstance(key, ec.EllipticCurvePrivateKey):
        return key.sign(message, ec.ECDSA(hashes.SHA384() if key.key_size == 384 else hashes.SHA256()))
    if isinstance(key, rsa.RSAPrivateKey):
        return key.sign(message, padding.PKCS1v15(), hashes.SHA256())
    return key.sign(message)  # Ed25519


class Identity:
    """The device's key and certificates, its topics, and the number of this start."""

    def __init__(self, args):
        self.key = serialization.load_pem_private_key(Path(args.key).read_bytes(), None)
        chain = x509.load_pem_x509_certificates(Path(args.certificate).read_bytes())
        self.chain = [b64encode(one.public_bytes(serialization.Encoding.DER)).decode() for one in chain]
        (name,) = chain[0].subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
        self.base, self.audience = f"{args.prefix}/{name.value}", args.audience or args.host
        self.boot = secrets.token_hex(8)


class Inbox(queue.SimpleQueue):
    """What happens, as pairs of a word and JSON: from the connection, the update's thread, and SIGTERM."""

    def __init__(self):
        signal.signal(signal.SIGTERM, lambda *_: self.put(("stop", "null")))

    def take(self, due):
        try:
            return self.get(timeout=None if due is None else max(0, due - time.monotonic()))
        except queue.Empty:
            return "due", "null"


class Connection:
    """One connection with its own `conn` and `seq`. What happens on it goes into the inbox."""

    def __init__(self, args, identity, inbox):
        self.identity, self.seq, self.conn = identity, 0, secrets.token_hex(8)
        version = {"5": mqtt.MQTTv5, "3.1.1": mqtt.MQTTv311}[args.mqtt]
        self.client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2, protocol=version, reconnect_on_failure=False
        )
        self.client.tls_set(args.ca, args.certificate, args.key)
        self.client.will_set(*self.message("presence", 0, state="offline"), qos=1)
        topics = [(f"{identity.base}/{verb}", 1) for verb in ("reply", "offer")]
        self.client.on_connect = lambda client, *_: client.subscribe(topics)
        self.client.on_subscribe = lambda *_: inbox.put(("due", "null"))  # now the hello is due
        self.client.on_message = lambda _client, _, got: inbox.put((got.topic.split("/")[-1], got.payload))
        self.client.on_disconnect = lambda *_: inbox.put(("disconnected", "null"))
        try:
            self.client.connect(args.host, args.port)
            self.client.loop_start()
        except OSError as error:
            print(f"no connection to {args.host}:{args.port}: {error}", flush=True)
            inbox.put(("disconnected", "null"))

    def message(self, verb, seq, **fields):
        """Returns the topic and the envelope."""
        me, topic = self.identity, f"{self.identity.base}/{verb}"
        common = {"v": 1, "aud": me.audience, "topic": topic, "conn": self.conn, "boot": me.boot, "seq": seq}
        payload, kind = json.dumps(common | fields).encode(), f"application/vnd.fleetgate.{verb}.v1+json"
        signature = b64encode(sign(me.key, encode(kind, payload))).decode()
        signatures = [{"keyid": key_id(me.key.public_key()), "sig": signature}]
        text = b64encode(payload).decode()
        return topic, json.dumps({"payloadType": kind, "payload": text, "signatures": signatures})

    def send(self, verb, **fields):
        self.seq += 1
        return self.client.publish(*self.message(verb, self.seq, **fields), qos=1)

    def leave(self, state):
        """The goodbye (section 8), then a clean DISCONNECT."""
        self.send("presence", state=state).wait_for_publish(5)
        self.client.disconnect()
        self.client.loop_stop()


def restart(connection):
    if connection is not None:
        connection.leave("rebooting")
    os.execv(sys.executable, [sys.executable, *sys.argv])
