"""What Prometheus reads of a server. Labels are bounded: routes, statuses, layers and experts, never texts.

With several processes the counts lie in a folder that all of them write to and any of them can add up:
``PROMETHEUS_MULTIPROC_DIR``, which must be set before this module is imported.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from moembed.serve.settings import MULTIPROCESS

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Metrics:
    """Counts of one server; also the ``BatchObserver`` of its batcher."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "moembed_requests", "Requests answered.", ("route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "moembed_request_seconds",
            "From the first byte of the head to the last of the answer.",
            ("route",),
            buckets=_SECONDS,
            registry=registry,
        )
        self.working = Gauge(
            "moembed_requests_in_progress",
            "Requests at work.",
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.texts = Counter("moembed_texts", "Texts of requests that were answered.", registry=registry)
        self.tokens = Counter("moembed_tokens", "Tokens read of texts.", registry=registry)
        self.ready = Gauge(
            "moembed_ready", "1 once the model is warm.", registry=registry, multiprocess_mode="livemin"
        )
        self.info = Gauge(
            "moembed_info", "What is served.", ("model", "dtype", "version"), registry=registry,
            multiprocess_mode="max",
        )  # fmt: skip
        self._make_queue(registry)

    def _make_queue(self, registry: CollectorRegistry) -> None:
        self.queue_tokens = Gauge(
            "moembed_queue_tokens", "Tokens that wait.", registry=registry, multiprocess_mode="livesum"
        )
        self.queue_rows = Gauge(
            "moembed_queue_texts", "Texts that wait.", registry=registry, multiprocess_mode="livesum"
        )
        self.queue_age = Histogram(
            "moembed_queue_age_seconds",
            "How long the oldest text of a batch had waited.",
            buckets=_SECONDS,
            registry=registry,
        )
        self.batch_tokens = Histogram(
            "moembed_batch_tokens", "Tokens of a batch.", buckets=_TOKENS, registry=registry
        )
        self.batch_rows = Histogram(
            "moembed_batch_texts", "Texts of a batch.", buckets=_ROWS, registry=registry
        )
        self.batch_seconds = Histogram(
            "moembed_batch_seconds", "To compute a batch.", buckets=_SECONDS, registry=registry
        )
        self.truncated_texts = Counter("moembed_truncated_texts", "Texts that were cut.", registry=registry)
        self.truncated_tokens = Counter(
            "moembed_truncated_tokens", "Tokens cut off from texts.", registry=registry
        )
        self.expert_tokens = Counter(
            "moembed_expert_tokens",
            "Tokens that an expert was given.",
            ("layer", "expert"),
            registry=registry,
        )

    # ---- what the batcher tells --------------------------------------------------------------------------

    def queued(self, tokens: int, rows: int) -> None:
        self.queue_tokens.set(tokens)
        self.queue_rows.set(rows)

    def batch(self, tokens: int, rows: int, seconds: float, waited: float) -> None:
        self.batch_tokens.observe(tokens)
        self.batch_rows.observe(rows)
        self.batch_seconds.observe(seconds)
        self.queue_age.observe(waited)

    def truncated(self, texts: int, tokens: int) -> None:
        self.truncated_texts.inc(texts)
        self.truncated_tokens.inc(tokens)

    def expert_load(self, counts: Mapping[int, Sequence[int]]) -> None:
        for layer, load_E in counts.items():
            for expert, tokens in enumerate(load_E):
                if tokens:
                    self.expert_tokens.labels(str(layer), str(expert)).inc(int(tokens))

    # ---- what the server tells ---------------------------------------------------------------------------

    def answered(self, route: str, status: int, seconds: float, texts: int, tokens: int) -> None:
        """A request was answered, whatever the answer was."""
        self.requests.labels(route, str(status)).inc()
        self.seconds.labels(route).observe(seconds)
        if status < 400:
            self.texts.inc(texts)
            self.tokens.inc(tokens)

    def exposition(self) -> bytes:
        """Everything in Prometheus' text form, of all processes that share a folder."""
        if MULTIPROCESS not in os.environ:
            return generate_latest(self.registry)
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def counts_together() -> bool:
    """Whether several processes count in one folder: decided when the library was imported."""
    return MULTIPROCESS in os.environ and values.ValueClass is not values.MutexValue


def forget_process(pid: int) -> None:
    """What a process says of now, such as its queue, ends with it; what it has counted stays."""
    mark_process_dead(pid)  # type: ignore[no-untyped-call]
