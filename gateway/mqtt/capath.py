"""The directory of trusted CAs that the broker's device listener reads (`capath`).

OpenSSL looks a CA up at each handshake by `<subject hash>.0`, `.1`, … and stops at the first number that is
absent, so a CA put here is trusted at once, and numbers are kept without gaps. mosquitto goes on trusting a
CA that was taken away until it restarts; refusing its devices is the gateway's own work, not this module's.

Every file is written under a temporary name and renamed: the broker never sees half a certificate.
"""

import contextlib
import fcntl
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from OpenSSL import crypto

from provisioning.errors import InvalidError, SetupError

DIRECTORY_MODE: Final = 0o2750  # setgid: what is written here belongs to the broker's group
FILE_MODE: Final = 0o640
_LINK: Final = re.compile(r"[0-9a-f]{8}\.[0-9]+")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Entry:
    fingerprint: str  # SHA-256 of the DER, hex
    subject_hash: str  # OpenSSL's, 8 hex digits
    pem: bytes


def _read(pem: bytes) -> _Entry:
    try:
        certificate = x509.load_pem_x509_certificate(pem)
        subject_hash = crypto.X509.from_cryptography(certificate).subject_name_hash()
    except (ValueError, crypto.Error) as error:
        raise InvalidError(f"not a certificate in PEM: {error}") from error
    return _Entry(
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
        subject_hash=f"{subject_hash:08x}",
        pem=certificate.public_bytes(Encoding.PEM),
    )


def subject_hash(pem: bytes) -> str:
    """OpenSSL's hash of the certificate's subject: 8 hex digits, as `openssl x509 -hash` prints them.

    Raises:
        InvalidError: `pem` is not a certificate.
    """
    return _read(pem).subject_hash


@dataclass(frozen=True, slots=True)
class CaPath:
    """The CAs in `directory`, which exists already (`fleetgate init` makes it with the broker's group).

    Whoever changes it waits for the folder's lock, so any number of threads and processes may; the broker reads it
    at any time.
    """

    directory: Path

    def add(self, name: str, certificate_pem: bytes) -> str:
        """Trusts a CA from the next handshake on; adding it again changes nothing.

        Args:
            name: a word for people who look into the directory; part of the file's name.
            certificate_pem: the CA's certificate, one, in PEM.

        Returns: its fingerprint, SHA-256 in hex.

        Raises:
            InvalidError: not a certificate.
            SetupError: the directory cannot be written.
        """
        entry = _read(certificate_pem)
        try:
            with self._locked():
                self._add(name, entry)
        except OSError as error:
            raise SetupError(f"cannot write capath {self.directory}: {error}") from error
        return entry.fingerprint

    def remove(self, fingerprint: str) -> bool:
        """Takes a CA away; the broker trusts it until its restart all the same.

        Returns: whether it was there.

        Raises:
            SetupError: the directory cannot be written.
        """
        try:
            with self._locked():
                return self._remove(fingerprint)
        except OSError as error:
            raise SetupError(f"cannot write capath {self.directory}: {error}") from error

    def sync(self, certificate_pems: Iterable[bytes] | Callable[[], Iterable[bytes]]) -> None:
        """Makes the directory hold exactly these CAs, adding before taking away.

        Args:
            certificate_pems: them, or what reads them once nobody else changes the directory any more.

        Raises:
            InvalidError: one of them is not a certificate; nothing has changed then.
            SetupError: the directory cannot be written.
        """
        try:
            with self._locked():
                pems = certificate_pems() if callable(certificate_pems) else certificate_pems
                wanted = {entry.fingerprint: entry for entry in map(_read, pems)}
                for entry in wanted.values():
                    self._add("ca", entry)
                for fingerprint in self.fingerprints() - wanted.keys():
                    self._remove(fingerprint)
        except OSError as error:
            raise SetupError(f"cannot write capath {self.directory}: {error}") from error

    def fingerprints(self) -> set[str]:
        """The CAs that are trusted now, by fingerprint (SHA-256, hex).

        Raises:
            SetupError: the directory cannot be read.
        """
        try:
            return {_read(link.read_bytes()).fingerprint for link in self._links()}
        except OSError as error:
            raise SetupError(f"cannot read capath {self.directory}: {error}") from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(folder, fcntl.LOCK_EX)
            yield
        finally:
            os.close(folder)

    def _links(self) -> list[Path]:
        return sorted(path for path in self.directory.iterdir() if _LINK.fullmatch(path.name))

    def _numbered(self, subject: str) -> list[Path]:
        links = [path for path in self._links() if path.name.startswith(f"{subject}.")]
        return sorted(links, key=lambda path: int(path.suffix[1:]))

    def _add(self, name: str, entry: _Entry) -> None:
        links = self._numbered(entry.subject_hash)
        if any(_read(link.read_bytes()).fingerprint == entry.fingerprint for link in links):
            return
        word = re.sub(r"[^A-Za-z0-9_-]+", "-", name)[:40].strip("-") or "ca"
        target = self.directory / f"{word}-{entry.fingerprint[:16]}.pem"
        temporary = self.directory / f".{target.name}.new"
        temporary.unlink(missing_ok=True)
        temporary.touch(mode=FILE_MODE)
        temporary.chmod(FILE_MODE)  # whatever the umask
        temporary.write_bytes(entry.pem)
        temporary.rename(target)
        number = int(links[-1].suffix[1:]) + 1 if links else 0
        link = self.directory / f".{entry.subject_hash}.{number}.new"
        link.unlink(missing_ok=True)
        link.symlink_to(target.name)
        link.rename(self.directory / f"{entry.subject_hash}.{number}")

    def _remove(self, fingerprint: str) -> bool:
        for link in self._links():
            if _read(link.read_bytes()).fingerprint != fingerprint:
                continue
            target = link.resolve()
            last = self._numbered(link.stem)[-1]
            if last != link:
                last.rename(link)  # the last number takes the free place: no gap is ever seen
            else:
                link.unlink()
            target.unlink()
            return True
        return False
