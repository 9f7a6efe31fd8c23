"""What the server counts, in Prometheus' terms, on a registry of its own.

The counters are plain dictionaries, because the scheduler adds to them on its hottest paths; they
become metric families only when somebody scrapes. The label of a queue is bounded: past
`QUEUE_LABELS_MAX` names the rest are counted together as `other`.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from tickwheel.core.scheduler import Scheduler
from tickwheel.core.snapshot import QueueSnapshot

QUEUE_LABELS_MAX = 1_000
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
LAG_BUCKETS_MS = (
    *(1, 2, 3, 5, 7, 10, 20, 30, 50, 100, 200, 500),
    *(1_000, 2_000, 5_000, 10_000, 20_000, 60_000),
)
STALL_BUCKETS_MS = (1, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100, 200, 500, 1_000)
BATCH_BUCKETS_MS = (0.5, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1_000, 5_000)


class _Histogram:
    __slots__ = ("_bounds", "_counts", "_sum_ms")

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_ms = 0.0

    def observe(self, values_ms: Sequence[float]) -> None:
        bounds, counts = self._bounds, self._counts
        for value, times in Counter(values_ms).items():
            counts[bisect_left(bounds, value)] += times
        self._sum_ms += sum(values_ms)

    def export(self) -> tuple[list[tuple[str, float]], float]:
        """Return the cumulative buckets, bounds in seconds, and the sum in seconds."""
        total = 0
        buckets = []
        bounds = [*(str(bound / 1000) for bound in self._bounds), "+Inf"]
        for bound, count in zip(bounds, self._counts, strict=True):
            total += count
            buckets.append((bound, float(total)))
        return buckets, self._sum_ms / 1000


class ServerMetrics(Collector):
    """The scheduler's `Metrics`, and the counts of requests; `expose` writes them out."""

    def __init__(self) -> None:
        self._lag: dict[str, _Histogram] = {}
        self._batches: dict[str, _Histogram] = {}
        self._stalls = _Histogram(STALL_BUCKETS_MS)
        self._batch_rows: Counter[str] = Counter()
        self._submitted: Counter[str] = Counter()
        self._settled: Counter[tuple[str, str]] = Counter()
        self._requests: Counter[tuple[str, int]] = Counter()
        self._stale = 0
        self._swept = 0
        self._labels: set[str] = set()
        self._scheduler: Scheduler | None = None
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)
        GCCollector(registry=self._registry)

    def submitted(self, queue: str, jobs: int) -> None:
        """Jobs were acknowledged."""
        self._submitted[self._label(queue)] += jobs

    def fired(self, queue: str, lag_ms: Sequence[int]) -> None:
        """Jobs were handed to a worker, each so many ms after its time."""
        label = self._label(queue)
        histogram = self._lag.get(label)
        if histogram is None:
            histogram = self._lag[label] = _Histogram(LAG_BUCKETS_MS)
        histogram.observe(lag_ms)

    def settled(self, queue: str, outcome: str, jobs: int) -> None:
        """Attempts ended."""
        self._settled[self._label(queue), outcome] += jobs

    def stale(self, jobs: int) -> None:
        """Reports were rejected, because their token is no longer current."""
        self._stale += jobs

    def batch(self, name: str, rows: int, milliseconds: float) -> None:
        """A batch went to the store."""
        histogram = self._batches.get(name)
        if histogram is None:
            histogram = self._batches[name] = _Histogram(BATCH_BUCKETS_MS)
        histogram.observe((milliseconds,))
        self._batch_rows[name] += rows

    def found_by_sweep(self, jobs: int) -> None:
        """The sweep found jobs that memory had missed."""
        self._swept += jobs

    def stall(self, milliseconds: float) -> None:
        """The event loop was looked at, and was so late."""
        self._stalls.observe((milliseconds,))

    def request(self, route: str, status: int) -> None:
        """A request was answered; `route` is one of the table's, so few."""
        self._requests[route, status] += 1

    def watch(self, scheduler: Scheduler) -> None:
        """Show this scheduler's gauges, too."""
        self._scheduler = scheduler

    def expose(self) -> bytes:
        """Return everything in the text format."""
        return generate_latest(self._registry)

    def _label(self, queue: str) -> str:
        if queue in self._labels:
            return queue
        if len(self._labels) >= QUEUE_LABELS_MAX:
            return "other"
        self._labels.add(queue)
        return queue

    def describe(self) -> Iterator[Metric]:
        """Register without collecting."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """Yield every family."""
        yield _counter("jobs_submitted", "Jobs acknowledged.", ("queue",), self._submitted)
        yield _counter("attempts_settled", "Attempts ended.", ("queue", "outcome"), self._settled)
        yield _counter("requests", "Requests answered.", ("route", "status"), self._requests)
        yield _counter("stale_reports", "Reports with an old token.", (), {(): self._stale})
        yield _counter("swept_jobs", "Jobs only the sweep found.", (), {(): self._swept})
        yield _counter("batch_rows", "Rows sent to the store.", ("name",), self._batch_rows)
        yield _histogram(
            "fire_lag", "From a job's time to its hand-over to a worker.", "queue", self._lag
        )
        yield _histogram("batch", "Round trips to the store.", "name", self._batches)
        buckets, total = self._stalls.export()
        text = "How late the event loop was, looked at every 20 ms."
        yield HistogramMetricFamily(
            "tickwheel_loop_stall_seconds", text, buckets=buckets, sum_value=total
        )
        if self._scheduler is not None:
            yield from self._gauges(self._scheduler)

    def _gauges(self, scheduler: Scheduler) -> Iterator[Metric]:
        now = scheduler.snapshot()
        yield _gauge("ready", "1 while the scheduler makes progress.", not scheduler.not_ready())
        yield _gauge("owned_shards", "Shards owned by this scheduler.", now.shards)
        yield _gauge("resident_jobs", "Waiting jobs in memory.", now.residents)
        yield _gauge("workers", "Worker sessions.", now.workers)
        figures: list[tuple[str, str, Callable[[QueueSnapshot], float]]] = [
            ("queue_depth", "Jobs due and unclaimed.", lambda queue: queue.depth),
            (
                "queue_oldest_age_seconds",
                "Age of the oldest due job in memory.",
                lambda queue: queue.oldest_age_ms / 1000,
            ),
            ("queue_running", "Attempts claimed and not settled.", lambda queue: queue.running),
            ("queue_paused", "1 while paused.", lambda queue: queue.paused),
        ]
        for name, text, figure in figures:
            family = GaugeMetricFamily(f"tickwheel_{name}", text, labels=("queue",))
            for queue in now.queues[:QUEUE_LABELS_MAX]:
                family.add_metric([queue.name], figure(queue))
            yield family


def _counter(
    name: str,
    text: str,
    labels: tuple[str, ...],
    values: Mapping[Any, int],
) -> CounterMetricFamily:
    family = CounterMetricFamily(f"tickwheel_{name}", text, labels=labels)
    for key, value in values.items():
        parts = (key,) if isinstance(key, str) else key
        family.add_metric([str(part) for part in parts], value)
    return family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"tickwheel_{name}", text, value=value)


def _histogram(
    name: str, text: str, label: str, values: dict[str, _Histogram]
) -> HistogramMetricFamily:
    family = HistogramMetricFamily(f"tickwheel_{name}_seconds", text, labels=(label,))
    for key, histogram in values.items():
        buckets, total = histogram.export()
        family.add_metric([key], buckets, total)
    return family
