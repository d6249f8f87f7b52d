"""Named points at which the fault tests kill the gateway; nothing happens unless the environment says so.

`FLEETGATE_KILL_AT=after_commit:3` ends the process with SIGKILL the third time it reaches that point.
"""

import os
import signal
from collections import Counter
from typing import Final, Literal

Point = Literal[
    "before_lock",
    "after_apply",
    "after_commit",
    "before_offer",
    "after_offer",
    "after_publish",
    "after_offer_publish",
    "after_acknowledge",
    "before_start",
    "after_start",
    "in_prune",
    "before_blob_removed",
    "after_blob_removed",
]

_POINT, _, _COUNT = os.environ.get("FLEETGATE_KILL_AT", "").partition(":")
_reached: Final[Counter[str]] = Counter()


def reach(point: Point) -> None:
    """Says that the work has come to `point`."""
    if point != _POINT:
        return
    _reached[point] += 1
    if _reached[point] >= int(_COUNT or 1):
        os.kill(os.getpid(), signal.SIGKILL)
