"""The reference agent at level 3: it installs what was signed for it, goes on after a break, and rolls back."""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from agents import agent_of, settings
from broker_fixtures import wait_until
from cryptography.hazmat.primitives.asymmetric import ec
from firmware import attempts_of, make_product, push, roll_out
from running import Running, running_gateway

from gateway.device.slots import Image, Slots
from provisioning.envelope import key_id_of, spki_of


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_gateway(tmp_path_factory.mktemp("running") / "fleetgate") as gateway:
        yield gateway


def test_it_installs_reboots_and_is_seen_running_the_new_image(running: Running, tmp_path: Path) -> None:
    product = make_product(running, "sensor")
    statement = push(running, product, size=300_000)
    view = roll_out(running, product, statement.version)
    with agent_of(settings(running, tmp_path, product)) as heard:
        wait_until(lambda: attempts_of(running, view) == {"succeeded": 1}, f"it succeeds: {heard}", 30)
    slots = Slots(tmp_path / "state", Image(version="factory"))
    assert (slots.state.active, slots.running.version) == ("b", statement.version)
    assert slots.state.highest_seq == statement.bundle_seq
    installed = (tmp_path / "state" / "b" / "image.bin").read_bytes()
    assert hashlib.sha256(installed).hexdigest() == statement.artifacts[0].sha256
    steps = [line.removeprefix("update: ") for line in heard if line.startswith("update: ")]
    assert steps == ["accepted", "downloading", "downloaded", "verified", "installing", "rebooting"]


def test_a_broken_download_goes_on_where_it_stopped(running: Running, tmp_path: Path) -> None:
    product = make_product(running, "sensor")
    statement = push(running, product, size=200_000)
    (artifact,) = statement.artifacts
    blob = running.settings.blobs.url + f"/{artifact.sha256[:2]}/{artifact.sha256}"
    half = Path(blob).read_bytes()[:120_000]
    chosen = settings(running, tmp_path, product)
    Slots(tmp_path / "state", Image(version="0.9.0"))
    (tmp_path / "state" / "downloads" / f"{artifact.sha256}.part").write_bytes(half)
    before = running.gateway.http.downloads.sent_bytes
    view = roll_out(running, product, statement.version)
    with agent_of(chosen) as heard:
        wait_until(lambda: attempts_of(running, view) == {"succeeded": 1}, f"it succeeds: {heard}", 30)
    assert running.gateway.http.downloads.sent_bytes - before == 80_000


def test_an_image_that_fails_its_health_check_is_rolled_back(running: Running, tmp_path: Path) -> None:
    product = make_product(running, "sensor")
    statement = push(running, product)
    view = roll_out(running, product, statement.version)
    with agent_of(replace(settings(running, tmp_path, product), rolls_back=True)) as heard:
        wait_until(lambda: attempts_of(running, view) == {"rolled_back": 1}, f"it rolls back: {heard}", 30)
    slots = Slots(tmp_path / "state", Image(version="factory"))
    assert (slots.state.active, slots.running.version, slots.state.highest_seq) == ("a", "0.9.0", 0)


def test_what_another_key_signed_is_refused(running: Running, tmp_path: Path) -> None:
    product = make_product(running, "sensor")
    statement = push(running, product)
    view = roll_out(running, product, statement.version)
    other = ec.generate_private_key(ec.SECP256R1()).public_key()
    chosen = replace(settings(running, tmp_path, product), signing_keys={key_id_of(other): spki_of(other)})
    with agent_of(chosen) as heard:
        wait_until(lambda: attempts_of(running, view) == {"rejected": 1}, f"it refuses: {heard}", 30)
    assert any("statement_invalid" in line for line in heard)


def test_state_is_whole_after_every_step(tmp_path: Path) -> None:
    slots = Slots(tmp_path, Image(version="1.0.0", bundle_seq=1))
    slots.take_offer({"offer_id": "7", "revision": 3}, 3)
    slots.begin_trial(Image(version="2.0.0", bundle_seq=2), "7")
    again = Slots(tmp_path, Image(version="other"))
    assert (again.running.version, again.state.active, again.state.revision) == ("2.0.0", "a", 3)
    again.settle()
    assert json.loads((tmp_path / "state.json").read_text())["highest_seq"] == 2
    last = Slots(tmp_path, Image(version="other"))
    assert (last.state.active, last.state.offer, last.state.trial) == ("b", None, None)
