"""Topics of protocol v1: `<prefix>/<topic name>/<verb>` (docs/protocol.md, section 3).

The topic name is the certificate's CN as the broker's ACL proved it. mosquitto accepts CNs that add topic
levels, hold wildcards or newlines; so names are matched strictly here, and nothing else is an identity.
"""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from provisioning.ids import TopicName

DEFAULT_PREFIX: Final = "fg/v1"
TOPIC_NAME_PATTERN: Final = re.compile(r"[A-Za-z0-9._:-]{1,64}")
PREFIX_PATTERN: Final = re.compile(r"[A-Za-z0-9._-]{1,32}(/[A-Za-z0-9._-]{1,32}){0,3}")


class Up(StrEnum):
    """Verbs that a device publishes."""

    HELLO = "hello"
    PROGRESS = "progress"
    PRESENCE = "presence"


_UP_VERBS: Final = {verb.value: verb for verb in Up}


class Down(StrEnum):
    """Verbs that the gateway publishes."""

    REPLY = "reply"
    OFFER = "offer"
    CONFIGURATION = "configuration"


@dataclass(frozen=True, slots=True, kw_only=True)
class UpTopic:
    """A topic on which a device may speak, taken apart."""

    name: TopicName
    verb: Up


def is_topic_name(text: str) -> bool:
    """Whether `text` may be a device's topic name: 1–64 of `A–Z a–z 0–9 . _ : -`."""
    return TOPIC_NAME_PATTERN.fullmatch(text) is not None


def parse_up(topic: str, prefix: str = DEFAULT_PREFIX) -> UpTopic | None:
    """The device and the verb of `topic`, or None where it is not one of ours.

    Nothing can be answered to a topic that is not ours, so there is no reason word for it.
    """
    head = f"{prefix}/"
    if not topic.startswith(head):
        return None
    name, slash, verb = topic[len(head) :].partition("/")
    up = _UP_VERBS.get(verb)
    if not slash or up is None or not is_topic_name(name):
        return None
    return UpTopic(name=TopicName(name), verb=up)


def topic_of(name: TopicName, verb: Up | Down, prefix: str = DEFAULT_PREFIX) -> str:
    """The topic of one device and verb."""
    return f"{prefix}/{name}/{verb}"
