"""`offers.json`: what a device does with what comes on its `offer` topic, or in a welcome (protocol, section 14)."""

from typing import Any

from making.keys import b64, compact, describe, seal
from making.statements import DEVICE, SIGNERS, TYPE, artifact, statement

OFFER_ID, NEWER_ID = "252116099483605972", "252116099483606099"


def offer(**changes: Any) -> dict[str, Any]:
    """The worked offer of section 14, with some members changed; None takes one away."""
    made = {
        "v": 1,
        "offer_id": OFFER_ID,
        "revision": 5,
        "version": "1.5.0",
        "bundle_seq": 12,
        "statement": seal(SIGNERS["ed25519"], TYPE, compact(statement())),
        "artifacts": [
            {"name": "pump.img", "url": "https://downloads.example.com/d/token/pump.img"}
            | {k: v for k, v in artifact("pump.img").items() if k != "name"}
        ],
        "deadline": 1767312000000,
    } | changes
    return {name: value for name, value in made.items() if value is not None}


def cancellation(**changes: Any) -> dict[str, Any]:
    """An offer taken back."""
    return {
        "v": 1,
        "offer_id": OFFER_ID,
        "revision": 6,
        "cancelled": True,
        "reason": "rollout_cancelled",
    } | changes


def make() -> dict[str, Any]:
    """The file."""
    cases: list[dict[str, Any]] = []

    def add(
        name: str,
        about: str,
        message: dict[str, Any] | bytes,
        action: str,
        *,
        welcomed: bool = True,
        seen: int = 0,
        open_offer: str | None = None,
        installing: bool = False,
        reason: str | None = None,
    ) -> None:
        revision = message.get("revision") if isinstance(message, dict) else None
        kept = max(seen, revision) if welcomed and isinstance(revision, int) else seen
        data = message if isinstance(message, bytes) else compact(message)
        cases.append(
            {
                "id": name,
                "about": about,
                "device": DEVICE
                | {
                    "welcomed": welcomed,
                    "highest_revision": seen,
                    "open_offer": open_offer,
                    "installing": installing,
                },
                "message": b64(data),
                "expected": {"action": action, "highest_revision": kept}
                | ({} if reason is None else {"reason": reason}),
            }
        )

    add("first", "The first offer.", offer(), "take")
    add("higher-revision", "A higher revision than any seen.", offer(), "take", seen=4)
    add("lower-revision", "A lower revision than one seen: late, or replayed.", offer(), "ignore", seen=6)
    add(
        "lower-revision-of-open", "A lower revision of the open offer.", offer(revision=4), "ignore", seen=5,
        open_offer=OFFER_ID,
    )  # fmt: skip
    add(
        "same-revision", "The open offer again: the same, with fresh addresses.",
        offer(artifacts=[offer()["artifacts"][0] | {"url": "https://downloads.example.com/d/fresh/pump.img"}]),
        "same", seen=5, open_offer=OFFER_ID,
    )  # fmt: skip
    add(
        "same-revision-installing", "The same again, while it is being installed.", offer(), "same", seen=5,
        open_offer=OFFER_ID, installing=True,
    )  # fmt: skip
    add(
        "same-revision-ended", "The revision that was seen last, and its offer is not open any more: a welcome "
        "of an attempt that the gateway has not seen end. Taken anew.", offer(), "take", seen=5,
    )  # fmt: skip
    add("before-welcome", "Before the welcome of this life of the device.", offer(), "ignore", welcomed=False)
    add(
        "cancelled-before-welcome", "A cancellation before the welcome.", cancellation(), "ignore",
        welcomed=False, seen=5, open_offer=OFFER_ID,
    )  # fmt: skip
    add("cancelled", "The open offer is taken back.", cancellation(), "cancel", seen=5, open_offer=OFFER_ID)
    add(
        "cancelled-late", "A cancellation with a lower revision than one seen: late.", cancellation(revision=4),
        "ignore", seen=5, open_offer=OFFER_ID,
    )  # fmt: skip
    add(
        "cancelled-installing", "Taken back after `installing`: it cannot be called off any more.",
        cancellation(), "ignore", seen=5, open_offer=OFFER_ID, installing=True,
    )  # fmt: skip
    add(
        "cancelled-nothing-open", "Taken back before the offer itself has come: its revision is kept all the same, "
        "so that the offer, when it comes, is ignored.", cancellation(), "ignore", seen=4,
    )  # fmt: skip
    add(
        "cancelled-another", "Another offer than the open one is taken back.",
        cancellation(offer_id=NEWER_ID), "ignore", seen=5, open_offer=OFFER_ID,
    )  # fmt: skip
    newer = offer(offer_id=NEWER_ID, revision=6)
    add("newer-offer", "A newer offer takes the place of one that is not being installed.", newer, "take", seen=5,
        open_offer=OFFER_ID)  # fmt: skip
    add(
        "newer-offer-installing", "A newer offer, while the open one is being installed: a later welcome brings "
        "it again.", newer, "ignore", seen=5, open_offer=OFFER_ID, installing=True,
    )  # fmt: skip
    add(
        "offered-anew", "The offer that was put off, under a higher revision.", offer(revision=6), "take", seen=5,
    )  # fmt: skip
    add("unknown-members", "Members of a later version are ignored.", offer(colour="blue"), "take")
    bad = offer(statement=seal(SIGNERS["stranger"], TYPE, compact(statement())))
    add("refused-signer", "Its statement is signed by a stranger.", bad, "refuse", reason="statement_invalid")
    other = offer(statement=seal(SIGNERS["ed25519"], TYPE, compact(statement(product="valve"))))
    add("refused-product", "Its statement is for another product.", other, "refuse", reason="wrong_product")
    swapped = offer(artifacts=[offer()["artifacts"][0] | {"sha256": "0" * 64}])
    add(
        "artifacts-not-signed", "Its artifacts are not those of the signed statement.", swapped, "refuse",
        reason="statement_invalid",
    )  # fmt: skip
    for name, about, message in (
        ("no-offer-id", "`offer_id` is missing.", compact(offer(offer_id=None))),
        ("no-revision", "`revision` is missing.", compact(offer(revision=None))),
        ("revision-text", "`revision` is text.", compact(offer(revision="5"))),
        ("not-json", "No JSON.", b"offer"),
        (
            "too-deep",
            "Nested 8192 deep, which a careless parser does not survive.",
            b"[" * 8192 + b"]" * 8192,
        ),
        ("list", "A list.", b"[]"),
    ):
        add(f"unreadable-{name}", about, message, "ignore")
    return {
        "keys": {name: describe(SIGNERS[name]) for name in ("ed25519", "p256", "stranger")},
        "cases": cases,
    }
