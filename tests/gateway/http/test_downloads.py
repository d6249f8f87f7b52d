"""Downloads over a real listener: ranges, resumption, bounds, and refusals that say which."""

import hashlib
import socket
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import httpx
import pytest
from broker_fixtures import wait_until

from gateway.http.downloads import DownloadTally, DownloadTerms, create_downloads_app, parse_range
from gateway.http.listener import Listener
from gateway.mqtt.broker import free_ports
from provisioning.downloads import make_token
from provisioning.errors import VerificationError
from provisioning.ids import DeviceId
from store.blobs import Blobs
from store.times import now_utc

KEY = b"k" * 32
DEVICE = DeviceId(7)
CONTENT = bytes(range(256)) * 98304  # 24 MiB: more than the sockets between hold
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Served:
    """A listener with one blob."""

    def __init__(self, directory: Path) -> None:
        self.blobs = Blobs(str(directory / "blobs"), directory / "uploads")
        with self.blobs.upload() as upload:
            upload.write(CONTENT)
            upload.finish(DIGEST)
        self.tally = DownloadTally()
        self.open = True
        (self.port,) = free_ports(1)
        terms = DownloadTerms(
            blobs=self.blobs,
            keys=[KEY],
            is_open=lambda device, sha256: self.open and (device, sha256) == (DEVICE, DIGEST),
            clock=now_utc,
            most_concurrent=2,
        )
        app = create_downloads_app(terms, self.tally)
        self.listener = Listener(app, name="downloads", host="127.0.0.1", port=self.port)
        self.listener.start()

    def url(self, *, seconds: float = 60, sha256: str = DIGEST, token: str | None = None) -> str:
        made = make_token(KEY, DEVICE, DIGEST, now_utc() + timedelta(seconds=seconds))
        return f"http://127.0.0.1:{self.port}/d/{token or made}/{sha256}/image.bin"


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    made = Served(tmp_path_factory.mktemp("served"))
    yield made
    made.listener.stop()


def get(url: str, method: str = "GET", **headers: str) -> httpx.Response:
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.request(method, url, headers=names, trust_env=False, timeout=15)


def test_the_whole_of_it(served: Served) -> None:
    answer = get(served.url())
    assert (answer.status_code, answer.content == CONTENT) == (200, True)
    assert answer.headers["etag"] == f'"{DIGEST}"'
    assert answer.headers["accept-ranges"] == "bytes"
    assert answer.headers["content-length"] == str(len(CONTENT))


def test_head_has_the_size_and_no_body(served: Served) -> None:
    answer = get(served.url(), "HEAD")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer.headers["content-length"] == str(len(CONTENT))


@pytest.mark.parametrize(
    ("asked", "begin", "end"),
    [("bytes=0-0", 0, 1), ("bytes=1000-", 1000, len(CONTENT)), ("bytes=-10", len(CONTENT) - 10, len(CONTENT)),
     ("bytes=5-99999999", 5, len(CONTENT))],
)  # fmt: skip
def test_one_range(served: Served, asked: str, begin: int, end: int) -> None:
    answer = get(served.url(), Range=asked)
    assert (answer.status_code, answer.content == CONTENT[begin:end]) == (206, True)
    assert answer.headers["content-range"] == f"bytes {begin}-{end - 1}/{len(CONTENT)}"


def test_if_range_of_another_content_brings_the_whole(served: Served) -> None:
    assert get(served.url(), Range="bytes=5-", If_Range='"other"').status_code == 200
    assert get(served.url(), Range="bytes=5-", If_Range=f'"{DIGEST}"').status_code == 206


def test_a_range_that_is_not_there(served: Served) -> None:
    answer = get(served.url(), Range=f"bytes={len(CONTENT)}-")
    assert answer.status_code == 416
    assert answer.headers["content-range"] == f"bytes */{len(CONTENT)}"
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("header", "found"),
    [
        ("bytes=2-1", None),
        ("bytes=0-1,3-4", None),
        ("items=0-1", None),
        ("bytes=-", None),
        ("bytes=-0", "unsatisfiable"),
        ("bytes=10-", "unsatisfiable"),
        ("bytes=-99", (0, 10)),
        ("bytes=9-9", (9, 10)),
    ],
)
def test_what_a_range_header_means(header: str, found: object) -> None:
    assert parse_range(header, 10) == found


def test_each_refusal_says_which(served: Served) -> None:
    before = served.tally.refused.copy()
    cases = {
        ("url_expired", 410): served.url(seconds=-1),
        ("url_malformed", 404): served.url(token="nonsense"),
        ("url_foreign", 403): served.url(sha256="0" * 64),
        ("url_forged", 403): served.url(token=make_token(b"x" * 32, DEVICE, DIGEST, now_utc())),
    }
    for (word, status), url in cases.items():
        answer = get(url)
        assert (answer.status_code, answer.json()["type"]) == (status, f"urn:fleetgate:problem:{word}")
    served.open = False
    assert get(served.url()).json()["type"] == "urn:fleetgate:problem:url_withdrawn"
    served.open = True
    counted = {reason: served.tally.refused[reason] - before[reason] for reason in served.tally.refused}
    assert counted == dict.fromkeys(
        ("url_expired", "url_malformed", "url_foreign", "url_forged", "url_withdrawn"), 1
    )


def test_beyond_the_bound_devices_come_back_later_and_a_client_that_goes_gives_its_place_back(
    served: Served,
) -> None:
    lines = []
    for _ in range(2):
        line = socket.create_connection(("127.0.0.1", served.port))
        line.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        path = served.url().partition(str(served.port))[2]
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert line.recv(64).startswith(b"HTTP/1.1 200")  # and reads no further
        lines.append(line)
    wait_until(lambda: served.tally.active == 2, "both places are taken")
    busy = get(served.url())
    assert (busy.status_code, busy.json()["type"]) == (429, "urn:fleetgate:problem:busy")
    assert int(busy.headers["retry-after"]) > 0
    for line in lines:
        line.close()
    wait_until(lambda: served.tally.active == 0, "the places are free again")
    assert get(served.url()).status_code == 200


def test_an_upload_that_is_not_what_it_should_be_leaves_nothing(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path / "blobs"), tmp_path / "uploads")
    with blobs.upload() as upload:
        upload.write(b"other")
        with pytest.raises(VerificationError, match="artifact_mismatch"):
            upload.finish(DIGEST)
    assert blobs.size(DIGEST) is None
    assert list((tmp_path / "uploads").iterdir()) == []


def test_many_at_once_put_the_same_artifact(tmp_path: Path) -> None:
    blobs = Blobs(str(tmp_path / "blobs"), tmp_path / "uploads")

    def put() -> None:
        with blobs.upload() as upload:
            upload.write(CONTENT)
            upload.finish(DIGEST)

    threads = [threading.Thread(target=put) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert blobs.size(DIGEST) == len(CONTENT)
