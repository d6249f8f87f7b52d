"""Writes asyncapi.yaml beside this file: `python docs/asyncapi.py`; `--check` only compares.

The schemas are those of the program's own models, the meaning of each member and the examples are protocol.md's
and those of vectors/. Needs the development environment (`make setup`).
"""

import argparse
import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from gateway.downward import Cancellation, Challenge, Offer, Refusal, Welcome
from provisioning.envelope import payload_type
from provisioning.messages import VERSION, Hello, Presence, Progress
from provisioning.topics import DEFAULT_PREFIX, Down, Up, topic_of

HERE = Path(__file__).resolve().parent
FILE = HERE / "asyncapi.yaml"
PROTOCOL = (HERE / "protocol.md").read_text(encoding="utf-8")
NAME = "{topicName}"
BINDING = {"mqtt": {"qos": 1, "retain": False, "bindingVersion": "0.2.0"}}

SECTIONS: dict[str, tuple[str, ...]] = {
    "Hello": ("In every payload", "6. Hello", "10. A new key", "What a device says"),
    "Presence": ("In every payload", "8. Presence"),
    "Progress": ("In every payload", "What a device says"),
    "Reply": ("7. Reply",),
    "Offer": ("13. Bundle statement", "4. The envelope", "14. Offers"),
}
"""Headings under whose tables the members of a message stand; the last one wins."""

ROOTS: dict[str, tuple[type[BaseModel], str]] = {
    "Hello": (Hello, "Hello"),
    "Presence": (Presence, "Presence"),
    "Progress": (Progress, "Progress"),
    "Welcome": (Welcome, "Reply"),
    "Challenge": (Challenge, "Reply"),
    "Refusal": (Refusal, "Reply"),
    "Offer": (Offer, "Offer"),
    "Cancellation": (Cancellation, "Offer"),
}


def fenced(kind: str) -> str:
    """The protocol's one fenced block of this kind."""
    (text,) = re.findall(rf"^```{kind}\n(.*?)\n```$", PROTOCOL, flags=re.MULTILINE | re.DOTALL)
    return str(text)


def vector(file: str, case: str) -> Any:
    """The message of a test vector."""
    cases = json.loads((HERE / "vectors" / f"{file}.json").read_text(encoding="utf-8"))["cases"]
    (found,) = (one for one in cases if one["id"] == case)
    return json.loads(base64.b64decode(found["message"]))


def rows(heading: str) -> dict[str, str]:
    """What the tables under a heading say of each member, by its path: the last column."""
    found = re.search(
        rf"^#+ {re.escape(heading)}.*?$(.*?)(?=^## |\Z)", PROTOCOL, flags=re.MULTILINE | re.DOTALL
    )
    assert found is not None, heading
    meanings: dict[str, str] = {}
    of_members = False
    for line in found[1].splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if cells[0] in ("field", "member"):
            of_members = cells[-1] == "meaning"
        elif not line.startswith("|"):
            of_members = False
        name = re.fullmatch(r"`([a-zA-Z_0-9.\[\]]+)`", cells[0])
        if of_members and name is not None and cells[-1] not in ("", "1", "see below"):
            path = re.sub(r"\[\d*\]", "", name[1])
            meanings[path] = re.sub(r"\[([^\]]+)\]\([^)]+\)", r"\1", cells[-1])
    return meanings


def describe_members(schemas: dict[str, Any]) -> None:
    """Puts the protocol's words to every member of every message."""

    def walk(schema: dict[str, Any], prefix: str, meanings: dict[str, str]) -> None:
        for name, member in schema.get("properties", {}).items():
            path = f"{prefix}{name}"
            parts = path.split(".")
            ends = [".".join(parts[start:]) for start in range(len(parts))]  # a table may begin within
            words = next((meanings[end] for end in ends if end in meanings), None)
            if words is not None and "$ref" not in member:
                member["description"] = words
            member.pop("title", None)
            for target in targets(member):
                walk(schemas[target], f"{path}.", meanings)

    def targets(member: dict[str, Any]) -> list[str]:
        found = [member, member.get("items", {}), *member.get("anyOf", [])]
        return [one["$ref"].rpartition("/")[2] for one in found if "$ref" in one]

    for name, (_, kind) in ROOTS.items():
        meanings: dict[str, str] = {}
        for heading in SECTIONS[kind]:
            meanings |= rows(heading)
        walk(schemas[name], "", meanings)


def schemas() -> dict[str, Any]:
    """Every model as JSON Schema (draft 7, which AsyncAPI extends)."""
    models = [(model, "validation") for model, _ in ROOTS.values()]
    _, made = models_json_schema(models, ref_template="#/components/schemas/{model}")  # type: ignore[arg-type]
    found: dict[str, Any] = made["$defs"]
    describe_members(found)
    for schema in found.values():
        schema.pop("additionalProperties", None)  # a device ignores what it does not know
    for verb in Up:
        found[verb.capitalize()]["properties"]["v"]["const"] = VERSION
    found["Hello"]["examples"] = [json.loads(fenced("payload"))]
    found["Progress"]["examples"] = [json.loads(fenced("progress"))]
    for verb in Up:
        found[f"{verb.capitalize()}Envelope"] = envelope(verb)
    return dict(sorted(found.items()))


def envelope(verb: Up) -> dict[str, Any]:
    """The signed envelope around a verb's payload (protocol, section 4)."""
    meanings = rows("4. The envelope")
    base64_text = {
        "type": "string",
        "pattern": "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$",
    }
    return {
        "type": "object",
        "description": "DSSE, version 1, with exactly one signature over the payload's raw bytes.",
        "required": ["payloadType", "payload", "signatures"],
        "properties": {
            "payloadType": {"const": payload_type(verb)},
            "payload": base64_text
            | {
                "description": f"The bytes of a {verb.capitalize()} in JSON, in standard base64 with padding.",
                "contentEncoding": "base64",
                "contentMediaType": payload_type(verb),
                "x-content-schema": {"$ref": f"#/components/schemas/{verb.capitalize()}"},
            },
            "signatures": {
                "type": "array",
                "minItems": 1,
                "maxItems": 1,
                "items": {
                    "type": "object",
                    "required": ["keyid", "sig"],
                    "properties": {
                        "keyid": {
                            "type": "string",
                            "pattern": "^[0-9a-f]{64}$",
                            "description": meanings["signatures.keyid"],
                        },
                        "sig": base64_text | {"description": meanings["signatures.sig"]},
                    },
                },
            },
        },
    }


def upward(verb: Up, summary: str, example: Any) -> dict[str, Any]:
    """A message that a device sends."""
    return {
        "name": str(verb),
        "summary": summary,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{verb.capitalize()}Envelope"},
        "examples": [{"name": str(verb), "payload": example}],
    }


def downward(schema: str, summary: str, **examples: Any) -> dict[str, Any]:
    """A message that a device receives."""
    return {
        "name": schema.lower(),
        "summary": summary,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{schema}"},
        "examples": [{"name": name, "payload": payload} for name, payload in examples.items()],
    }


MESSAGES: dict[str, tuple[str, ...]] = {
    Up.HELLO: ("hello",),
    Up.PRESENCE: ("presence",),
    Up.PROGRESS: ("progress",),
    Down.REPLY: ("welcome", "challenge", "refusal"),
    Down.OFFER: ("offer", "cancellation"),
}
"""What travels on which topic. `configuration` is coming, and described when it is there."""

CHANNELS: dict[str, str] = {
    Up.HELLO: "Who the device is and what it runs (section 6).",
    Up.PRESENCE: "Heartbeat, goodbye and will (section 8).",
    Up.PROGRESS: "How an update goes (section 15).",
    Down.REPLY: "The answer to a hello (section 7). Not signed: nothing in it may harm the device if it were forged.",
    Down.OFFER: "The firmware to run (section 14). Not signed: what counts in it is the signed statement.",
}


def messages() -> dict[str, Any]:
    """Every message with its examples."""
    return {
        "hello": upward(Up.HELLO, "A device introduces itself.", json.loads(fenced("envelope"))),
        "presence": upward(
            Up.PRESENCE, "A heartbeat, a goodbye, or the will.", vector("envelopes", "presence-ed25519")
        ),
        "progress": upward(Up.PROGRESS, "A step of an update.", vector("envelopes", "progress-ed25519")),
        "welcome": downward("Welcome", "The device is known.", welcome=vector("replies", "welcome")),
        "challenge": downward(
            "Challenge", "Fresh proof is needed.",
            challenge=vector("replies", "challenge"), chain_required=vector("replies", "chain-required"),
        ),
        "refusal": downward(
            "Refusal", "Not now, not yet, or not for the reason given.",
            pending=vector("replies", "pending"), rejected=vector("replies", "rejected"),
            busy=vector("replies", "busy"), unreadable=vector("replies", "for-null"),
        ),
        "offer": downward("Offer", "Firmware for this device.", offer=json.loads(fenced("offer"))),
        "cancellation": downward(
            "Cancellation", "An offer is taken back.", cancellation=json.loads(fenced("cancellation"))
        ),
    }  # fmt: skip


def operation(action: str, verb: str, summary: str, reply: bool = False) -> dict[str, Any]:
    """What a device does on one topic."""
    made: dict[str, Any] = {
        "action": action,
        "channel": {"$ref": f"#/channels/{verb}"},
        "summary": summary,
        "messages": [{"$ref": f"#/channels/{verb}/messages/{one}"} for one in MESSAGES[verb]],
        "bindings": BINDING,
    }
    if reply:
        made["reply"] = {
            "channel": {"$ref": "#/channels/reply"},
            "messages": [{"$ref": f"#/channels/reply/messages/{one}"} for one in MESSAGES[Down.REPLY]],
        }
    return made


def describe() -> dict[str, Any]:
    """The document."""
    return {
        "asyncapi": "3.0.0",
        "info": {
            "title": "Fleetgate protocol, from a device's view",
            "version": "1",
            "description": "Which messages travel on which topics. The rule is docs/protocol.md, whose sections are "
            "named here; docs/vectors has test vectors. The topics begin with the default prefix.",
        },
        "defaultContentType": "application/json",
        "servers": {
            "broker": {
                "host": "mqtt.example.com:8883",
                "protocol": "secure-mqtt",
                "description": "MQTT 3.1.1 or 5 over TLS. The broker replaces the client id by the certificate's CN.",
                "security": [{"$ref": "#/components/securitySchemes/certificate"}],
                "bindings": {
                    "mqtt": {
                        "cleanSession": True,
                        "lastWill": {
                            "topic": topic_of(NAME, Up.PRESENCE),  # type: ignore[arg-type]
                            "qos": 1,
                            "retain": False,
                            "message": "a signed presence: `offline` with `seq` 0 (section 8)",
                        },
                        "bindingVersion": "0.2.0",
                    }
                },
            }
        },
        "channels": {
            str(verb): {
                "address": topic_of(NAME, verb, DEFAULT_PREFIX),  # type: ignore[arg-type]
                "description": text,
                "servers": [{"$ref": "#/servers/broker"}],
                "parameters": {"topicName": {"$ref": "#/components/parameters/topicName"}},
                "messages": {one: {"$ref": f"#/components/messages/{one}"} for one in MESSAGES[verb]},
            }
            for verb, text in CHANNELS.items()
        },
        "operations": {
            "sayHello": operation(
                "send", Up.HELLO, "Says hello, and repeats it until it is answered.", reply=True
            ),
            "reportPresence": operation("send", Up.PRESENCE, "Reports that it is there, or goes."),
            "reportProgress": operation("send", Up.PROGRESS, "Reports a step of an update (level 3)."),
            "takeReply": operation(
                "receive", Down.REPLY, "Takes the answer; subscribed before the first hello."
            ),
            "takeOffer": operation("receive", Down.OFFER, "Takes an offer as soon as it is made (level 2)."),
        },
        "components": {
            "parameters": {
                "topicName": {
                    "description": "The CN of the device's certificate: 1 to 64 of A–Z a–z 0–9 . _ : - (section 2).",
                    "examples": ["pump-17"],
                }
            },
            "securitySchemes": {
                "certificate": {
                    "type": "X509",
                    "description": "TLS with the device's certificate; its messages are signed besides (section 4).",
                }
            },
            "messages": messages(),
            "schemas": schemas(),
        },
    }


class _Dumper(yaml.SafeDumper):
    """No anchors: what is used twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def render() -> str:
    """The file's text."""
    plain = json.loads(json.dumps(describe()))
    head = "# Written by docs/asyncapi.py; change that, or the models and texts that it reads.\n"
    return head + yaml.dump(plain, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


def main() -> int:
    """Writes or compares; 1 where the file differs."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="write nothing; exit with 1 where it differs")
    if not parser.parse_args().check:
        FILE.write_text(render(), encoding="utf-8")
    elif not FILE.exists() or FILE.read_text(encoding="utf-8") != render():
        sys.stderr.write("docs/asyncapi.yaml differs from what is generated\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
