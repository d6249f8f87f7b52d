"""The demo's devices: well-behaved ones of three products, some with bad clocks, some whose updates end badly;
and intruders, each refused for another reason."""

from collections.abc import Sequence
from typing import Final

from gateway.demo.script import PRODUCTS, Script
from gateway.device.factory import Fault
from gateway.device.messages import Profile
from gateway.device.plans import Churn, Fate, Forgery, Plan
from store.times import now_utc

INTRUDER: Final = "intruder-"
UNPROVEN: Final = frozenset({"bad_signature", "wrong_topic"})
"""Reasons that prove nothing, so that no row holds them: only counters of the running gateway do."""
_FATES: Final = {7: Fate.FAIL, 23: Fate.ROLL_BACK, 41: Fate.REJECT, 59: Fate.DEFER}
_FATE_EVERY: Final = 60
_CLOCKS: Final = {11: None, 13: -1_700_000_000.0, 17: 3600.0}
_CLOCK_EVERY: Final = 50


def make_plans(script: Script, devices: int, intruders: int) -> list[Plan]:
    """Devices of all products in turn, then intruders of every kind in turn.

    Args:
        devices: that are to be welcomed; one in 60 of each fate but success, one in 17 with a clock that is off.
    """
    now = now_utc()
    plans = []
    for number in range(devices):
        product = PRODUCTS[number % len(PRODUCTS)]
        name = f"{product}-{number:05}"
        plans.append(
            Plan(
                name=name,
                made=script.authorities[product].issue(name, now=now),
                profile=Profile(model=product, version=("1.0.0", "1.0.1", "1.1.0")[number // 3 % 3]),
                clock_offset_seconds=_CLOCKS.get(number % _CLOCK_EVERY, 0.0),
                mqtt5=number % 2 == 0,
                churn=Churn(times=1, after_seconds=0.5, goodbye=number % 4 == 1)
                if number % 20 == 1
                else None,
                keys=script.keys,
                fate=_FATES.get(number % _FATE_EVERY, Fate.SUCCEED),
            )
        )
    kinds = (_wrong_name, _forged, _misdirected, _expired)
    return plans + [kinds[number % len(kinds)](script, number) for number in range(intruders)]


def _wrong_name(script: Script, number: int) -> Plan:
    """A genuine certificate whose name the product does not take."""
    return _intruder(script, number, "identifier_pattern", prefix="")


def _expired(script: Script, number: int) -> Plan:
    """The broker itself lets no expired certificate in, so that this one is refused at the door."""
    return _intruder(script, number, "broker", fault=Fault.EXPIRED)


def _forged(script: Script, number: int) -> Plan:
    """A hello that another key signed."""
    return _intruder(script, number, "bad_signature", forgery=Forgery.BAD_SIGNATURE)


def _misdirected(script: Script, number: int) -> Plan:
    """A hello that was signed for somebody else's topic."""
    return _intruder(script, number, "wrong_topic", forgery=Forgery.WRONG_TOPIC)


def _intruder(
    script: Script,
    number: int,
    expected: str,
    *,
    prefix: str | None = None,
    fault: Fault | None = None,
    forgery: Forgery | None = None,
) -> Plan:
    product = PRODUCTS[number % len(PRODUCTS)]
    name = f"{INTRUDER}{number:05}" if prefix is not None else f"{product}-{INTRUDER}{number:05}"
    made = script.authorities[product].issue(name, now=now_utc(), fault=fault)
    return Plan(
        name=f"{INTRUDER}{number:05}",
        made=made,
        profile=Profile(model=product, version="6.6.6"),
        expected=expected,
        mqtt5=number % 2 == 0,
        forgery=forgery,
    )


def count_well_behaved(names: Sequence[str]) -> int:
    """How many of these are no intruders."""
    return sum(not name.startswith(INTRUDER) for name in names)
