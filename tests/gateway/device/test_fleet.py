"""The simulated fleet against the real gateway: each behaviour ends as its plan says, and as SQL says."""

import secrets
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from broker_fixtures import wait_until
from firmware import KEYS, attempts_of, make_product, push, roll_out
from running import Running, running_gateway

from gateway.device.factory import Fault, create_authority
from gateway.device.fleet import Broker, Fleet, FleetReport
from gateway.device.messages import Profile, full_jitter, spread
from gateway.device.plans import Churn, Fate, Forgery, Plan
from gateway.operations import devices, rollouts
from provisioning.devices import DeviceState
from store.times import now_utc
from store.verify import verify

SECONDS = 40.0


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with running_gateway(tmp_path_factory.mktemp("running") / "fleetgate") as gateway:
        gateway.product("sensor")
        yield gateway
        report = verify(gateway.database)
        assert report.ok, report


def plan_of(running: Running, product: str = "sensor", **changes: Any) -> Plan:
    name = f"dev-{secrets.token_hex(4)}"
    made = changes.pop("made", None) or running.made[product].issue(name, now=now_utc())
    return Plan(**({"name": name, "made": made, "profile": Profile(version="0.9.0")} | changes))


def run(running: Running, *plans: Plan, until: Any = lambda _: True, seconds: float = SECONDS) -> FleetReport:
    place = running.installed.installation
    broker = Broker(
        host="localhost",
        port=place.device_port,
        cafile=place.broker_ca,
        audience=place.audience,
        prefix=place.prefix,
    )
    fleet = Fleet(plans, broker)
    try:
        return fleet.run(seconds, until=until)
    finally:
        fleet.close()


@pytest.mark.parametrize("mqtt5", [True, False], ids=["mqtt5", "mqtt311"])
@pytest.mark.parametrize(
    "clock", [0.0, None, -1_700_000_000.0, 3600.0], ids=["good", "none", "1970", "ahead"]
)
def test_whatever_its_clock_says_a_device_is_welcomed(
    running: Running, mqtt5: bool, clock: float | None
) -> None:
    (outcome,) = run(running, plan_of(running, mqtt5=mqtt5, clock_offset_seconds=clock)).outcomes
    assert (outcome.result, outcome.product) == ("welcome", "sensor")
    assert outcome.hellos == (1 if clock == 0.0 else 2), "one challenge, one answer"


@pytest.mark.parametrize("goodbye", [True, False], ids=["goodbye", "will"])
def test_a_device_that_comes_and_goes_is_counted_by_how_it_left(running: Running, goodbye: bool) -> None:
    churn = Churn(times=2, after_seconds=0.2, goodbye=goodbye)
    plan = plan_of(running, churn=churn)
    report = run(running, plan, until=lambda fleet: fleet.devices[0].outcome.connects >= 3)
    assert report.outcomes[0].connects == 3

    def left() -> list[str]:
        happened = rollouts.load_timeline(running.desk, running.principal, plan.made.certificate_name, 100)
        return [one.word for one in happened if one.kind == "disconnected"]

    word = "goodbye" if goodbye else "lost"
    wait_until(lambda: left().count(word) >= 2, f"it left twice by {word}: {left()}")


@pytest.mark.parametrize(
    ("forgery", "reason"),
    [(Forgery.BAD_SIGNATURE, "bad_signature"), (Forgery.WRONG_TOPIC, "wrong_topic")],
)
def test_what_was_forged_is_refused_and_leaves_no_row(
    running: Running, forgery: Forgery, reason: str
) -> None:
    plan = plan_of(running, forgery=forgery, expected=reason)
    assert run(running, plan).refused == {reason: 1}
    assert devices.list_inbox(running.desk, running.principal, product=None, reason=reason, limit=10) == []


@pytest.mark.parametrize("stranger", ["unregistered", "expired"])
def test_the_broker_lets_no_stranger_in(running: Running, stranger: str) -> None:
    now = now_utc()
    made = (
        create_authority("Nobody's CA", now=now).issue("dev-x", now=now)
        if stranger == "unregistered"
        else running.made["sensor"].issue("dev-y", now=now, fault=Fault.EXPIRED)
    )
    assert run(running, plan_of(running, made=made, expected="broker")).refused == {"broker": 1}


def test_two_that_share_a_key_are_both_quarantined(running: Running) -> None:
    now = now_utc()
    made = running.made["sensor"].issue(f"twin-{secrets.token_hex(4)}", now=now)
    twins = [plan_of(running, made=made), plan_of(running, made=made)]

    def quarantined(_: Fleet) -> bool:
        view = devices.find(running.desk, running.principal, made.certificate_name)
        return view.device.state is DeviceState.QUARANTINED

    report = run(running, *twins, until=quarantined, seconds=60)
    assert quarantined(None), report  # type: ignore[arg-type]
    found = devices.list_inbox(
        running.desk, running.principal, product="sensor", reason="device_quarantined", limit=10
    )
    assert made.certificate_name in {item.topic_name for item in found}


@pytest.mark.parametrize(
    ("fate", "state", "reason"),
    [
        (Fate.SUCCEED, "succeeded", {}),
        (Fate.DEFER, "succeeded", {}),
        (Fate.FAIL, "failed", {"install_failed": 1}),
        (Fate.ROLL_BACK, "rolled_back", {"health_check_failed": 1}),
        (Fate.REJECT, "rejected", {"battery_low": 1}),
        (Fate.SILENT, "timed_out", {"not_accepted_in_time": 1}),
    ],
)
def test_an_update_ends_as_it_is_fated(
    running: Running, fate: Fate, state: str, reason: dict[str, int]
) -> None:
    product = make_product(running, "sensor")
    statement = push(running, product)
    view = roll_out(
        running, product, statement.version, accept_seconds=2 if fate is Fate.SILENT else 60, tries=1
    )
    plan = plan_of(running, product, keys=KEYS, fate=fate, defer_seconds=0.5)
    report = run(running, plan, until=lambda _: attempts_of(running, view) == {state: 1})
    assert attempts_of(running, view) == {state: 1}
    figures = devices.load_figures(running.desk, running.principal, product)["products"][product]
    assert figures["failures"] == reason
    if fate is Fate.SUCCEED:
        assert report.outcomes[0].version == statement.version


def test_a_device_comes_back_after_the_broker_was_away(tmp_path: Path) -> None:
    with running_gateway(tmp_path / "fleetgate") as other:
        other.product("sensor")
        plan = plan_of(other)
        state = {"stopped": False}

        def back(fleet: Fleet) -> bool:
            if not state["stopped"]:
                state["stopped"] = True
                other.installed.broker.stop()
                other.installed.broker.start()
            return fleet.devices[0].outcome.connects >= 2 and fleet.devices[0].outcome.hellos >= 2

        report = run(other, plan, until=back)
        assert (report.outcomes[0].result, report.outcomes[0].connects >= 2) == ("welcome", True)


def test_waits_are_spread_and_bounded() -> None:
    assert all(0.5 <= full_jitter(tries) <= 600 for tries in range(1, 40) for _ in range(20))
    assert len({full_jitter(5) for _ in range(50)}) > 10
    assert all(60 <= spread(60) <= 72 for _ in range(50))
    assert timedelta(seconds=full_jitter(1)) <= timedelta(seconds=5)
