"""What a simulated device is to do, by choice, and what it saw: its clock, comings and goings, lies, and fate."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from gateway.device.factory import DeviceCertificate
from gateway.device.messages import Profile, Result
from provisioning.ids import KeyId
from provisioning.topics import DEFAULT_PREFIX


@dataclass(frozen=True, slots=True, kw_only=True)
class Broker:
    """Where devices dial."""

    host: str
    port: int
    cafile: Path
    audience: str
    prefix: str = DEFAULT_PREFIX


class Fate(StrEnum):
    """How a device's updates end."""

    SUCCEED = "succeed"
    FAIL = "fail"
    ROLL_BACK = "roll_back"
    REJECT = "reject"
    DEFER = "defer"
    SILENT = "silent"


class Forgery(StrEnum):
    """What is wrong with what a stranger says, though its certificate is genuine."""

    WRONG_TOPIC = "wrong_topic"
    BAD_SIGNATURE = "bad_signature"


@dataclass(frozen=True, slots=True, kw_only=True)
class Churn:
    """Leaving and coming back: with a goodbye, or by dropping the line so that the will speaks."""

    times: int
    after_seconds: float
    goodbye: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """One device, and what is to be expected of it: None means a welcome, else the reason of its refusal.

    Attributes:
        clock_offset_seconds: how far its clock is off; None: it has none.
        keys: pinned keys for firmware, SPKI by id; without any it takes no offers.
        fate: how its updates end; `defer_seconds` for those that it puts off first.
    """

    name: str
    made: DeviceCertificate
    profile: Profile
    expected: str | None = None
    clock_offset_seconds: float | None = 0.0
    mqtt5: bool = False
    churn: Churn | None = None
    forgery: Forgery | None = None
    keys: Mapping[KeyId, bytes] = field(default_factory=dict)
    fate: Fate = Fate.SUCCEED
    defer_seconds: float = 2.0


@dataclass(slots=True, kw_only=True)
class Outcome:
    """What a device saw.

    Attributes:
        updates: how each offer ended, by its id, as the device knows it.
        conns: its connections that were welcomed, by their `conn`.
    """

    name: str
    result: str = ""
    reason: str | None = None
    product: str | None = None
    cohort: str | None = None
    latency_ms: float | None = None
    hellos: int = 0
    connects: int = 0
    unreadable: int = 0
    updates: dict[str, str] = field(default_factory=dict)
    version: str = ""
    conns: list[str] = field(default_factory=list)

    @property
    def done(self) -> bool:
        """Whether it was welcomed or refused for good."""
        return self.result in (Result.WELCOME, Result.REJECTED)
