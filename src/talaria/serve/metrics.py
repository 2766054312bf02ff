"""Counts and durations of a running server, as the text that Prometheus reads.

    metrics = Metrics()
    metrics.add("talaria_requests_total", route="/v1/models", status="200")
    metrics.text()

The format is Prometheus's text exposition format 0.0.4. Labels come from fixed sets (routes, models, statuses), never
from what a client wrote, so the number of rows is bounded. For one thread: the event loop's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_COUNTERS = {
    "talaria_requests_total": "Requests answered, by route and status.",
    "talaria_prompt_tokens_total": "Tokens of prompts and embedded texts, by model.",
    "talaria_completion_tokens_total": "Tokens generated, by model.",
}
_HISTOGRAMS = {
    "talaria_first_token_seconds": "From a request's arrival to its first token, the wait for its turn included.",
    "talaria_request_seconds": "From a request's arrival to its end, by route.",
}
_GAUGES = {
    "talaria_answers_running": "Answers being made, by model.",
    "talaria_answers_waiting": "Answers that wait for their turn, by model.",
    "talaria_cache_blocks": "Blocks of the key and value cache that running answers hold, by model.",
}
_BUCKETS_SECONDS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

_Labels = tuple[tuple[str, str], ...]


class Metrics:
    """What has been counted since the server started."""

    def __init__(self) -> None:
        self._counts: dict[str, dict[_Labels, float]] = {name: {} for name in _COUNTERS}
        self._durations: dict[str, dict[_Labels, list[float]]] = {name: {} for name in _HISTOGRAMS}
        self._gauges: dict[str, dict[_Labels, Callable[[], int]]] = {name: {} for name in _GAUGES}

    def add(self, counter: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter."""
        rows = self._counts[counter]
        key = tuple(labels.items())
        rows[key] = rows.get(key, 0) + amount

    def observe(self, histogram: str, seconds: float, **labels: str) -> None:
        """Count one duration. A row holds a count for each bucket and one beyond the last, then the sum."""
        row = self._durations[histogram].setdefault(tuple(labels.items()), [0.0] * (len(_BUCKETS_SECONDS) + 2))
        row[bisect_left(_BUCKETS_SECONDS, seconds)] += 1
        row[-1] += seconds

    def watch(self, gauge: str, read: Callable[[], int], **labels: str) -> None:
        """Call `read` for the value whenever the metrics are asked for."""
        self._gauges[gauge][tuple(labels.items())] = read

    def text(self) -> str:
        """Everything, a line a value."""
        return "".join(f"{line}\n" for line in self._lines())

    def _lines(self) -> Iterator[str]:
        for name, words in _COUNTERS.items():
            yield from (f"# HELP {name} {words}", f"# TYPE {name} counter")
            yield from (f"{name}{_braces(labels)} {value:.0f}" for labels, value in self._counts[name].items())
        for name, words in _GAUGES.items():
            yield from (f"# HELP {name} {words}", f"# TYPE {name} gauge")
            yield from (f"{name}{_braces(labels)} {read()}" for labels, read in self._gauges[name].items())
        for name, words in _HISTOGRAMS.items():
            yield from (f"# HELP {name} {words}", f"# TYPE {name} histogram")
            for labels, row in self._durations[name].items():
                total = 0.0
                for limit, count in zip((*_BUCKETS_SECONDS, "+Inf"), row[:-1], strict=True):
                    total += count
                    yield f"{name}_bucket{_braces((*labels, ('le', str(limit))))} {total:.0f}"
                yield f"{name}_sum{_braces(labels)} {row[-1]:.6f}"
                yield f"{name}_count{_braces(labels)} {total:.0f}"


def _braces(labels: _Labels) -> str:
    def escaped(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escaped(value)}"' for name, value in labels) + "}" if labels else ""
