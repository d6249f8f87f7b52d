"""Certificates that no builder makes: DER edited and signed again, or made by the openssl command."""

import subprocess
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from gateway.device.factory import Authority, key_pem


def sign_again(certificate: x509.Certificate, issuer: Authority, old: bytes, new: bytes) -> bytes:
    """The certificate's DER with `old` replaced once by `new`, of the same length, and a valid signature.

    The issuer's key must be P-256.
    """
    assert len(old) == len(new)
    body = certificate.tbs_certificate_bytes
    assert body.count(old) == 1
    body = body.replace(old, new)
    assert isinstance(issuer.key, ec.EllipticCurvePrivateKey)
    signature = issuer.key.sign(body, ec.ECDSA(hashes.SHA256()))
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")  # ecdsa-with-SHA256
    return _tagged(0x30, body + algorithm + _tagged(0x03, b"\0" + signature))


def _tagged(tag: int, content: bytes) -> bytes:
    length = len(content)
    if length < 128:
        return bytes([tag, length]) + content
    size = (length.bit_length() + 7) // 8
    return bytes([tag, 0x80 | size]) + length.to_bytes(size, "big") + content


def openssl_certificate(directory: Path, issuer: Authority, common_name: str, *options: str) -> bytes:
    """A certificate in PEM as `openssl x509 -req` makes it: X.509 v1 where no extensions are asked for."""
    (directory / "ca.pem").write_bytes(issuer.pem)
    (directory / "ca.key").write_bytes(key_pem(issuer.key))
    request = ["openssl", "req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    _run(directory, *request, "-keyout", "leaf.key", "-subj", f"/CN={common_name}", "-out", "leaf.csr")
    sign = ["openssl", "x509", "-req", "-in", "leaf.csr", "-CA", "ca.pem", "-CAkey", "ca.key"]
    _run(directory, *sign, "-set_serial", "7", "-days", "1", "-out", "leaf.pem", *options)
    return (directory / "leaf.pem").read_bytes()


def openssl_root(directory: Path, *options: str) -> bytes:
    """A CA in PEM as plain `openssl req -x509` makes it."""
    request = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
    _run(directory, *request, "-keyout", "root.key", "-subj", "/CN=plain root", "-out", "root.pem", *options)
    return (directory / "root.pem").read_bytes()


def _run(directory: Path, *command: str) -> None:
    subprocess.run(command, cwd=directory, check=True, capture_output=True)


def der_of(certificate: x509.Certificate) -> bytes:
    """A certificate's DER."""
    return certificate.public_bytes(serialization.Encoding.DER)
