"""Members of a payload that are missing, of the wrong type or out of range (protocol, sections 4, 6, 8 and 15)."""

from typing import Any

from making import pki
from making.keys import b64
from making.messages import certificate, payload_of

MALFORMED = "malformed_message"


def add(cases: Any) -> None:
    """Each verb's members."""
    for name, about, changes in _hello_faults():
        cases.signed(f"hello-{name}", f"{about}", MALFORMED, payload_of("ed25519", "hello", **changes))
    for name, about, changes in _presence_faults():
        cases.signed(
            f"presence-{name}", about, MALFORMED, payload_of("ed25519", "presence", **changes),
            verb="presence",
        )  # fmt: skip
    for name, about, changes in _progress_faults():
        cases.signed(
            f"progress-{name}", about, MALFORMED, payload_of("ed25519", "progress", **changes),
            verb="progress",
        )  # fmt: skip
    for name, about, value in (
        ("version-2", "`v` is 2.", 2),
        ("version-text", '`v` is the string "1".', "1"),
        ("version-true", "`v` is true, which some languages take for 1.", True),
        ("version-missing", "`v` is missing.", None),
    ):
        cases.signed(name, about, "unsupported_version", payload_of("ed25519", "hello", v=value))
    cases.signed("payload-list", "The payload is a list.", MALFORMED, b"[]")
    cases.signed("payload-text", "The payload is a string.", MALFORMED, b'"hello"')
    _valid(cases)


def _valid(cases: Any) -> None:
    for verb in ("hello", "presence", "progress"):
        cases.signed(
            f"{verb}-unknown-members",
            f"Nothing is wrong: members that a {verb} does not have are ignored.", None,
            payload_of("ed25519", verb, weather={"rain": [1, 2.5, None]}, Seq=-1), verb=verb,
        )  # fmt: skip
    cases.signed(
        "hello-every-member", "Nothing is wrong: every member of a hello but `challenge` and `previous`.", None,
        payload_of(
            "ed25519", "hello", stays=False, hardware={"model": "pump", "revision": "b"},
            firmware={"version": "1.4.0", "bundle_seq": 9}, time_zone="Europe/Berlin",
            attributes={"site": "north", "rack": 4, "load": 0.5, "spare": False},
            last_update={"offer_id": "252116099483605972", "result": "rejected", "reason": "battery_low"},
        ),
    )  # fmt: skip
    cases.signed(
        "hello-limits", "Nothing is wrong: texts of 64 characters, 32 attributes.", None,
        payload_of(
            "ed25519", "hello", nonce="n" * 64, hardware={"model": "é" * 64}, firmware={"version": "v" * 64},
            attributes={f"a{number}": "x" * 64 for number in range(32)},
        ),
    )  # fmt: skip
    for state in ("offline", "sleeping", "rebooting"):
        cases.signed(
            f"presence-{state}", f"Nothing is wrong: `{state}`.", None,
            payload_of("ed25519", "presence", state=state), verb="presence",
        )  # fmt: skip
    cases.signed(
        "progress-unknown-state", "Nothing is wrong: a step that this version does not know is read, and ignored.",
        None, payload_of("ed25519", "progress", state="meditating", percent=None), verb="progress",
    )  # fmt: skip
    cases.signed(
        "progress-deferred", "Nothing is wrong: `deferred` with `defer_until`.", None,
        payload_of("ed25519", "progress", state="deferred", percent=None, defer_until=1767229200000),
        verb="progress",
    )  # fmt: skip
    cases.signed(
        "progress-failed", "Nothing is wrong: an end with its reason and a text for people.", None,
        payload_of("ed25519", "progress", state="failed", percent=None, reason="no_space", detail="12 MB free"),
        verb="progress",
    )  # fmt: skip


def _hello_faults() -> list[tuple[str, str, dict[str, Any]]]:
    der = pki.der(certificate("ed25519"))
    pem = b"-----BEGIN CERTIFICATE-----\n" + b64(der).encode() + b"\n-----END CERTIFICATE-----\n"
    return [
        ("no-aud", "`aud` is missing.", {"aud": None}),
        ("no-topic", "`topic` is missing.", {"topic": None}),
        ("no-conn", "`conn` is missing.", {"conn": None}),
        ("conn-upper-case", "`conn` in upper-case hex digits.", {"conn": "7C1F0A9E55D24B38"}),
        ("conn-short", "`conn` has 15 digits.", {"conn": "7c1f0a9e55d24b3"}),
        ("conn-newline", "`conn` ends with a line feed.", {"conn": "7c1f0a9e55d24b38\n"}),
        ("no-boot", "`boot` is missing.", {"boot": None}),
        ("boot-number", "`boot` is a number.", {"boot": 2}),
        ("no-seq", "`seq` is missing.", {"seq": None}),
        ("seq-zero", "`seq` is 0, which is the will's alone.", {"seq": 0}),
        ("seq-negative", "`seq` is negative.", {"seq": -1}),
        ("seq-fraction", "`seq` is 1.5.", {"seq": 1.5}),
        ("seq-text", '`seq` is the string "1".', {"seq": "1"}),
        ("seq-true", "`seq` is true.", {"seq": True}),
        ("stays-text", '`stays` is the string "no".', {"stays": "no"}),
        ("ts-text", "`ts` is a date as text.", {"ts": "2026-01-01T00:00:00Z"}),
        ("ts-fraction", "`ts` has a fraction.", {"ts": 1767225600000.5}),
        ("ts-negative", "`ts` is before 1970.", {"ts": -1}),
        ("no-nonce", "`nonce` is missing.", {"nonce": None}),
        ("nonce-short", "`nonce` has 7 characters.", {"nonce": "q3J8vN0"}),
        ("nonce-long", "`nonce` has 65 characters.", {"nonce": "n" * 65}),
        (
            "nonce-base64",
            "`nonce` has characters of standard base64: / and +.",
            {"nonce": "q3J8vN0+/tWm2K5a"},
        ),
        ("challenge-long", "`challenge` has 257 characters.", {"ts": None, "challenge": "c" * 257}),
        ("chain-text", "`chain` is one string, not a list.", {"chain": b64(der)}),
        ("chain-of-four", "`chain` has four entries.", {"chain": [b64(der)] * 4}),
        ("chain-empty-entry", "An entry of `chain` is empty.", {"chain": [""]}),
        ("chain-pem", "An entry of `chain` is PEM, not base64 of DER.", {"chain": [pem.decode()]}),
        ("no-hardware", "`hardware` is missing.", {"hardware": None}),
        ("no-model", "`hardware.model` is missing.", {"hardware": {"revision": "b"}}),
        ("model-empty", "`hardware.model` is empty.", {"hardware": {"model": ""}}),
        ("model-long", "`hardware.model` has 65 characters.", {"hardware": {"model": "m" * 65}}),
        ("revision-empty", "`hardware.revision` is empty.", {"hardware": {"model": "pump", "revision": ""}}),
        ("no-firmware", "`firmware` is missing.", {"firmware": None}),
        ("no-version", "`firmware.version` is missing.", {"firmware": {"bundle_seq": 9}}),
        ("version-number", "`firmware.version` is a number.", {"firmware": {"version": 1.4}}),
        (
            "bundle-seq-negative",
            "`firmware.bundle_seq` is negative.",
            {"firmware": {"version": "1.4.0", "bundle_seq": -1}},
        ),
        ("time-zone-empty", "`time_zone` is empty.", {"time_zone": ""}),
        ("attributes-list", "`attributes` is a list.", {"attributes": ["site"]}),
        ("attributes-33", "`attributes` has 33 members.", {"attributes": {f"a{n}": n for n in range(33)}}),
        ("attribute-long", "An attribute's text has 65 characters.", {"attributes": {"site": "x" * 65}}),
        ("attribute-empty", "An attribute's text is empty.", {"attributes": {"site": ""}}),
        ("attribute-object", "An attribute is an object.", {"attributes": {"site": {"name": "north"}}}),
        (
            "attribute-name-long",
            "An attribute's name has 65 characters.",
            {"attributes": {"s" * 65: "north"}},
        ),
        (
            "last-update-unknown-result",
            "`last_update.result` is no word of section 15.",
            {"last_update": {"offer_id": "1", "result": "timed_out"}},
        ),
        ("last-update-no-offer", "`last_update.offer_id` is missing.", {"last_update": {"result": "failed"}}),
    ]


def _presence_faults() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("no-state", "`state` is missing.", {"state": None}),
        ("unknown-state", "`state` is no word of section 8.", {"state": "asleep"}),
        ("state-upper-case", "`state` is in upper case.", {"state": "ONLINE"}),
        ("seq-negative", "`seq` is negative.", {"seq": -1}),
        ("no-conn", "`conn` is missing.", {"conn": None}),
    ]


def _progress_faults() -> list[tuple[str, str, dict[str, Any]]]:
    return [
        ("seq-zero", "`seq` is 0, which is the will's alone.", {"seq": 0}),
        ("no-offer", "`offer_id` is missing.", {"offer_id": None}),
        ("offer-number", "`offer_id` is a number.", {"offer_id": 252116099483605972}),
        ("offer-long", "`offer_id` has 65 characters.", {"offer_id": "1" * 65}),
        ("no-state", "`state` is missing.", {"state": None}),
        ("percent-101", "`percent` is 101.", {"percent": 101}),
        ("percent-fraction", "`percent` is 40.5.", {"percent": 40.5}),
        ("detail-long", "`detail` has 257 characters.", {"detail": "x" * 257}),
        ("defer-until-text", "`defer_until` is text.", {"defer_until": "tomorrow"}),
    ]
