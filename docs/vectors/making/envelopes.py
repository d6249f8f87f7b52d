"""`envelopes.json`: messages upwards, each with one fault or none (protocol, sections 4 to 8 and 15)."""

import copy
from collections.abc import Callable
from typing import Any

from making import broken_json, fields, pki, signatures
from making.keys import b64, compact, describe, expected, pae
from making.messages import AUDIENCE, CA, DEVICES, NOW, certificate, payload_of, payload_type, sealed, topic

SIZE = 16_384


class Cases:
    """Collects cases, one after the other."""

    def __init__(self) -> None:
        self.made: list[dict[str, Any]] = []

    def add(
        self,
        name: str,
        about: str,
        reason: str | None,
        message: bytes,
        *,
        key: str = "ed25519",
        verb: str = "hello",
        payload: bytes | None = None,
    ) -> None:
        """One case. `payload`: what was signed, where it helps the author of a client."""
        case: dict[str, Any] = {
            "id": name,
            "about": about,
            "topic": topic(key, verb),
            "key": key,
            "message": b64(message),
        }
        if payload is not None:
            case |= {"payload": payload.decode(), "signed": b64(pae(payload_type(verb), payload))}
        self.made.append(case | {"expected": expected(reason)})

    def signed(
        self,
        name: str,
        about: str,
        reason: str | None,
        payload: bytes,
        *,
        key: str = "ed25519",
        verb: str = "hello",
    ) -> None:
        """A case whose payload is signed as it should be."""
        message = compact(sealed(key, verb, payload))
        shown = payload if reason is None else None
        self.add(name, about, reason, message, key=key, verb=verb, payload=shown)

    def edited(
        self,
        name: str,
        about: str,
        reason: str | None,
        edit: Callable[[dict[str, Any]], Any],
        *,
        key: str = "ed25519",
        verb: str = "hello",
        payload: bytes | None = None,
    ) -> None:
        """A case whose envelope is changed after it was made."""
        envelope = copy.deepcopy(sealed(key, verb, payload or payload_of(key, verb)))
        changed = edit(envelope)
        self.add(name, about, reason, compact(envelope if changed is None else changed), key=key, verb=verb)


def make() -> dict[str, Any]:
    """The file."""
    cases = Cases()
    _valid(cases)
    signatures.add(cases)
    _shape(cases)
    broken_json.add(cases)
    _size(cases)
    fields.add(cases)
    return {
        "audience": AUDIENCE,
        "prefix": "fg/v1",
        "now": NOW,
        "authority": describe(CA.key, certificate=b64(pki.der(CA.certificate))),
        "keys": {
            name: describe(key, topic_name=owner, certificate=b64(pki.der(certificate(name))))
            for name, (owner, key) in DEVICES.items()
        },
        "cases": cases.made,
    }


def _valid(cases: Cases) -> None:
    for key in DEVICES:
        for verb in ("hello", "presence", "progress"):
            cases.signed(
                f"{verb}-{key}", f"Nothing is wrong: a {verb} of the {key} key.", None,
                payload_of(key, verb), key=key, verb=verb,
            )  # fmt: skip
        cases.signed(
            f"will-{key}", f"Nothing is wrong: a will of the {key} key, `offline` with `seq` 0.", None,
            payload_of(key, "presence", seq=0, state="offline"), key=key, verb="presence",
        )  # fmt: skip
    cases.signed(
        "payload-with-white-space", "Nothing is wrong: the payload's JSON may be spelled in any way.", None,
        b" " + payload_of("ed25519", "hello").replace(b'":', b'" :\n ') + b"\r\n",
    )  # fmt: skip
    cases.signed(
        "payload-with-escapes", "Nothing is wrong: `\\u0076` is the member `v`.", None,
        payload_of("ed25519", "hello").replace(b'{"v":', b'{"\\u0076":', 1),
    )  # fmt: skip
    cases.signed(
        "payload-beyond-ascii", "Nothing is wrong: UTF-8, of which the encoding counts bytes and not characters.",
        None, payload_of("ed25519", "hello", attributes={"site": "Łódź 🚰"}),
    )  # fmt: skip
    cases.edited(
        "envelope-unknown-members", "Nothing is wrong: members that the envelope does not have are ignored.", None,
        lambda e: {"hint": [1], **e, "signatures": [{"cert": None, **e["signatures"][0]}]},
    )  # fmt: skip


def _shape(cases: Cases) -> None:
    """What is no envelope."""
    malformed = "malformed_envelope"

    def first(envelope: dict[str, Any]) -> dict[str, Any]:
        found: dict[str, Any] = envelope["signatures"][0]
        return found

    def without(member: str) -> Callable[[dict[str, Any]], None]:
        return lambda e: _drop(e, member)

    tables: list[tuple[str, str, Callable[[dict[str, Any]], Any]]] = [
        ("no-payload-type", "`payloadType` is missing.", without("payloadType")),
        ("no-payload", "`payload` is missing.", without("payload")),
        ("no-signatures", "`signatures` is missing.", without("signatures")),
        ("empty-signatures", "`signatures` is empty.", lambda e: e.update(signatures=[])),
        (
            "two-signatures",
            "Two signatures, both of them right: exactly one is allowed.",
            lambda e: e.update(signatures=e["signatures"] * 2),
        ),
        (
            "signatures-object",
            "`signatures` is the one object, without its list.",
            lambda e: e.update(signatures=first(e)),
        ),
        ("no-keyid", "`keyid` is missing, which plain DSSE allows.", lambda e: _drop(first(e), "keyid")),
        (
            "keyid-upper-case",
            "`keyid` in upper-case hex digits.",
            lambda e: first(e).update(keyid=first(e)["keyid"].upper()),
        ),
        ("no-sig", "`sig` is missing.", lambda e: _drop(first(e), "sig")),
        ("empty-sig", "`sig` is empty.", lambda e: first(e).update(sig="")),
        (
            "payload-as-object",
            "`payload` is the JSON itself, not its base64.",
            lambda e: e.update(payload={"v": 1}),
        ),
        (
            "sig-without-padding",
            "`sig` is base64 without its padding.",
            lambda e: first(e).update(sig=first(e)["sig"].rstrip("=")),
        ),
        (
            "sig-url-safe",
            "`sig` is base64 in the alphabet for URLs (RFC 4648 §5).",
            lambda e: first(e).update(sig=_url_safe(first(e)["sig"])),
        ),
        (
            "payload-with-line-breaks",
            "`payload` is base64 in lines of 76, as MIME has it.",
            lambda e: e.update(payload=_lines(e["payload"])),
        ),
        (
            "sig-stray-bits",
            "The last character of `sig` has bits that no byte uses: two spellings of one signature.",
            lambda e: first(e).update(sig=_stray(first(e)["sig"])),
        ),
        (
            "type-of-another-verb",
            "`payloadType` is that of a presence, on the topic of a hello.",
            lambda e: e.update(payloadType=payload_type("presence")),
        ),
        (
            "type-plain-json",
            "`payloadType` is `application/json`.",
            lambda e: e.update(payloadType="application/json"),
        ),
        ("envelope-in-list", "The envelope stands in a list.", lambda e: [e]),
    ]
    for name, about, edit in tables:
        cases.edited(name, about, malformed, edit)
    padded = next(
        payload
        for number in range(3)
        if (payload := payload_of("ed25519", "hello", extra="?" * number)) and len(payload) % 3
    )
    cases.edited(
        "payload-without-padding", "`payload` is base64 without its padding.", malformed,
        lambda e: e.update(payload=e["payload"].rstrip("=")), payload=padded,
    )  # fmt: skip
    cases.edited(
        "payload-url-safe", "`payload` is base64 in the alphabet for URLs (RFC 4648 §5).", malformed,
        lambda e: e.update(payload=_url_safe(e["payload"])),
        payload=payload_of("ed25519", "hello", extra="???~~~>>>"),
    )  # fmt: skip
    cases.add(
        "no-envelope", "The payload alone, without envelope and signature.", malformed,
        payload_of("ed25519", "hello"),
    )  # fmt: skip


def _size(cases: Cases) -> None:
    envelope = sealed("ed25519", "hello", payload_of("ed25519", "hello"))
    spare = SIZE - len(compact(envelope | {"pad": ""}))
    cases.add(
        "size-16384", "Nothing is wrong: exactly 16 384 bytes.", None,
        compact(envelope | {"pad": "x" * spare}),
    )  # fmt: skip
    cases.add(
        "size-16385", "One byte above 16 384. A broker in front drops it before anybody reads it.",
        "message_too_large", compact(envelope | {"pad": "x" * (spare + 1)}),
    )  # fmt: skip


def _drop(members: dict[str, Any], name: str) -> None:
    del members[name]


def _url_safe(text: str) -> str:
    changed = text.replace("+", "-").replace("/", "_")
    assert changed != text
    return changed


def _lines(text: str) -> str:
    return "\n".join(text[start : start + 76] for start in range(0, len(text), 76))


def _stray(text: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    body = text.rstrip("=")
    assert body != text
    return body[:-1] + alphabet[alphabet.index(body[-1]) + 1] + "=" * (len(text) - len(body))
