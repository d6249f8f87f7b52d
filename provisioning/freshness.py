"""Whether a hello is new: by its clock, or by a challenge for devices without one.

A challenge is stateless: issue time and topic under an HMAC that all workers share. Whoever answers it
proves to have signed after that time. Only hellos use time; presence and progress are fresh by `seq`.
"""

import base64
import binascii
import hashlib
import hmac
from dataclasses import dataclass
from typing import Final

from provisioning.errors import RejectReason
from provisioning.ids import TopicName

PAST_MS: Final = 300_000
FUTURE_MS: Final = 5_000
CHALLENGE_LIFE_MS: Final = 300_000
_TIME_BYTES: Final = 8
_MAC_BYTES: Final = 16  # 128 bits: nobody guesses one within its 300 s


@dataclass(frozen=True, slots=True, kw_only=True)
class Freshness:
    """A hello's place in time. `at_ms` orders a credential's hellos; None where it proved nothing."""

    at_ms: int | None
    by_challenge: bool
    reason: RejectReason | None
    detail: str


def make_challenge(key: bytes, name: TopicName, now_ms: int) -> str:
    """A challenge for the device at `name`: 32 characters, good for 300 s.

    Args:
        key: 32 secret bytes that all workers share.
        name: the topic on which it will be sent; it is good for no other.
        now_ms: milliseconds since 1970, UTC.
    """
    time = now_ms.to_bytes(_TIME_BYTES, "big")
    return base64.urlsafe_b64encode(time + _mac(key, name, time)).decode()


def parse_challenge(key: bytes, name: TopicName, challenge: str) -> int | None:
    """When `challenge` was issued to `name`, in milliseconds, or None where we never issued it."""
    try:
        raw = base64.b64decode(challenge.encode("ascii"), altchars=b"-_", validate=True)
    except (binascii.Error, ValueError):
        return None
    time, mac = raw[:_TIME_BYTES], raw[_TIME_BYTES:]
    if len(time) != _TIME_BYTES or not hmac.compare_digest(mac, _mac(key, name, time)):
        return None
    return int.from_bytes(time, "big")


def _mac(key: bytes, name: TopicName, time: bytes) -> bytes:
    return hmac.new(key, b"fleetgate challenge v1\n" + time + name.encode(), hashlib.sha256).digest()[
        :_MAC_BYTES
    ]


def is_clock_off(ts: int | None, challenge: str | None, now_ms: int) -> bool:
    """Whether a hello can be answered with a challenge before any cryptography: no challenge, and a `ts`
    that is absent or more than 300 s away."""
    return challenge is None and (ts is None or abs(ts - now_ms) > PAST_MS)


def place_in_time(
    key: bytes, name: TopicName, ts: int | None, challenge: str | None, now_ms: int
) -> Freshness:
    """Where in time a hello stands. A challenge counts before a `ts` when both are given."""
    if challenge is not None:
        issued = parse_challenge(key, name, challenge)
        if issued is None:
            return Freshness(
                at_ms=None,
                by_challenge=True,
                reason=RejectReason.CHALLENGE_INVALID,
                detail="the challenge was not issued to this topic",
            )
        if not now_ms - CHALLENGE_LIFE_MS <= issued <= now_ms + FUTURE_MS:
            return Freshness(
                at_ms=None,
                by_challenge=True,
                reason=RejectReason.NOT_FRESH,
                detail=f"the challenge is {(now_ms - issued) // 1000} s old; it lives 300 s",
            )
        return Freshness(at_ms=issued, by_challenge=True, reason=None, detail="a challenge of ours, in time")
    if ts is None or not now_ms - PAST_MS <= ts <= now_ms + FUTURE_MS:
        return Freshness(
            at_ms=None,
            by_challenge=False,
            reason=RejectReason.CLOCK_OFF,
            detail="ts is absent"
            if ts is None
            else f"ts is {(ts - now_ms) // 1000:+d} s off; −300 to +5 s pass",
        )
    return Freshness(at_ms=ts, by_challenge=False, reason=None, detail="ts is within −300 to +5 s")
