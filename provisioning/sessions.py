"""Sessions: opened by an accepted hello, kept by heartbeats, ended for one reason.

`conn` names a session. What is said for another `conn` than the current one changes nothing: a will can
arrive after the hello that follows it. Going back in `seq` proves nothing either, since shared subscriptions
reorder; a window of 64 tells a repeated message from a late one.
"""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Final

from provisioning.devices import Connection, ConnectionState, Device
from provisioning.ids import KeyId
from provisioning.messages import Hello, Presence, PresenceState, Progress
from provisioning.statistics import Event, EventKind
from provisioning.working import ClosedSession, WorkingSet

WINDOW: Final = 64
HEARTBEATS_MISSED: Final = 2.5
"""A device is lost after this many heartbeat intervals of silence."""


def heartbeat_seconds(connected: int) -> int:
    """How often devices speak: every minute, more rarely as the fleet grows: 500 heartbeats/s at most."""
    return max(60, connected // 500)


def take_seq(seq: int, high: int, window: int) -> tuple[int, int] | None:
    """Counts `seq` once: the new (high, window), or None where it was seen or is older than the window.

    Bit 0 of the window stands for `high`, bit n for `high` − n. 63 bits are kept, for a signed column.
    """
    if seq > high:
        shifted = (window << (seq - high)) | 1 if seq - high < WINDOW else 1
        return seq, shifted & ((1 << 63) - 1)
    back = high - seq
    if back >= WINDOW - 1 or window >> back & 1:
        return None
    return high, window | 1 << back


def apply_hello(
    facts: WorkingSet, device: Device, hello: Hello, *, key_id: KeyId, now: datetime, heard_by: datetime
) -> None:
    """Opens the session of an accepted hello, closing the one it replaces; the same `conn` only beats."""
    current = facts.connections.get(device.id)
    if current is not None and current.conn == hello.conn:
        taken = take_seq(hello.seq, current.seq, current.seq_window)
        if taken is not None:
            if current.state is not ConnectionState.ONLINE and current.stays:
                _count(facts, device, now, EventKind.CONNECTED, "return")
                current = replace(current, state=ConnectionState.ONLINE)
            facts.save_connection(
                replace(current, seq=taken[0], seq_window=taken[1], heard_by=heard_by, epoch=facts.epoch)
            )
        return
    if current is not None and current.state is ConnectionState.ONLINE:
        _close(facts, device, current, "replaced", now)
    word = "first" if current is None else "return"
    _count(facts, device, now, EventKind.CONNECTED, word)
    connection = Connection(
        device_id=device.id,
        conn=hello.conn,
        boot=hello.boot,
        key_id=key_id,
        state=ConnectionState.ONLINE,
        stays=hello.stays,
        broker=facts.broker,
        epoch=facts.epoch,
        worker=facts.worker,
        opened_at=now,
        heard_by=heard_by,
        seq=hello.seq,
        seq_window=1,
    )
    if not hello.stays:
        _close(facts, device, connection, "short", now)
        connection = replace(connection, state=ConnectionState.OFFLINE)
    facts.save_connection(connection)


def apply_presence(
    facts: WorkingSet, device: Device, message: Presence, *, now: datetime, heard_by: datetime
) -> bool:
    """What a presence message changes. Returns whether it belonged to the current session."""
    current = facts.connections.get(device.id)
    if current is None or current.conn != message.conn:
        return False
    if message.seq == 0:
        if message.state is PresenceState.OFFLINE and not current.will_seen:
            if current.state is ConnectionState.ONLINE:
                _close(facts, device, current, "lost", now)
                current = replace(current, state=ConnectionState.OFFLINE)
            facts.save_connection(replace(current, will_seen=True))
        return True
    taken = take_seq(message.seq, current.seq, current.seq_window)
    if taken is None:
        return True
    newest = message.seq > current.seq
    current = replace(current, seq=taken[0], seq_window=taken[1])
    if not newest:  # late: counted as heard, but what came after it has the last word on the state
        facts.save_connection(current)
        return True
    state = ConnectionState(message.state.value)
    online = current.state is ConnectionState.ONLINE
    if state is ConnectionState.ONLINE and not online:
        _count(facts, device, now, EventKind.CONNECTED, "return")
        current = replace(current, opened_at=now)
    elif state is not ConnectionState.ONLINE and online:
        reason = "goodbye" if state is ConnectionState.OFFLINE else state.value
        _close(facts, device, current, reason, now)
    facts.save_connection(replace(current, state=state, heard_by=heard_by, epoch=facts.epoch))
    return True


def take_report(facts: WorkingSet, device: Device, message: Progress, *, heard_by: datetime) -> bool | None:
    """Counts a progress message of the current session once; it is a sign of life too.

    Returns:
        Whether it is new; None where its session is not known yet.
    """
    current = facts.connections.get(device.id)
    if current is None or current.conn != message.conn:
        return None
    taken = take_seq(message.seq, current.seq, current.seq_window)
    if taken is None:
        return False
    alive = (
        current.heard_by if current.state is not ConnectionState.ONLINE else max(current.heard_by, heard_by)
    )
    facts.save_connection(replace(current, seq=taken[0], seq_window=taken[1], heard_by=alive))
    return True


def end_connection(
    facts: WorkingSet, device: Device, reason: str, state: ConnectionState, now: datetime
) -> None:
    """Ends an online session from our side: `timeout` after silence, `broker_restart`, `blocked`."""
    current = facts.connections[device.id]
    if current.state is ConnectionState.ONLINE:
        _close(facts, device, current, reason, now)
        facts.save_connection(replace(current, state=state))


def heard_by_of(now: datetime, interval_seconds: int) -> datetime:
    """Until when a device heard at `now` may be silent."""
    return now + timedelta(seconds=interval_seconds * HEARTBEATS_MISSED)


def _close(facts: WorkingSet, device: Device, connection: Connection, reason: str, now: datetime) -> None:
    facts.closed.append(
        ClosedSession(
            device_id=device.id,
            conn=connection.conn,
            opened_at_ms=int(connection.opened_at.timestamp() * 1000),
            reason=reason,
        )
    )
    _count(facts, device, now, EventKind.DISCONNECTED, reason)


def _count(facts: WorkingSet, device: Device, now: datetime, kind: EventKind, word: str) -> None:
    facts.events.append(
        Event(
            at=now,
            kind=kind,
            product_id=device.product_id,
            cohort_id=device.cohort_id,
            device_id=device.id,
            word=word,
        )
    )
