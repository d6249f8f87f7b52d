"""`replies.json`: what a device does with what comes on its `reply` topic (protocol, sections 7 and 11)."""

from typing import Any

from making.keys import b64, compact

NONCE = "q3J8vN0xTtWm2K5a"


def reply(result: str, **changes: Any) -> dict[str, Any]:
    """A reply with nothing wrong in it."""
    made: dict[str, Any] = {
        "v": 1,
        "for": NONCE,
        "result": result,
        "reason": None,
        "retry_after_seconds": None,
        "server_time": 1767225600123,
    }
    if result == "welcome":
        made |= {
            "device": {"id": "252116099483605971", "identifier": "pump-17"},
            "product": "pump",
            "cohort": "main",
            "heartbeat_seconds": 60,
        }
    if result == "challenge":
        made |= {"reason": "clock_off", "challenge": "AAABm3cpJAAhN3k-2h7z9b1Z0lYcWQeT"}
    return made | changes


def _without(result: str, member: str) -> dict[str, Any]:
    return {name: value for name, value in reply(result).items() if name != member}


def make() -> dict[str, Any]:
    """The file."""
    cases: list[dict[str, Any]] = []

    def add(
        name: str,
        about: str,
        message: dict[str, Any] | bytes,
        action: str,
        *,
        waiting: bool = True,
        hellos: int = 1,
        challenges: int = 0,
        **more: Any,
    ) -> None:
        data = message if isinstance(message, bytes) else compact(message)
        cases.append(
            {
                "id": name,
                "about": about,
                "device": {
                    "unanswered_nonce": NONCE if waiting else None,
                    "hellos": hellos,
                    "challenges_answered": challenges,
                },
                "message": b64(data),
                "expected": {"action": action, **more},
            }
        )

    def waits(name: str, about: str, message: dict[str, Any], least: int, **more: Any) -> None:
        hellos = more.get("hellos", 1)
        most = least + min(600, 5 * 2**hellos)
        add(name, about, message, "wait", wait_seconds={"least": least, "most": most}, **more)

    beat = {"heartbeat_seconds": 60}
    add("welcome", "A welcome.", reply("welcome"), "welcome", **beat)
    add("welcome-without-cohort", "A welcome of a device that has no cohort.", _without("welcome", "cohort"),
        "welcome", **beat)  # fmt: skip
    add(
        "welcome-quarantined", "A welcome with a reason: the device is quarantined and stays connected.",
        reply("welcome", reason="device_quarantined"), "welcome", **beat,
    )  # fmt: skip
    add(
        "welcome-heartbeat-1", "`heartbeat_seconds` 1: taken for 10.", reply("welcome", heartbeat_seconds=1),
        "welcome", heartbeat_seconds=10,
    )  # fmt: skip
    add(
        "welcome-heartbeat-0", "`heartbeat_seconds` 0: taken for 10.", reply("welcome", heartbeat_seconds=0),
        "welcome", heartbeat_seconds=10,
    )  # fmt: skip
    add(
        "welcome-unknown-members", "Members of a later version are ignored.",
        reply("welcome", configuration={"v": 1}, weather=["rain"]), "welcome", **beat,
    )  # fmt: skip
    add("answer-once", "The same welcome a second time: nothing is unanswered any more.", reply("welcome"),
        "ignore", waiting=False)  # fmt: skip
    add("other-nonce", "`for` is the nonce of an earlier hello.", reply("welcome", **{"for": "an-earlier-one-16"}),
        "ignore")  # fmt: skip
    add("nonce-other-case", "`for` differs in case.", reply("welcome", **{"for": NONCE.lower()}), "ignore")
    add(
        "challenge-other-nonce", "A challenge for an earlier hello is not answered.",
        reply("challenge", **{"for": "an-earlier-one-16"}), "ignore",
    )  # fmt: skip
    add("challenge", "A challenge: answered at once, with it in the place of `ts`.", reply("challenge"), "answer",
        challenge=reply("challenge")["challenge"], with_chain=False)  # fmt: skip
    add(
        "chain-required", "A challenge for want of the chain: answered at once, with both.",
        reply("challenge", reason="chain_required"), "answer",
        challenge=reply("challenge")["challenge"], with_chain=True,
    )  # fmt: skip
    add(
        "challenge-third", "The third challenge in a row: the last one that is answered at once.",
        reply("challenge"), "answer", hellos=3, challenges=2,
        challenge=reply("challenge")["challenge"], with_chain=False,
    )  # fmt: skip
    waits(
        "challenge-fourth", "The fourth challenge in a row: the pause applies.", reply("challenge"), 0,
        hellos=4, challenges=3,
    )  # fmt: skip
    waits(
        "chain-required-fourth", "The fourth in a row, this time for the chain: the pause applies.",
        reply("challenge", reason="chain_required"), 0, hellos=4, challenges=3,
    )  # fmt: skip
    waits(
        "rejected", "A refusal with a pause.",
        reply("rejected", reason="unknown_ca", retry_after_seconds=600), 600,
    )  # fmt: skip
    waits(
        "rejected-unknown-reason", "A reason of a later version: as `internal_error`, and the pause holds.",
        reply("rejected", reason="moon_in_eclipse", retry_after_seconds=120), 120,
    )  # fmt: skip
    waits("rejected-for-good", "Nothing is for good: without a pause of the gateway, the device's own.",
          reply("rejected", reason="device_retired"), 0)  # fmt: skip
    waits(
        "pending", "A person must look.",
        reply("pending", reason="approval_required", retry_after_seconds=60), 60,
    )  # fmt: skip
    waits("busy", "Not now.", reply("busy", reason="internal_error", retry_after_seconds=30), 30)
    waits("unknown-result", "A result of a later version: as `busy`.",
          reply("come_on_tuesday", retry_after_seconds=45), 45)  # fmt: skip
    waits("result-other-case", "`WELCOME` is no `welcome`: as any unknown result, as `busy`.",
          reply("WELCOME", retry_after_seconds=45), 45)  # fmt: skip
    waits("busy-tenth", "After ten hellos the device's own part is 600 s at most.",
          reply("busy", retry_after_seconds=30), 30, hellos=10)  # fmt: skip
    waits("busy-without-pause", "No pause of the gateway: the device's own.", reply("busy"), 0, hellos=3)
    waits("retry-after-a-day", "A pause above an hour is taken for an hour: the reply may be forged.",
          reply("rejected", reason="unknown_ca", retry_after_seconds=86_400), 3600)  # fmt: skip
    waits("retry-after-zero", "A pause of 0: the device's own still applies.",
          reply("busy", retry_after_seconds=0), 0)  # fmt: skip
    waits("retry-after-negative", "A pause below 0 is none.", reply("busy", retry_after_seconds=-5), 0)
    waits(
        "for-null", "The gateway could not read the hello, and says why.",
        reply("rejected", **{"for": None}, reason="malformed_json", retry_after_seconds=600), 600,
    )  # fmt: skip
    add(
        "for-null-unasked", "`for` is null, and nothing is unanswered: not about this device.",
        reply("rejected", **{"for": None}, reason="malformed_json", retry_after_seconds=600), "ignore",
        waiting=False,
    )  # fmt: skip
    for name, about, data in (
        ("not-json", "No JSON.", b"welcome"),
        (
            "too-deep",
            "Nested 8192 deep, which a careless parser does not survive.",
            b"[" * 8192 + b"]" * 8192,
        ),
        ("empty", "No bytes.", b""),
        ("list", "A list.", b"[]"),
        (
            "no-result",
            "`result` is missing.",
            compact(_without("busy", "result")),
        ),
        ("no-for", "`for` is missing.", compact(_without("welcome", "for"))),
        ("for-number", "`for` is a number.", compact(reply("welcome", **{"for": 7}))),
    ):
        add(f"unreadable-{name}", about, data, "ignore")
    return {"cases": cases}
