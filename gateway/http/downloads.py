"""The listener that devices download from: signed addresses, ranges, and a bound on how many at once.

`GET` and `HEAD /d/{token}/{sha256}/{name}` (RFC 9110: §14 ranges, §13.1.5 If-Range, §8.8.3 strong ETag). A
download streams in constant memory, and gives its place back when it ends, fails, or its client is gone.
"""

import asyncio
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Final

import structlog
from fastapi import FastAPI, Request
from fastapi.responses import Response
from starlette.concurrency import run_in_threadpool
from starlette.types import Message, Receive, Scope, Send

from gateway.http import problems
from provisioning.downloads import check_token
from provisioning.errors import NotFoundError, RejectReason, StoreError, VerificationError
from provisioning.ids import DeviceId
from store.blobs import Blobs

log: Final = structlog.get_logger()
BUSY_SECONDS: Final = 5
SEND_SECONDS: Final = 60.0
"""A client that takes no byte for so long has gone, or holds a place on purpose."""
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_RANGE: Final = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})")  # 63 bits: no blob is larger
_STATUS: Final = {
    RejectReason.URL_MALFORMED: 404,
    RejectReason.URL_FORGED: 403,
    RejectReason.URL_FOREIGN: 403,
    RejectReason.URL_EXPIRED: 410,
    RejectReason.URL_WITHDRAWN: 403,
}


@dataclass(slots=True, kw_only=True)
class DownloadTally:
    """What was served and refused, for metrics."""

    outcomes: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    sent_bytes: int = 0
    active: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class DownloadTerms:
    """What the listener needs.

    Attributes:
        keys: that addresses are signed with; the first signs, all are accepted.
        is_open: whether a device is offered an artifact now.
        most_concurrent: downloads at once; beyond it, 429.
    """

    blobs: Blobs
    keys: Sequence[bytes]
    is_open: Callable[[DeviceId, str], bool]
    clock: Callable[[], datetime]
    most_concurrent: int


def create_downloads_app(terms: DownloadTerms, tally: DownloadTally) -> FastAPI:
    """The application of the device-facing listener."""
    app = FastAPI(title="Fleetgate downloads", docs_url=None, redoc_url=None, openapi_url=None)
    problems.install(app)

    def refuse(reason: RejectReason, detail: str) -> Response:
        tally.refused[reason] += 1
        log.info("download_refused", reason=reason)
        return problems.problem(_STATUS[reason], reason, "This address is not served", detail)

    @app.api_route("/d/{token}/{sha256}/{name}", methods=["GET", "HEAD"])
    async def download(request: Request, token: str, sha256: str, name: str) -> Response:
        if not is_digest(sha256):
            return refuse(RejectReason.URL_MALFORMED, "this is no address that the gateway makes")
        try:
            device_id = check_token(terms.keys, token, sha256, terms.clock())
        except VerificationError as error:
            return refuse(error.reason, error.detail)
        if not await run_in_threadpool(terms.is_open, device_id, sha256):
            return refuse(
                RejectReason.URL_WITHDRAWN, "the device is not offered this artifact any more; say hello"
            )
        size = await run_in_threadpool(terms.blobs.size, sha256)
        if size is None:
            raise NotFoundError(f"there is no blob {sha256}; the operator restores it from the backup")
        etag = f'"{sha256}"'
        headers = {
            "ETag": etag,
            "Accept-Ranges": "bytes",
            "Cache-Control": "private, max-age=31536000, immutable",
            "Content-Type": "application/octet-stream",
        }
        asked = request.headers.get("range")
        if_range = request.headers.get("if-range")
        span = (0, size)
        status = 200
        if asked is not None and request.method == "GET" and if_range in (None, etag):
            found = parse_range(asked, size)
            if found == "unsatisfiable":
                tally.outcomes["range_unsatisfiable"] += 1
                headers["Content-Range"] = f"bytes */{size}"
                answer = problems.problem(
                    416, "range", "No such range", f"the artifact has {size} bytes, asked was {asked[:64]!r}"
                )
                answer.headers["Content-Range"] = headers["Content-Range"]
                return answer
            if isinstance(found, tuple):
                span, status = found, 206
                headers["Content-Range"] = f"bytes {span[0]}-{span[1] - 1}/{size}"
        headers["Content-Length"] = str(span[1] - span[0])
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        if tally.active >= terms.most_concurrent:
            tally.outcomes["busy"] += 1
            answer = problems.problem(
                429, "busy", "Too many downloads", f"{terms.most_concurrent} at once; come back in a moment"
            )
            answer.headers["Retry-After"] = str(BUSY_SECONDS)
            return answer
        return _Download(terms.blobs, sha256, span, status, headers, tally)

    return app


def is_digest(text: str) -> bool:
    """Whether `text` is an artifact's SHA-256: 64 lower-case hex digits."""
    return _SHA256.fullmatch(text) is not None


def parse_range(header: str, size: int) -> tuple[int, int] | str | None:
    """One byte range (RFC 9110 §14.1.2).

    Returns:
        (start, end) with `end` excluded; "unsatisfiable"; or None where the header is to be ignored: another
        unit, several ranges, or no syntax.
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None:
        return None
    first, last = match.groups()
    if not first and not last:
        return None
    if not first:
        count = int(last)
        return "unsatisfiable" if count == 0 or size == 0 else (max(0, size - count), size)
    start = int(first)
    if last and int(last) < start:
        return None
    if start >= size:
        return "unsatisfiable"
    return start, min(size, int(last) + 1) if last else size


class _Download(Response):
    """Streams a blob; whatever happens, its place is given back."""

    def __init__(
        self,
        blobs: Blobs,
        sha256: str,
        span: tuple[int, int],
        status: int,
        headers: dict[str, str],
        tally: DownloadTally,
    ) -> None:
        super().__init__(status_code=status, headers=headers)
        self._blobs = blobs
        self._sha256 = sha256
        self._span = span
        self._tally = tally
        tally.active += 1  # taken before anything can wait, given back in __call__

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gone = asyncio.create_task(_until_gone(receive))
        outcome = "broken"
        try:
            await _send(
                send, {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}
            )
            async for chunk in self._blobs.stream(self._sha256, *self._span):
                if gone.done():
                    return
                await _send(send, {"type": "http.response.body", "body": chunk, "more_body": True})
                self._tally.sent_bytes += len(chunk)
            await _send(send, {"type": "http.response.body", "body": b"", "more_body": False})
            outcome = "complete"
        except TimeoutError:
            log.info("download_stalled", sha256=self._sha256)
        except StoreError as error:
            log.error("download_failed", cause=str(error))
            raise
        finally:
            gone.cancel()
            self._tally.active -= 1
            self._tally.outcomes[outcome] += 1


async def _send(send: Callable[[Message], Awaitable[None]], message: dict[str, Any]) -> None:
    await asyncio.wait_for(send(message), SEND_SECONDS)


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
