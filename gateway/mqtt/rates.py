"""How often one topic may speak: a token bucket per topic, in bounded memory.

It protects the gateway from one device that repeats itself. What is over the limit is acknowledged and
counted, never answered; devices repeat their hello anyway.
"""

from collections import OrderedDict
from typing import Final

DEFAULT_TOPICS: Final = 20_000  # about 200 bytes each


class TopicRates:
    """Token buckets by topic; the topic unheard longest is forgotten first, and starts anew, full.

    Not thread-safe: the network thread alone asks.
    """

    def __init__(self, *, per_minute: float, burst: int, topics: int = DEFAULT_TOPICS) -> None:
        """
        Args:
            per_minute: messages that one topic may send in the long run; 0 is no limit.
            burst: messages it may send at once.
            topics: how many are remembered.
        """
        self._per_second = per_minute / 60
        self._burst = float(max(burst, 1))
        self._topics = topics
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, when

    def __len__(self) -> int:
        return len(self._buckets)

    def allow(self, topic: str, now_seconds: float) -> bool:
        """Whether `topic` may speak at `now_seconds` (of a monotonic clock); takes a token if so."""
        if self._per_second <= 0:
            return True
        tokens, at = self._buckets.pop(topic, (self._burst, now_seconds))
        tokens = min(self._burst, tokens + (now_seconds - at) * self._per_second)
        allowed = tokens >= 1
        self._buckets[topic] = (tokens - 1 if allowed else tokens, now_seconds)
        if len(self._buckets) > self._topics:
            self._buckets.popitem(last=False)
        return allowed
