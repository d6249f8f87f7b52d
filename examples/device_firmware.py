"""What device.py does with offers, from docs/protocol.md sections 13 to 16: verify, download, install, remember."""

import hashlib
import http.client
import json
import os
import random
import re
import ssl
import threading
import time
import urllib.error
import urllib.request
from base64 import b64decode
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from device_wire import encode, key_id

KIND = "application/vnd.fleetgate.bundle.v1+json"
NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,127}")  # never a path
FAILED = ("download_failed", "url_refused", "digest_mismatch", "install_failed")  # other reasons: rejected


class RefusedError(Exception):
    """The offer was not installed. The text is the reason, a word of section 15."""


def load_signers(path):
    blocks = re.findall(rb"-----BEGIN PUBLIC KEY-.+?-END PUBLIC KEY-----", path.read_bytes(), re.DOTALL)
    return {key_id(public): public for public in map(serialization.load_pem_public_key, blocks)}


def save(path, data):
    part = path.with_name(f".{path.name}")
    with part.open("wb") as file:  # whole or not at all, also when the power fails
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)


def is_for(entry, hardware):
    revisions = entry.get("revisions") or [hardware.get("revision")]
    return entry["model"] == hardware["model"] and hardware.get("revision") in revisions


def verify(envelope, *, signers, product, hardware, running_seq, highest_seq):
    try:
        signature, payload = envelope["signatures"][0], b64decode(envelope["payload"], validate=True)
        signer = signers[signature["keyid"]]
        algorithm = [ec.ECDSA(hashes.SHA256())] if isinstance(signer, ec.EllipticCurvePublicKey) else []
        signer.verify(b64decode(signature["sig"], validate=True), encode(KIND, payload), *algorithm)
        it = json.loads(payload)
        names = [artifact["name"] for artifact in it["artifacts"]]
        sizes = [artifact["size"] for artifact in it["artifacts"]]
        steps = {
            "statement_invalid": envelope["payloadType"] == KIND
            and it["v"] == 1
            and 1 <= len(set(names)) == len(names) <= 8
            and all(map(NAME.fullmatch, names))
            and min(sizes) >= 1
            and isinstance(it["version"], str),
            "wrong_product": it["product"] == product,
            "not_above_installed": it["bundle_seq"] > highest_seq,
            "wrong_hardware": not it.get("hardware") or any(is_for(one, hardware) for one in it["hardware"]),
            "below_floor": (it.get("floor") or 0) <= running_seq,
        }
    except (InvalidSignature, LookupError, TypeError, ValueError, AttributeError) as error:
        raise RefusedError("statement_invalid") from error
    for reason, passed in steps.items():
        if not passed:
            raise RefusedError(reason)
    return it


def download(url, size, tls):
    if not re.match("https?://", url):  # an address is not signed: it must not name a file of this device
        raise RefusedError("url_refused")
    for pause in (5, 20, 60):
        try:
            with urllib.request.urlopen(url, timeout=60, context=tls) as response:
                data = response.read(size + 1)
            if len(data) >= size:  # fewer: the connection broke
                return data
        except urllib.error.HTTPError as error:
            if error.code in (403, 404, 410):
                raise RefusedError("url_refused") from error
            pause = min(3600, int(error.headers.get("Retry-After", pause)))
        except (OSError, http.client.HTTPException):
            pass
        time.sleep(pause * random.uniform(1, 1.5))
    raise RefusedError("download_failed")


class Updates:
    """The directory `state` stands for the slot of a real device, and for memory that outlives a restart."""

    def __init__(self, args, identity, inbox):
        self.inbox, self.state, self.signers = inbox, Path(args.state), load_signers(Path(args.signers))
        self.tls = ssl.create_default_context()
        self.tls.load_verify_locations(args.ca)
        (self.state / "images").mkdir(parents=True, exist_ok=True)
        self.hardware = {"model": args.model} | ({"revision": args.revision} if args.revision else {})
        self.running = self.load("version.json", {"version": args.version, "bundle_seq": 0})
        self.kept = {"highest": 0, "revision": 0, "done": None, "last_update": None} | self.load(
            "kept.json", {}
        )
        self.keep(highest=max(self.kept["highest"], self.running["bundle_seq"]))
        self.product = self.updating = self.retried = None

    def load(self, name, default):
        return json.loads((self.state / name).read_text()) if (self.state / name).exists() else default

    def keep(self, **changes):
        self.kept |= changes
        save(self.state / "kept.json", json.dumps(self.kept).encode())

    def for_hello(self):
        last = self.kept["last_update"]
        return {"hardware": self.hardware, "firmware": self.running} | ({"last_update": last} if last else {})

    def welcome(self, reply):
        self.product = reply["product"]
        self.keep(last_update=None)  # it has arrived
        if "offer" in reply:
            self.offer(reply["offer"])

    def offer(self, offer):
        if self.product is None or offer["revision"] < self.kept["revision"]:
            return
        self.keep(revision=offer["revision"])
        if self.updating:
            if (self.updating == offer["offer_id"]) == offer.get("cancelled", False):
                self.keep(
                    done=self.updating
                )  # cancelled, or a newer offer: the thread stops before it writes
        elif not offer.get("cancelled") and offer["offer_id"] != self.kept["done"]:
            self.updating = offer["offer_id"]
            threading.Thread(target=self.update, args=(offer,), daemon=True).start()

    def update(self, offer):
        """In a thread of its own: the connection lives on meanwhile, and its heartbeat."""
        try:
            reason = self.install(offer)
        except RefusedError as error:
            reason = str(error)
        except OSError:
            reason = "install_failed"
        except (LookupError, TypeError, ValueError, AttributeError):  # not the offer of section 14
            reason = "statement_invalid"
        self.inbox.put(("ended", json.dumps({"offer_id": offer["offer_id"], "reason": reason})))

    def install(self, offer):
        statement = verify(
            offer.get("statement"),
            signers=self.signers,
            product=self.product,
            hardware=self.hardware,
            running_seq=self.running["bundle_seq"],
            highest_seq=self.kept["highest"],
        )
        urls, images = {entry["name"]: entry["url"] for entry in offer["artifacts"]}, {}
        for artifact in statement[
            "artifacts"
        ]:  # name, size and digest are the signed ones, never the offer's
            data = download(urls[artifact["name"]], artifact["size"], self.tls)
            if len(data) != artifact["size"] or hashlib.sha256(data).hexdigest() != artifact["sha256"]:
                raise RefusedError("digest_mismatch")
            images[artifact["name"]] = data
        if self.kept["done"] == offer["offer_id"]:
            raise RefusedError("called_off")
        for name, data in images.items():
            save(self.state / "images" / name, data)
        running = {"version": statement["version"], "bundle_seq": statement["bundle_seq"]}
        save(self.state / "version.json", json.dumps(running).encode())  # the switch to the new image

    def ended(self, offer_id, reason):
        """Returns whether there is a new image to start."""
        self.updating = None
        if reason is None:
            self.keep(done=offer_id, last_update={"offer_id": offer_id, "result": "succeeded"})
        elif reason == "url_refused" and self.retried != offer_id:
            self.retried = offer_id  # the hello that comes now brings a fresh address
        elif self.kept["done"] != offer_id:
            result = "failed" if reason in FAILED else "rejected"
            self.keep(done=offer_id, last_update={"offer_id": offer_id, "result": result, "reason": reason})
        return reason is None
