"""Logs: one event a line on standard error, as text for people or JSON for machines; repeats are counted.

Events are short verbs (`device_enrolled`), everything else is a field. State changes are INFO. The first of equal
events is written at once, those that follow within a few seconds are counted, and one line then says how many
there were, so that a thousand refused devices do not bury what an operator must see.
"""

import atexit
import logging
import sys
import threading
import time
import warnings
from collections import OrderedDict
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from gateway.settings import LogSettings

_MOST_KEYS: Final = (
    2000  # distinct events remembered; beyond it the oldest is forgotten, and its count written
)


@dataclass(slots=True)
class _Seen:
    since: float
    repeats: int = 0
    last: EventDict = field(default_factory=dict)


class Repeats:
    """A structlog processor that drops an event equal to one written within `seconds`, and counts it.

    Events are equal if level, event and all fields are; a caller that passes `same="word"` has only the level,
    event and that word compared, so that refusals of many devices for one reason count as one.

    Args:
        seconds: how long equal events are held back; 0 passes all.
        emit: writes a summary event, which passes this processor unharmed.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        seconds: float,
        emit: Callable[[EventDict], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._emit = emit
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: OrderedDict[tuple[object, ...], _Seen] = OrderedDict()

    def __call__(self, _logger: WrappedLogger, method: str, event: EventDict) -> EventDict:
        """The event if it is to be written; raises `structlog.DropEvent` if it was counted instead."""
        if event.pop("_summary", False) or not self._seconds:
            event.pop("same", None)
            return event
        same = event.pop("same", None)
        fields: tuple[object, ...] = (
            (same,) if same is not None else tuple(sorted((k, repr(v)) for k, v in event.items()))
        )
        key = (method, event.get("event"), *fields)
        now = self._clock()
        with self._lock:
            due = self._take_due(now)
            seen = self._seen.get(key)
            if seen is None:
                self._seen[key] = _Seen(now)
                if len(self._seen) > _MOST_KEYS:
                    due.append(self._seen.popitem(last=False)[1])
            else:
                seen.repeats += 1
                seen.last = {**event, "level": method}
        self._write(due)
        if seen is not None:
            raise structlog.DropEvent
        return event

    def flush(self) -> None:
        """Writes what was counted and not yet said; at the end of the process, for instance."""
        with self._lock:
            due = list(self._seen.values())
            self._seen.clear()
        self._write(due)

    def _take_due(self, now: float) -> list[_Seen]:
        due = []
        while self._seen:
            key, oldest = next(iter(self._seen.items()))
            if now - oldest.since < self._seconds:
                break
            del self._seen[key]
            due.append(oldest)
        return due

    def _write(self, due: list[_Seen]) -> None:
        for seen in due:
            if seen.repeats:
                self._emit({**seen.last, "repeated": seen.repeats, "_summary": True})


def configure(settings: LogSettings, stream: TextIO | None = None) -> Repeats:
    """Sets up structlog, and the standard library's logging below it, for the whole process.

    Args:
        settings: level, form, and how long repeats are held back.
        stream: where lines go; standard error by default.

    Returns: the counter of repeats, whose `flush` is also called at exit.
    """
    output = sys.stderr if stream is None else stream
    level = logging.getLevelNamesMapping()[settings.level.upper()]
    repeats = Repeats(settings.repeat_seconds, _emit_summary)
    stamp: list[Processor] = [
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render: list[Processor]
    if settings.as_json:
        render = [structlog.processors.dict_tracebacks, structlog.processors.JSONRenderer(default=str)]
    else:
        render = [structlog.dev.ConsoleRenderer(colors=output.isatty())]
    structlog.configure(
        processors=[structlog.contextvars.merge_contextvars, repeats, *stamp, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.WriteLoggerFactory(file=output),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(output)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=stamp,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(level, logging.WARNING) if level > logging.DEBUG else level)
    # The library warns of names and numbers in certificates that strangers sent; rules of ours refuse them, and
    # before that no line comes of them.
    warnings.filterwarnings("ignore", message="Attribute's length must be")
    warnings.filterwarnings("ignore", message="Parsed a serial number")
    atexit.register(repeats.flush)
    return repeats


def _emit_summary(event: EventDict) -> None:
    fields: MutableMapping[str, Any] = dict(event)
    method = str(fields.pop("level", "info"))
    name = str(fields.pop("event", ""))
    getattr(structlog.get_logger(), method)(name, **fields)
