"""Times as the tables hold them: whole milliseconds since 1970, UTC."""

from datetime import UTC, datetime, timedelta
from typing import Final, overload

_ZERO: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND: Final = timedelta(milliseconds=1)


def to_ms(at: datetime) -> int:
    """Milliseconds since 1970 of an aware time, rounded down."""
    return (at - _ZERO) // _MILLISECOND


@overload
def from_ms(ms: int) -> datetime: ...
@overload
def from_ms(ms: None) -> None: ...
def from_ms(ms: int | None) -> datetime | None:
    """The aware UTC time of `ms` milliseconds since 1970; None for none."""
    return None if ms is None else _ZERO + ms * _MILLISECOND


def now_utc() -> datetime:
    """The system's clock, aware."""
    return datetime.now(UTC)
