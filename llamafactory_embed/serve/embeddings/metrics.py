"""What a server did, in Prometheus' text format."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping


PREFIX = "llamafactory_embed"
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# Upper ends of the histogram of response times, in seconds.
BOUNDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServingMetrics:
    """Counters that only grow; what changes both ways is given when they are written."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._responses: Counter[int] = Counter()
        self._seconds_below = [0] * (len(BOUNDS) + 1)
        self._seconds = 0.0
        self._texts = self._tokens = self._forwards = 0
        self._forward_seconds = 0.0

    def count_response(self, status: int, seconds: float) -> None:
        """One request to `/v1/embeddings` was answered."""
        with self._lock:
            self._responses[status] += 1
            self._seconds += seconds
            self._seconds_below[bisect_left(BOUNDS, seconds)] += 1

    def count_forward(self, texts: int, tokens: int, seconds: float) -> None:
        """The model has run once."""
        with self._lock:
            self._forwards += 1
            self._texts += texts
            self._tokens += tokens
            self._forward_seconds += seconds

    def write(self, gauges: Mapping[str, tuple[str, float]]) -> str:
        """The page. `gauges` are values of the moment with their help, by name."""
        with self._lock:
            return "".join(f"{line}\n" for line in self._lines(gauges))

    def _lines(self, gauges: Mapping[str, tuple[str, float]]) -> Iterator[str]:
        yield from _head("responses_total", "counter", "Requests for embeddings that were answered, by status.")
        for status, count in sorted(self._responses.items()):
            yield f'{PREFIX}_responses_total{{status="{status}"}} {count}'
        counters = {
            "texts_total": ("Texts that were embedded.", self._texts),
            "tokens_total": ("Tokens that were embedded.", self._tokens),
            "forwards_total": ("Forwards of the model; tokens by forwards is how full they are.", self._forwards),
            "forward_seconds_total": ("Seconds that the model ran.", self._forward_seconds),
        }
        for name, (help_text, value) in counters.items():
            yield from _head(name, "counter", help_text)
            yield f"{PREFIX}_{name} {value}"
        for name, (help_text, value) in gauges.items():
            yield from _head(name, "gauge", help_text)
            yield f"{PREFIX}_{name} {value}"
        yield from _head("response_seconds", "histogram", "From a request's first byte to its answer.")
        total = 0
        for bound, count in zip((*map(str, BOUNDS), "+Inf"), self._seconds_below, strict=True):
            total += count
            yield f'{PREFIX}_response_seconds_bucket{{le="{bound}"}} {total}'
        yield f"{PREFIX}_response_seconds_sum {self._seconds}"
        yield f"{PREFIX}_response_seconds_count {total}"


def _head(name: str, kind: str, help_text: str) -> Iterator[str]:
    yield f"# HELP {PREFIX}_{name} {help_text}"
    yield f"# TYPE {PREFIX}_{name} {kind}"
