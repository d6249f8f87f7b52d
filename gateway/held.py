"""Presence that came before its hello: kept for a minute in bounded memory; losing it is harmless."""

from collections import OrderedDict
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from provisioning.ids import KeyId
from provisioning.messages import Message
from provisioning.verification import VerifiedIdentity

MOST_PER_SESSION: Final = 4
MOST_IN_ALL: Final = 10_000
LIFE: Final = timedelta(seconds=60)


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A verified message whose session is not known yet."""

    message: Message
    identity: VerifiedIdentity
    at: datetime


class HeldMessages:
    """At most four a session and `most` in all; the oldest session goes first. For one thread."""

    def __init__(self, most: int = MOST_IN_ALL) -> None:
        self._most = most
        self._by_session: OrderedDict[tuple[KeyId, str], list[Held]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def hold(self, message: Message, identity: VerifiedIdentity, at: datetime) -> None:
        """Keeps a message for the hello of its session."""
        kept = self._by_session.setdefault((identity.key_id, message.conn), [])
        if len(kept) >= MOST_PER_SESSION:
            return
        kept.append(Held(message=message, identity=identity, at=at))
        self._count += 1
        while self._count > self._most:
            _, dropped = self._by_session.popitem(last=False)
            self._count -= len(dropped)

    def release(self, key_id: KeyId, conn: str, now: datetime) -> list[Held]:
        """What was held for a session, oldest first; what is older than a minute is gone."""
        kept = self._by_session.pop((key_id, conn), [])
        self._count -= len(kept)
        return [held for held in kept if now - held.at <= LIFE]
