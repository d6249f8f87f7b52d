"""The second half of the main job: a device is offered what it should run, gets it, and proves it runs it."""

import hashlib
import json
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from broker_fixtures import DEADLINE_SECONDS, wait_until
from cryptography.hazmat.primitives.asymmetric import ec
from databases import new_url
from firmware import KEY, KEYS, SEQUENCE, attempts_of, make_product, push, roll_out, state_of
from running import Running, TestDevice, random_name, running_gateway

from gateway import scheduler
from gateway.operations import devices, rollouts
from provisioning.attempts import AttemptState
from provisioning.bundles import BundleStatement, verify_statement
from provisioning.bundles import sign_statement as sign
from provisioning.errors import FleetgateError
from provisioning.rollouts import Plan, RolloutState
from provisioning.topics import Up
from store.firmware_schema import rollouts as table
from store.times import now_utc
from store.verify import verify


@pytest.fixture(scope="module", params=["sqlite", "postgresql"])
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    directory = tmp_path_factory.mktemp("running")
    with running_gateway(directory / "fleetgate", new_url(request.param, directory)) as gateway:
        yield gateway
        report = verify(gateway.database)
        assert report.ok, report


@pytest.fixture
def sensor(running: Running) -> str:
    """A product of the test's own: no other test's devices take its slots."""
    return make_product(running, "sensor")


class FirmwareDevice(TestDevice):
    """A test's device that also listens for offers."""

    def connect(self) -> "FirmwareDevice":
        super().connect()
        assert self.party is not None
        self.party.subscribe(self.voice.reply_topic.replace("/reply", "/offer"))
        return self

    def documents(self, kind: str) -> dict[str, Any]:
        """The next message of a kind, `reply` or `offer`, as JSON."""
        assert self.party is not None
        while True:
            message = self.party.received.get(timeout=DEADLINE_SECONDS)
            if message.topic.endswith(kind):
                document: dict[str, Any] = json.loads(message.payload)
                return document

    def greet(self, **more: Any) -> dict[str, Any]:
        """Says hello and returns the whole reply."""
        self.send(
            Up.HELLO,
            self.voice.hello(nonce=secrets.token_hex(8), ts=int(now_utc().timestamp() * 1000), **more),
        )
        return self.documents("reply")

    def report(self, offer: dict[str, Any], state: str, **more: Any) -> None:
        self.send(Up.PROGRESS, self.voice.progress(offer_id=offer["offer_id"], state=state, **more))

    def reboot(self, version: str, seq: int | None = None, **more: Any) -> dict[str, Any]:
        """Comes back as a new boot with this version, and says hello."""
        self.disconnect()
        self.voice.reboot(version=version, bundle_seq=seq)
        self.connect()
        return self.greet(**more)


@pytest.fixture
def fresh(running: Running, tmp_path: Path) -> Iterator[Any]:
    made: list[FirmwareDevice] = []

    def make(product: str, **profile: Any) -> FirmwareDevice:
        certificate = running.made[product].issue(random_name("dev"), now=now_utc())
        device = FirmwareDevice(running, certificate, tmp_path, **profile)
        made.append(device)
        return device.connect()

    yield make
    for device in made:
        device.disconnect()


def open_attempt(running: Running, device: TestDevice) -> AttemptState | None:
    found = rollouts.explain(running.desk, running.principal, device.identity.topic_name).attempt
    return None if found is None else found.state


def test_one_connection_from_factory_fresh_to_the_right_firmware(
    running: Running, fresh: Any, sensor: str
) -> None:
    statement = push(running, sensor)
    view = roll_out(running, sensor, statement.version)
    device = fresh(sensor, version="0.9.0", stays=False)
    offer = device.greet()["offer"]
    assert verify_statement(json.dumps(offer["statement"]).encode(), KEYS, product=sensor) == statement
    (artifact,) = offer["artifacts"]
    content = httpx.get(artifact["url"]).raise_for_status().content
    assert hashlib.sha256(content).hexdigest() == statement.artifacts[0].sha256
    for state in ("accepted", "downloading", "downloaded", "verified", "installing", "rebooting"):
        device.report(offer, state)
    wait_until(lambda: open_attempt(running, device) is AttemptState.REBOOTING, "the device reboots")
    welcome = device.reboot(statement.version, statement.bundle_seq)
    assert "offer" not in welcome
    assert attempts_of(running, view) == {"succeeded": 1}
    wait_until(lambda: state_of(running, view) is RolloutState.COMPLETED, "the rollout completes")
    assert httpx.get(artifact["url"]).json()["type"] == "urn:fleetgate:problem:url_withdrawn"


def test_connected_devices_get_their_offer_on_its_topic_and_its_cancellation(
    running: Running, fresh: Any, sensor: str
) -> None:
    device = fresh(sensor, version="0.9.0")
    assert "offer" not in device.greet()
    statement = push(running, sensor)
    view = roll_out(running, sensor, statement.version)
    offer = device.documents("offer")
    assert (offer["version"], offer["revision"]) == (statement.version, 1)
    again = device.greet()["offer"]
    assert (again["offer_id"], again["revision"]) == (offer["offer_id"], 1)
    rollouts.move(running.desk, running.principal, view.rollout.id, RolloutState.CANCELLED)
    cancelled = device.documents("offer")
    assert (cancelled["offer_id"], cancelled["revision"]) == (offer["offer_id"], 2)
    assert cancelled["cancelled"] is True
    assert attempts_of(running, view) == {"cancelled": 1}
    assert "offer" not in device.greet()


def test_the_pace_holds_and_ends_give_their_slots_back(running: Running, fresh: Any, sensor: str) -> None:
    statement = push(running, sensor)
    view = roll_out(running, sensor, statement.version, most_in_flight=2)
    fleet = [fresh(sensor, version="0.9.0") for _ in range(4)]
    offers = [device.greet().get("offer") for device in fleet]
    assert [offer is not None for offer in offers] == [True, True, False, False]
    fleet[0].report(offers[0], "failed", reason="no_space")
    third = fleet[2].documents("offer")
    fleet[1].report(offers[1], "deferred", defer_until=int(now_utc().timestamp() * 1000) + 3_600_000)
    fourth = fleet[3].documents("offer")
    assert {third["version"], fourth["version"]} == {statement.version}
    assert attempts_of(running, view) == {"failed": 1, "deferred": 1, "offered": 2}
    rules = rollouts.explain(running.desk, running.principal, fleet[0].identity.topic_name).decision.rules
    assert [rule.detail for rule in rules if rule.passed is False] == [
        "tried 1 of 3 times, the last one failed (no_space): not again with the same bundle"
    ]


def test_a_rollback_is_told_from_a_failure_and_from_silence(
    running: Running, fresh: Any, sensor: str
) -> None:
    statement = push(running, sensor)
    view = roll_out(running, sensor, statement.version)
    rolled, refused = fresh(sensor, version="0.9.0"), fresh(sensor, version="0.9.0")
    offer, other = rolled.greet()["offer"], refused.greet()["offer"]
    rolled.report(offer, "installing")
    wait_until(lambda: open_attempt(running, rolled) is AttemptState.INSTALLING, "it installs")
    rolled.reboot("0.9.0")
    last = {"offer_id": other["offer_id"], "result": "rejected", "reason": "battery_low"}
    refused.reboot("0.9.0", last_update=last)
    assert attempts_of(running, view) == {"rejected": 1, "rolled_back": 1}
    happened = rollouts.load_timeline(running.desk, running.principal, refused.identity.topic_name, 1000)
    assert ("attempt", "rejected", "battery_low") in [(one.kind, one.word, one.reason) for one in happened]


def test_nothing_leaks_to_another_product_or_cohort(running: Running, fresh: Any, sensor: str) -> None:
    lamp = make_product(running, "lamp")
    statement = push(running, sensor)
    view = roll_out(running, sensor, statement.version, "main")
    ours, canary = fresh(sensor, version="0.9.0"), fresh(sensor, version="0.9.0", model="lab-1")
    foreign = fresh(lamp, version="0.9.0")
    offer = ours.greet()["offer"]
    assert "offer" not in canary.greet()
    assert "offer" not in foreign.greet()
    for stranger in (canary, foreign):
        stranger.report(offer, "failed", reason="no_space")
        last = {"offer_id": offer["offer_id"], "result": "failed", "reason": "no_space"}
        stranger.greet(last_update=last)
    assert attempts_of(running, view) == {"offered": 1}
    (artifact,) = offer["artifacts"]
    other = push(running, lamp).artifacts[0].sha256
    stolen = artifact["url"].replace(artifact["sha256"], other)
    assert httpx.get(stolen).json()["type"] == "urn:fleetgate:problem:url_foreign"
    devices.set_blocked(running.desk, running.principal, ours.identity.topic_name, blocked=True)
    assert httpx.get(artifact["url"]).json()["type"] == "urn:fleetgate:problem:url_withdrawn"
    assert attempts_of(running, view) == {"cancelled": 1}


def test_an_override_goes_before_every_rollout(running: Running, fresh: Any, sensor: str) -> None:
    device = fresh(sensor, version="0.9.0")
    device.greet()
    statement = push(running, sensor)
    made = rollouts.create_override(
        running.desk,
        running.principal,
        product=sensor,
        version=statement.version,
        names=[device.identity.topic_name],
        starts_at=None,
        ends_at=None,
    )
    offer = device.documents("offer")
    assert offer["version"] == statement.version
    device.reboot(statement.version, statement.bundle_seq)
    assert open_attempt(running, device) is None
    rollouts.remove_override(running.desk, running.principal, made.id)


def test_a_bundle_that_is_not_in_order_is_refused_with_its_own_reason(running: Running, sensor: str) -> None:
    left_out = next(SEQUENCE)
    statement = push(running, sensor)
    other = ec.generate_private_key(ec.SECP256R1())
    cases = {
        "bundle_unsigned": statement.encode(),
        "signing_key_unknown": sign(other, statement),
        "bundle_exists": sign(KEY, BundleStatement(**{**_members(statement), "notes": "other"})),
        "bundle_seq": sign(
            KEY, BundleStatement(**{**_members(statement), "version": "9.9.9", "bundle_seq": left_out})
        ),
        "bundle_product": sign(KEY, BundleStatement(**{**_members(statement), "product": "lamp"})),
    }
    with running.api() as api:
        for reason, envelope in cases.items():
            answer = api.post(f"/api/v1/products/{sensor}/bundles", json={"envelope": envelope.decode()})
            assert (answer.status_code, answer.json().get("reason")) == (409, reason), answer.text
        same = api.post(
            f"/api/v1/products/{sensor}/bundles", json={"envelope": sign(KEY, statement).decode()}
        )
        assert (same.status_code, same.json()["created"]) == (201, False)
        wrong = api.put(f"/api/v1/products/{sensor}/artifacts/{'0' * 64}", content=b"x")
        assert wrong.status_code == 422
        assert wrong.json()["detail"].startswith("artifact_mismatch: ")


def _members(statement: BundleStatement) -> dict[str, Any]:
    return {name: getattr(statement, name) for name in BundleStatement.__dataclass_fields__}


def test_errors_are_ours(running: Running, sensor: str) -> None:
    with pytest.raises(FleetgateError):
        rollouts.create(
            running.desk,
            running.principal,
            product=sensor,
            version="no",
            cohorts=["main"],
            plan=Plan(),
            start_at=None,
        )


def test_figures_tell_the_success_rate_with_its_denominator_and_interval(
    running: Running, fresh: Any, sensor: str
) -> None:
    statement = push(running, sensor)
    view = roll_out(running, sensor, statement.version)
    fleet = [fresh(sensor, version="0.9.0", model=f"m{number % 2}") for number in range(3)]
    offers = [device.greet()["offer"] for device in fleet]
    fleet[0].report(offers[0], "failed", reason="no_space")
    for device in fleet[1:]:
        device.reboot(statement.version, statement.bundle_seq)
    wait_until(lambda: attempts_of(running, view) == {"failed": 1, "succeeded": 2}, "all have ended")
    figures = devices.load_figures(running.desk, running.principal, sensor)["products"][sensor]
    rate = figures["updates"]["bundles"][statement.version]
    assert (rate["succeeded"], rate["finished"], round(rate["rate"], 3)) == (2, 3, 0.667)
    assert 0 < rate["low"] < rate["rate"] < rate["high"] < 1
    assert figures["updates"]["rollouts"][str(view.rollout.id)] == rate
    assert figures["updates"]["hardware"]["m0"]["finished"] == 2
    assert (figures["failures"], figures["outcomes"]) == ({"no_space": 1}, {"failed": 1, "succeeded": 2})
    assert figures["firmware"] == {"0.9.0": 1, statement.version: 2}


def test_a_device_that_nobody_marked_is_found(running: Running, fresh: Any, sensor: str) -> None:
    """A hello that was decided while its rollout began: too late for the pass, too early for the mark."""
    device = fresh(sensor, version="0.9.0")
    device.greet()
    statement = push(running, sensor)
    running.gateway.stop()
    (view,) = rollouts.create(
        running.desk,
        running.principal,
        product=sensor,
        version=statement.version,
        cohorts=["main"],
        plan=Plan(),
        start_at=None,
    )
    with running.database.write() as tx:
        scheduler.move(tx, view.rollout, RolloutState.RUNNING, now_utc(), worker="test", actor="scheduler")
        tx.connection.execute(
            sa.update(table).where(table.c.id == view.rollout.id).values(filled=True, filled_to=1 << 62)
        )
    running.restart()
    assert device.documents("offer")["version"] == statement.version
