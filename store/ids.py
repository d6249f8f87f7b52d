"""Numbers for new rows, made here so that a whole batch can be written without asking the database."""

import secrets
import threading
import time
from typing import Final

_EPOCH_MS: Final = 1_735_689_600_000  # 2025-01-01T00:00:00Z; 41 bits of milliseconds last until 2094
_LOW_BITS: Final = 22


class IdSource:
    """63-bit numbers: 41 bits of milliseconds, then 22 bits that start at random and count up.

    Numbers of one process never repeat, also when its clock goes back. Two workers meet on a number with a
    chance of one in four million per shared millisecond; the primary key then refuses one of the two and
    the batch is done again with new numbers.
    """

    def __init__(self) -> None:
        self._last = 0
        self._lock = threading.Lock()

    def __call__(self) -> int:
        """The next number."""
        with self._lock:
            fresh = ((time.time_ns() // 1_000_000 - _EPOCH_MS) << _LOW_BITS) | secrets.randbits(_LOW_BITS)
            self._last = max(self._last + 1, fresh)
            return self._last


new_id: Final = IdSource()
