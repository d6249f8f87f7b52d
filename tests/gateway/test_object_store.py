"""Blobs in an object store: a local S3 server, by settings alone."""

import asyncio
import hashlib
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from agents import agent_of, settings
from broker_fixtures import wait_until
from firmware import attempts_of, make_product, push, roll_out
from running import running_gateway

from gateway.mqtt.broker import free_ports
from provisioning.errors import NotFoundError, StoreError, VerificationError
from store.blobs import Blobs

SERVER = Path(sys.executable).parent / "moto_server"


@pytest.fixture(scope="module")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An S3 server with one bucket, and the environment that leads there; its address for `blobs.url`."""
    (port,) = free_ports(1)
    log = (tmp_path_factory.mktemp("s3") / "log").open("wb")
    command = [str(SERVER), "-H", "127.0.0.1", "-p", str(port)]
    with (
        log,
        subprocess.Popen(command, stdout=log, stderr=log) as server,
        pytest.MonkeyPatch.context() as patch,
    ):
        endpoint = f"http://127.0.0.1:{port}"
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        patch.setenv("AWS_ACCESS_KEY_ID", "test")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        patch.setenv("AWS_REGION", "us-east-1")

        def made() -> bool:
            try:
                return httpx.put(f"{endpoint}/fleetgate", trust_env=False).status_code == 200
            except httpx.HTTPError:
                return False

        wait_until(made, "the S3 server has made a bucket", 30)
        yield "s3://fleetgate/blobs"
        server.terminate()
        server.wait(timeout=30)


def read(blobs: Blobs, digest: str, start: int, end: int) -> bytes:
    async def collect() -> bytes:
        return b"".join([chunk async for chunk in blobs.stream(digest, start, end)])

    return asyncio.run(collect())


def test_what_is_put_is_there_under_its_digest(bucket: str, tmp_path: Path) -> None:
    blobs = Blobs(bucket, tmp_path / "staging")
    content = secrets.token_bytes(12 << 20)  # more than one part of a multi-part upload
    digest = hashlib.sha256(content).hexdigest()
    assert blobs.size(digest) is None
    with blobs.upload() as upload:
        for start in range(0, len(content), 1 << 20):
            upload.write(content[start : start + (1 << 20)])
        upload.finish(digest)
    assert blobs.size(digest) == len(content)
    assert read(blobs, digest, 0, len(content)) == content
    assert read(blobs, digest, 5_000_000, 5_000_010) == content[5_000_000:5_000_010]
    assert list((tmp_path / "staging").iterdir()) == []
    blobs.check()
    for _ in range(2):
        blobs.remove(digest)  # the second time there is none, which is no fault
        assert blobs.size(digest) is None


def test_what_differs_from_its_digest_is_never_stored(bucket: str, tmp_path: Path) -> None:
    blobs, digest = Blobs(bucket, tmp_path), hashlib.sha256(b"other").hexdigest()
    with blobs.upload() as upload:
        upload.write(b"these bytes")
        with pytest.raises(VerificationError, match="11 bytes with SHA-256"):
            upload.finish(digest)
    assert blobs.size(digest) is None
    with pytest.raises(NotFoundError, match=f"no blob {digest}"):
        read(blobs, digest, 0, 1)


def test_a_store_that_is_not_there_is_said(bucket: str, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="blob store s3://nowhere/x: "):
        Blobs("s3://nowhere/x", tmp_path).check()


def test_a_device_gets_its_firmware_from_there(bucket: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLEETGATE_BLOBS__URL", bucket)
        with running_gateway(tmp_path / "fleetgate") as running:
            product = make_product(running, "sensor")
            statement = push(running, product, size=700_000)
            view = roll_out(running, product, statement.version)
            with agent_of(settings(running, tmp_path, product)) as heard:
                wait_until(lambda: attempts_of(running, view) == {"succeeded": 1}, "it succeeds", 30)
            assert "update: verified" in heard
            assert running.settings.blobs.url == bucket
            assert Blobs(bucket, tmp_path / "s").size(statement.artifacts[0].sha256) == 700_000
