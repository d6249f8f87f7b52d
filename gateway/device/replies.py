"""What a device does after a reply (protocol, sections 7 and 11).

Pure: what the device waits for and how often it has asked are arguments. A reply is not signed, so nothing in it may
make a device silent for long, or speak without a pause.
"""

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from gateway.device.messages import (
    LEAST_HEARTBEAT_SECONDS,
    MOST_WAIT_SECONDS,
    Reply,
    Result,
    full_jitter,
)

MOST_ANSWERS: Final = 3
"""Challenges in a row that are answered at once (section 11)."""


class Action(StrEnum):
    """What follows from a reply."""

    IGNORE = "ignore"
    ANSWER = "answer"
    WAIT = "wait"
    WELCOME = "welcome"


@dataclass(frozen=True, slots=True, kw_only=True)
class Next:
    """What to do next.

    Attributes:
        wait_seconds: until the next hello, with WAIT.
        challenge, with_chain: what the next hello carries, with ANSWER; the chain beside what it would carry anyway.
        heartbeat_seconds: how often to report `online`, with WELCOME; None: as before.
    """

    action: Action
    wait_seconds: float = 0.0
    challenge: str | None = None
    with_chain: bool = False
    heartbeat_seconds: float | None = None


def decide_next(reply: Reply, *, nonce: str, hellos: int, challenges: int) -> Next:
    """What a device does after a reply.

    Args:
        reply: as `parse_reply` read it.
        nonce: of the newest unanswered hello; empty: none is.
        hellos: sent since the last welcome, from 1.
        challenges: answered at once since the last pause or welcome.
    """
    if not nonce or reply.nonce not in (nonce, None):
        return Next(action=Action.IGNORE)
    match reply.result:
        case Result.WELCOME:
            beat = reply.heartbeat_seconds
            return Next(
                action=Action.WELCOME,
                heartbeat_seconds=None if beat is None else max(LEAST_HEARTBEAT_SECONDS, beat),
            )
        case Result.CHALLENGE if reply.challenge is not None and challenges < MOST_ANSWERS:
            return Next(
                action=Action.ANSWER,
                challenge=reply.challenge,
                with_chain=reply.reason == "chain_required",
            )
        case Result.CHALLENGE | Result.PENDING | Result.BUSY | Result.REJECTED:
            asked = min(reply.retry_after_seconds or 0.0, MOST_WAIT_SECONDS)
            return Next(action=Action.WAIT, wait_seconds=asked + full_jitter(max(1, hellos)))
