"""`challenges.json`: whether a hello is fresh (protocol, section 9). For authors of servers.

The form of a challenge is Fleetgate's own; devices see an opaque text.
"""

import base64
import hashlib
import hmac
from typing import Any

NOW = 1767225600000
KEY = hashlib.sha256(b"fleetgate vectors: challenge key").digest()
LIFE = 300_000


def challenge(topic_name: str, issued: int, key: bytes = KEY, length: int = 16) -> str:
    """Base64url of: 8 bytes of time, then the first 16 of HMAC-SHA256 over a label, the time and the name."""
    time = issued.to_bytes(8, "big")
    mac = hmac.new(key, b"fleetgate challenge v1\n" + time + topic_name.encode(), hashlib.sha256).digest()
    return base64.urlsafe_b64encode(time + mac[:length]).decode()


def make() -> dict[str, Any]:
    """The file."""
    cases: list[dict[str, Any]] = []

    def add(
        name: str,
        about: str,
        reason: str | None,
        *,
        ts: int | None = None,
        given: str | None = None,
        nonce: str = "nonce-2-of-pump-17",
        last: dict[str, Any] | None = None,
        again: bool = False,
    ) -> None:
        found: dict[str, Any] = {"result": "welcome", "again": again}
        if reason is not None:
            found = {"result": "challenge", "reason": reason}
        cases.append(
            {
                "id": name,
                "about": about,
                "hello": {"nonce": nonce}
                | ({} if ts is None else {"ts": ts})
                | ({} if given is None else {"challenge": given}),
                "last_accepted": last,
                "expected": found,
            }
        )

    before = {"time": NOW - 10_000, "nonce": "nonce-1-of-pump-17"}
    old = {"time": NOW - 3_600_000, "nonce": "nonce-1-of-pump-17"}
    issued = NOW - 2000
    _by_clock(add, before, old)
    add("no-time", "Neither `ts` nor `challenge`: in order, and answered with a challenge.", "clock_off")
    add("challenge-first-hello", "A challenge, two seconds old.", None, given=challenge("pump-17", issued))
    add("challenge-at-its-end", "300 s old: the last moment.", None, given=challenge("pump-17", NOW - LIFE))
    add("challenge-too-old", "300.001 s old.", "not_fresh", given=challenge("pump-17", NOW - LIFE - 1))
    add(
        "challenge-of-fast-worker", "Issued by a worker whose clock is 5 s ahead.", None,
        given=challenge("pump-17", NOW + 5000),
    )  # fmt: skip
    add("challenge-of-the-future", "5.001 s ahead.", "not_fresh", given=challenge("pump-17", NOW + 5001))
    add(
        "challenge-of-another-topic", "Issued to another device.", "challenge_invalid",
        given=challenge("pump-18", issued),
    )  # fmt: skip
    add(
        "challenge-of-another-key", "Made with another key.", "challenge_invalid",
        given=challenge("pump-17", issued, hashlib.sha256(b"another").digest()),
    )  # fmt: skip
    right = challenge("pump-17", issued)
    for name, about, text in (
        ("cut-off", "The last four characters are missing.", right[:-4]),
        ("longer", "Four characters too many.", right + "AAAA"),
        ("long-mac", "It carries the whole HMAC.", challenge("pump-17", issued, length=32)),
        ("time-changed", "Its time was set one millisecond later.", _later(right)),
        ("other-alphabet", "Text that is no base64url.", "what you sent me!"),
    ):
        add(f"challenge-{name}", about, "challenge_invalid", given=text)
    add(
        "challenge-beats-clock", "A challenge in order, beside a `ts` of 1970: the challenge counts.", None,
        ts=0, given=right,
    )  # fmt: skip
    add(
        "bad-challenge-beats-clock", "A foreign challenge beside a right `ts`: the challenge counts.",
        "challenge_invalid", ts=NOW, given=challenge("pump-18", issued),
    )  # fmt: skip
    add(
        "challenge-before-last", "Issued before the last accepted hello.", "not_fresh",
        given=challenge("pump-17", before["time"] - 1), last=before,
    )  # fmt: skip
    add(
        "challenge-used-twice", "Issued at the very time of the last accepted hello: that one answered it.",
        "not_fresh", given=challenge("pump-17", before["time"]), last=before,
    )  # fmt: skip
    add(
        "challenge-after-last", "Issued after the last accepted hello.", None, given=right, last=before
    )  # fmt: skip
    add(
        "same-nonce", "The last accepted hello again, word for word: its reply was lost.", None,
        ts=before["time"], nonce=before["nonce"], last=before, again=True,
    )  # fmt: skip
    add(
        "same-nonce-new-ts", "The last accepted nonce with a later `ts`: answered again all the same.", None,
        ts=NOW, nonce=before["nonce"], last=before, again=True,
    )  # fmt: skip
    return {
        "now": NOW,
        "topic_name": "pump-17",
        "challenge_key": KEY.hex(),
        "cases": cases,
    }


def _by_clock(add: Any, before: dict[str, Any], old: dict[str, Any]) -> None:
    add("clock-right", "`ts` is now.", None, ts=NOW)
    add("clock-300-behind", "300 s in the past: the last moment.", None, ts=NOW - LIFE)
    add("clock-301-behind", "300.001 s in the past.", "clock_off", ts=NOW - LIFE - 1)
    add("clock-5-ahead", "5 s in the future: the last moment.", None, ts=NOW + 5000)
    add("clock-6-ahead", "5.001 s in the future.", "clock_off", ts=NOW + 5001)
    add("clock-of-1970", "A clock that was never set.", "clock_off", ts=0)
    add("clock-of-2106", "A clock that is far ahead.", "clock_off", ts=4294967295000)
    add("clock-in-seconds", "`ts` in seconds, not milliseconds.", "clock_off", ts=NOW // 1000)
    add(
        "later-than-last",
        "One millisecond later than the last accepted.",
        None,
        ts=before["time"] + 1,
        last=before,
    )
    add("same-ts-new-nonce", "The `ts` of the last accepted hello, another nonce.", "not_fresh",
        ts=before["time"], last=before)  # fmt: skip
    add(
        "earlier-than-last",
        "Earlier than the last accepted.",
        "not_fresh",
        ts=before["time"] - 1,
        last=before,
    )
    add("after-an-hour", "The last accepted is an hour old.", None, ts=NOW, last=old)


def _later(text: str) -> str:
    raw = bytearray(base64.urlsafe_b64decode(text))
    raw[7] += 1
    return base64.urlsafe_b64encode(bytes(raw)).decode()
