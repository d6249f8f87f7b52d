"""Addresses of artifacts: bound to one device and one artifact, signed, and good for a while (protocol, section 16).

A token is base64url of version ∥ device id ∥ expiry ∥ MAC; the MAC also covers the artifact. Whoever has the
address can download: it is no secret worth keeping, since firmware is signed, and it ends by itself.
"""

import base64
import binascii
import hashlib
import hmac
import struct
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from provisioning.errors import RejectReason, VerificationError
from provisioning.ids import DeviceId

_VERSION: Final = 1
_HEAD: Final = struct.Struct(">BQQ8s")  # version, device, expiry in ms, the digest's first 8 bytes
_MAC_BYTES: Final = 16  # 128 bits: forging takes 2**127 tries against a live server


def make_token(key: bytes, device_id: DeviceId, sha256: str, expires_at: datetime) -> str:
    """The token of one device's address for one artifact.

    Args:
        key: 32 bytes that all workers share.
        sha256: of the artifact, 64 hex digits.
    """
    expires = int(expires_at.timestamp() * 1000)
    head = _HEAD.pack(_VERSION, device_id, expires, bytes.fromhex(sha256)[:8])
    return base64.urlsafe_b64encode(head + _mac(key, head, sha256)).rstrip(b"=").decode()


def check_token(keys: Sequence[bytes], token: str, sha256: str, now: datetime) -> DeviceId:
    """Whose address this is.

    Args:
        keys: those accepted; during a rotation the old one too.
        sha256: the artifact that is asked for.

    Raises:
        VerificationError: URL_MALFORMED, URL_FORGED, URL_FOREIGN (made for another artifact), URL_EXPIRED.
    """
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    written = base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
    if len(raw) != _HEAD.size + _MAC_BYTES or raw[0] != _VERSION or written != token:
        raise VerificationError(RejectReason.URL_MALFORMED, "this is no address that the gateway makes")
    head, mac = raw[: _HEAD.size], raw[_HEAD.size :]
    _, device_id, expires, begin = _HEAD.unpack(head)
    if begin != bytes.fromhex(sha256)[:8]:
        raise VerificationError(RejectReason.URL_FOREIGN, "the address was made for another artifact")
    if not any(hmac.compare_digest(_mac(key, head, sha256), mac) for key in keys):
        raise VerificationError(RejectReason.URL_FORGED, "the address was not made by this gateway")
    if now.timestamp() * 1000 > expires:
        raise VerificationError(
            RejectReason.URL_EXPIRED, "the address has expired; say hello, and the offer brings a fresh one"
        )
    return DeviceId(device_id)


def _mac(key: bytes, head: bytes, sha256: str) -> bytes:
    return hmac.digest(key, head + bytes.fromhex(sha256), hashlib.sha256)[:_MAC_BYTES]
