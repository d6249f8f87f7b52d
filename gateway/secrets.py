"""The root secret and the keys derived from it, one per use (HKDF, RFC 5869)."""

import os
from pathlib import Path
from typing import Final

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from provisioning.errors import SetupError

_NONCE_BYTES: Final = 12  # NIST SP 800-38D §5.2.1.1


def load_root_secret(path: Path) -> bytes:
    """The root secret: 32 bytes, in hex in its file.

    Raises:
        SetupError: the file is missing, readable by others, or holds something else.
    """
    try:
        text = path.read_text(encoding="ascii").strip()
        mode = path.stat().st_mode & 0o777
    except (OSError, UnicodeDecodeError) as error:
        raise SetupError(f"root secret {path} cannot be read: {error}") from error
    if mode & 0o077:
        raise SetupError(f"root secret {path} is readable by others (mode {mode:04o}): chmod 600 {path}")
    try:
        secret = bytes.fromhex(text)
    except ValueError:
        secret = b""
    if len(secret) < 32:
        raise SetupError(f"root secret {path} must hold at least 32 bytes in hex")
    return secret


def derive(root: bytes, use: str) -> bytes:
    """The 32-byte key for one use."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=f"fleetgate {use}".encode()).derive(
        root
    )


def make_client_id(root: bytes, *, broker: str, worker: str) -> str:
    """A worker's client id at a broker: secret, stable, its own; 128 bits."""
    return f"fg-{derive(root, f'client id v1 {broker} {worker}')[:16].hex()}"


def seal(root: bytes, text: str) -> bytes:
    """A short secret as it may lie in the database: AES-256-GCM under a key of its own, behind its nonce."""
    nonce = os.urandom(_NONCE_BYTES)
    return nonce + AESGCM(derive(root, "seal v1")).encrypt(nonce, text.encode(), None)


def unseal(root: bytes, sealed: bytes) -> str:
    """What was sealed.

    Raises:
        SetupError: it was sealed under another root secret, or is damaged.
    """
    nonce, rest = sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:]
    try:
        return AESGCM(derive(root, "seal v1")).decrypt(nonce, rest, None).decode()
    except (InvalidTag, ValueError) as error:
        raise SetupError("a secret in the database was sealed under another root secret") from error
