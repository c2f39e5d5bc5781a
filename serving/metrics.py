"""TensorFlow Serving's metrics for Prometheus, by its names (servables/tensorflow/util.cc)."""

import threading
from collections import Counter
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import Metric

PATH = "/monitoring/prometheus/metrics"
# Microseconds: a scale of 10, a power of 1.8, 33 buckets.
_BUCKETS = [10 * 1.8**power for power in range(32)]


class _Counts:
    """A counter whose name does not end in _total, which prometheus_client's own would add."""

    def __init__(self, name: str, about: str, labels: tuple[str, ...]) -> None:
        self._name, self._about, self._labels = name, about, labels
        self._counts: Counter[tuple[str, ...]] = Counter()
        self._lock = threading.Lock()

    def add(self, *labels: str, by: int = 1) -> None:
        with self._lock:
            self._counts[labels] += by

    def collect(self) -> Iterator[Metric]:
        metric = Metric(self._name, self._about, "unknown")
        with self._lock:
            for labels, count in self._counts.items():
                metric.add_sample(self._name, dict(zip(self._labels, labels, strict=True)), count)
        yield metric


class Metrics:
    """What is counted, and its page."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = _Counts(
            ":tensorflow:serving:request_count",
            "The total number of requests.",
            ("model_name", "status"),
        )
        self.unlogged = _Counts(
            ":espalier:serving:unlogged_count",
            "Requests that were chosen for the log and not written: it was full or failed.",
            ("model_name",),
        )
        for counts in (self._requests, self.unlogged):
            self._registry.register(counts)  # type: ignore[arg-type]
        self._latency = Histogram(
            ":tensorflow:serving:request_latency",
            "Distribution of wall time (in microseconds) for Tensorflow Serving request.",
            ("model_name", "API", "entrypoint"),
            buckets=_BUCKETS,
            registry=self._registry,
        )
        self._children: dict[tuple[str, str, str], Histogram] = {}

    def answered(self, model: str, api: str, entrypoint: str, status: str, seconds: float) -> None:
        """Count a request; its time only if it succeeded, as TensorFlow Serving does."""
        self._requests.add(model, status)
        if status == "OK":
            key = (model, api, entrypoint)
            child = self._children.get(key)
            if child is None:
                child = self._children[key] = self._latency.labels(*key)
            child.observe(seconds * 1e6)

    def page(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self._registry)
