"""Gets the artifacts of a verified offer and puts them into the spare slot; runs beside the connection.

A download that broke goes on where it stopped (`Range` with `If-Range`, RFC 9110 §13.1.5), also after a
reboot. Nothing is installed before every artifact has the digest that was signed.
"""

import contextlib
import hashlib
import shutil
import ssl
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import httpx

from gateway.device.messages import spread
from gateway.device.slots import Slots
from gateway.device.updates import Offer, OfferedArtifact
from provisioning.bundles import BundleStatement
from provisioning.errors import FleetgateError

TRIES: Final = 5
PAUSE_SECONDS: Final = 1.0
Tell = Callable[[str, dict[str, Any]], None]
"""Told each step: its state, and members of the progress message beside it."""


class InstallError(FleetgateError):
    """The update ends here; `reason` is the word to report."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class AddressRefusedError(FleetgateError):
    """An address is not served any more: a hello may bring a fresh one. What has come stays. `word`: why."""

    def __init__(self, word: str) -> None:
        super().__init__(word)
        self.word = word


class Halt:
    """Ends an update from another thread, as long as nothing of it is being written over. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._event = threading.Event()
        self._writing = False

    def set(self) -> bool:
        """Ends it. False: too late, it is being written."""
        with self._lock:
            if not self._writing:
                self._event.set()
            return not self._writing

    def is_set(self) -> bool:
        """Whether it is to end."""
        return self._event.is_set()

    def wait(self, seconds: float) -> bool:
        """Waits, and not longer than until it is to end; whether it is."""
        return self._event.wait(seconds)

    def begin_writing(self) -> bool:
        """From here on it cannot be ended. False: it was ended before."""
        with self._lock:
            self._writing = not self._event.is_set()
            return self._writing


class _HaltedError(Exception):
    """It was ended; what has come stays for the next time."""


class Installer:
    """One update.

    Args:
        slots: where it goes.
        offer: with addresses; `statement` is what was verified.
        tell: called from this thread.
        tls: whom to trust for https addresses.
        halt: ends it between two chunks; what has come stays for the next time.
    """

    def __init__(
        self,
        slots: Slots,
        offer: Offer,
        statement: BundleStatement,
        tell: Tell,
        tls: ssl.SSLContext,
        halt: Halt,
    ) -> None:
        self._slots = slots
        self._offer = offer
        self._statement = statement
        self._tell = tell
        self._tls = tls
        self._halt = halt

    def run(self) -> bool:
        """Downloads, verifies, installs. False: it was ended before it wrote anything.

        Raises:
            AddressRefusedError: an address is not served any more.
            InstallError: it ended otherwise.
        """
        try:
            files = self._get()
        except _HaltedError:
            return False
        if not self._halt.begin_writing():
            return False
        self._tell("installing", {"percent": 0})
        target = self._slots.path(self._slots.spare)
        for old in target.iterdir():
            old.unlink()
        for file, artifact in zip(files, self._offer.artifacts, strict=True):
            file.replace(target / artifact.name)
        return True

    def _get(self) -> list[Path]:
        whole = sum(artifact.size for artifact in self._offer.artifacts)
        if shutil.disk_usage(self._slots.directory).free < 2 * whole:
            raise InstallError("no_space", f"{whole} bytes are offered, twice as many must be free")
        self._tell("downloading", {"percent": 0})
        files = [self._fetch(artifact) for artifact in self._offer.artifacts]
        self._tell("downloaded", {})
        for file, artifact in zip(files, self._offer.artifacts, strict=True):
            if _digest(file) != artifact.sha256:
                file.unlink()
                raise InstallError("digest_mismatch", f"{artifact.name} is not what was signed")
        self._tell("verified", {})
        return files

    def _fetch(self, artifact: OfferedArtifact) -> Path:
        file = self._slots.downloads / artifact.sha256
        if file.exists() and file.stat().st_size == artifact.size:
            return file
        part = file.with_suffix(".part")
        last, tries = "no answer", 0
        while tries < TRIES:
            pause = PAUSE_SECONDS
            try:
                self._fetch_once(artifact, part)
                if part.stat().st_size == artifact.size:
                    part.replace(file)
                    return file
                last = f"{part.stat().st_size} of {artifact.size} bytes"
                tries += 1
            except httpx.HTTPStatusError as error:
                status = error.response.status_code
                if status in (403, 404, 410):
                    raise AddressRefusedError(_word_of(error.response)) from error
                last = str(error)
                asked = error.response.headers.get("retry-after", "")
                if status == 429 and asked.isdigit():
                    pause = spread(int(asked))  # no fault of ours, and no try
                else:
                    tries += 1
            except httpx.HTTPError as error:
                last = str(error)
                tries += 1
            if self._halt.wait(pause):
                raise _HaltedError
        raise InstallError("download_failed", f"{artifact.name}: {last}")

    def _fetch_once(self, artifact: OfferedArtifact, part: Path) -> None:
        have = part.stat().st_size if part.exists() else 0
        if have >= artifact.size:  # an answer that was longer than what was signed
            part.unlink()
            have = 0
        headers = {"Range": f"bytes={have}-", "If-Range": f'"{artifact.sha256}"'} if have else {}
        with httpx.stream(
            "GET", artifact.url, headers=headers, timeout=30.0, trust_env=False, verify=self._tls
        ) as answer:
            if answer.is_error:
                answer.read()  # the word, while the answer is open
            answer.raise_for_status()
            with part.open("ab" if answer.status_code == 206 else "wb") as output:
                for chunk in answer.iter_bytes():
                    output.write(chunk)
                    if self._halt.is_set():
                        raise _HaltedError
                    if output.tell() > artifact.size:
                        return


def _digest(file: Path) -> str:
    found = hashlib.sha256()
    with file.open("rb") as source:
        while chunk := source.read(1 << 20):
            found.update(chunk)
    return found.hexdigest()


def _word_of(answer: httpx.Response) -> str:
    with contextlib.suppress(ValueError, AttributeError):  # a proxy's page, or JSON that is no problem
        return str(answer.json().get("type", "")).rpartition(":")[2]
    return str(answer.status_code)
