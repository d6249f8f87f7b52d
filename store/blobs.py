"""Artifacts by their content: `ab/abcd…` by SHA-256, in a local folder or an object store, by one setting.

What arrives is staged in a local file, hashed and sized while it is written, and only then put in place, so
that nothing wrong is ever stored under a digest. On a local folder both file and folder are synced: what was
answered survives a power cut.
"""

import contextlib
import hashlib
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import obstore
from obstore.exceptions import BaseError
from obstore.store import LocalStore, from_url

from provisioning.errors import NotFoundError, RejectReason, SetupError, StoreError, VerificationError

CHUNK_BYTES: Final = 256 * 1024
_SUFFIX: Final = ".upload"
_CLIENT: Final[Any] = {
    "allow_http": True
}  # an object store on this machine or behind a mesh may speak plain HTTP


class Blobs:
    """A store of blobs.

    Args:
        url: a local folder, or `s3://BUCKET/PREFIX` and the like; credentials come from the environment as
            the object store's own tools read them (`AWS_ACCESS_KEY_ID`, `AWS_ENDPOINT_URL` …).
        staging: a local folder for what is being uploaded.

    Raises:
        SetupError: the address is none, or a folder cannot be made.
    """

    def __init__(self, url: str, staging: Path) -> None:
        self._staging = staging
        self._root: Path | None = None
        try:
            staging.mkdir(parents=True, exist_ok=True)
            if "://" in url:
                self._store: Any = from_url(url, client_options=_CLIENT)
            else:
                self._root = Path(url).absolute()
                self._root.mkdir(parents=True, exist_ok=True)
                self._store = LocalStore(prefix=self._root)
        except (BaseError, OSError, ValueError) as error:
            raise SetupError(f"blobs.url {url!r} cannot be used: {error}") from error
        self._url = url

    def __str__(self) -> str:
        return self._url

    def clean(self) -> int:
        """Removes what uploads that were cut off have left. Only before any begins. Returns how many."""
        left = list(self._staging.glob(f"*{_SUFFIX}"))
        for file in left:
            file.unlink(missing_ok=True)
        return len(left)

    def upload(self) -> "Upload":
        """A new upload; use it with `with`."""
        return Upload(self, self._staging / f"{secrets.token_hex(16)}{_SUFFIX}")

    def size(self, sha256: str) -> int | None:
        """Bytes of a blob, or None where it is not there.

        Raises:
            StoreError: the store cannot be reached.
        """
        try:
            return int(obstore.head(self._store, _path(sha256))["size"])
        except FileNotFoundError:
            return None
        except BaseError as error:
            raise StoreError(f"blob store {self}: {error}") from error

    async def stream(self, sha256: str, start: int, end: int) -> AsyncIterator[bytes]:
        """The bytes of a blob from `start` up to, and without, `end`, in chunks.

        Raises:
            NotFoundError: there is none.
            StoreError: the store cannot be reached.
        """
        try:
            found = await obstore.get_async(self._store, _path(sha256), options={"range": (start, end)})
            async for chunk in found.stream(min_chunk_size=CHUNK_BYTES):
                yield bytes(chunk)
        except FileNotFoundError as error:
            raise NotFoundError(f"there is no blob {sha256}") from error
        except BaseError as error:
            raise StoreError(f"blob store {self}: {error}") from error

    def remove(self, sha256: str) -> None:
        """Deletes a blob; one that is not there is no fault.

        Raises:
            StoreError: the store cannot be reached, or refuses.
        """
        try:
            with contextlib.suppress(FileNotFoundError):
                obstore.delete(self._store, _path(sha256))
        except (BaseError, OSError) as error:
            raise StoreError(f"blob store {self}: {error}") from error

    def check(self) -> None:
        """Writes, reads and deletes a probe.

        Raises:
            StoreError: it failed, and how.
        """
        path, probe = f"probe-{secrets.token_hex(8)}", b"fleetgate"
        try:
            obstore.put(self._store, path, probe)
            found = bytes(obstore.get(self._store, path).bytes())
            obstore.delete(self._store, path)
        except (BaseError, OSError) as error:
            raise StoreError(f"blob store {self}: {error}") from error
        if found != probe:
            raise StoreError(f"blob store {self}: what was written reads differently")

    def put_in_place(self, staged: Path, sha256: str) -> None:
        """Moves a verified file under its digest; one that is there already stays."""
        try:
            if self._root is None:
                obstore.put(self._store, _path(sha256), staged)
                return
            target = self._root / _path(sha256)
            target.parent.mkdir(parents=True, exist_ok=True)
            try:
                staged.replace(target)
            except OSError:  # the staging folder is on another file system
                obstore.put(self._store, _path(sha256), staged)
                _sync(target)
            for folder in (target.parent, self._root):
                _sync(folder)
        except (BaseError, OSError) as error:
            raise StoreError(f"blob store {self}: {error}") from error


class Upload:
    """Bytes on their way in. Leaving the block without `finish` leaves nothing behind."""

    def __init__(self, blobs: Blobs, file: Path) -> None:
        self._blobs = blobs
        self._path = file
        self._hash = hashlib.sha256()
        self.size = 0

    def __enter__(self) -> "Upload":
        self._file = self._path.open("wb")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._path.unlink(missing_ok=True)

    def write(self, chunk: bytes) -> None:
        """Adds bytes.

        Raises:
            StoreError: the disk refuses.
        """
        try:
            self._file.write(chunk)
        except OSError as error:
            raise StoreError(f"upload to {self._path.parent}: {error.strerror}") from error
        self._hash.update(chunk)
        self.size += len(chunk)

    def verify(self, sha256: str) -> None:
        """Raises VerificationError (ARTIFACT_MISMATCH) unless the bytes are what they should be."""
        found = self._hash.hexdigest()
        if found != sha256:
            raise VerificationError(
                RejectReason.ARTIFACT_MISMATCH,
                f"{self.size} bytes with SHA-256 {found} came, the address says {sha256}; send them again",
            )

    def finish(self, sha256: str) -> None:
        """Puts it in place, if it is what it should be.

        Raises:
            VerificationError: ARTIFACT_MISMATCH, the bytes have another digest.
            StoreError: disk or object store refuse.
        """
        self.verify(sha256)
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as error:
            raise StoreError(f"upload to {self._path.parent}: {error.strerror}") from error
        self._blobs.put_in_place(self._path, sha256)


def read_chunks(file: Path) -> Iterator[bytes]:
    """A local file in chunks, in constant memory."""
    with file.open("rb") as source:
        while chunk := source.read(CHUNK_BYTES):
            yield chunk


def _path(sha256: str) -> str:
    return f"{sha256[:2]}/{sha256}"


def _sync(path: Path) -> None:
    with contextlib.ExitStack() as stack:
        descriptor = os.open(path, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        os.fsync(descriptor)
