"""The root secret and the keys derived from it, one per use (HKDF, RFC 5869)."""

from pathlib import Path

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from provisioning.errors import SetupError


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
