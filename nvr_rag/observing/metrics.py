"""Figures for Prometheus: what happened enters, the text that a scrape reads leaves. prometheus_client is imported here
only.

A process counts in memory. Several that answer on one address share a folder (`share`): each counts in files of its own
there, and whichever is asked adds up all of them. What the database knows is read when somebody asks; see stored.py.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest, values
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead
from prometheus_client.registry import Collector

from nvr_rag import __version__
from nvr_rag.observing.meter import Meter, Request
from nvr_rag.observing.stored import Figures
from nvr_rag.types import SearchResult

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FOLDER = "PROMETHEUS_MULTIPROC_DIR"  # the library's own word for it
_METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_STAGE_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)

Kind = TypeVar("Kind", Counter, Histogram)


def share(folder: Path, name: str) -> None:
    """From now on this process counts in files of a folder, under a name that no other running process has: one that
    takes the place of a dead process goes on counting where that ended. To be called before Metrics are made."""
    os.environ[_FOLDER] = str(folder)
    values.ValueClass = values.MultiProcessValue(lambda: name)  # type: ignore[no-untyped-call]


def died(folder: Path, name: str) -> None:
    """A process that shared the folder is gone: what it was at, nobody is at any more."""
    mark_process_dead(name, str(folder))  # type: ignore[no-untyped-call]


class _Series(Generic[Kind]):
    """The series of one metric by their labels: the library's own look-up takes longer than counting."""

    def __init__(self, metric: Kind) -> None:
        self._metric: Kind = metric
        self._known: dict[tuple[str, ...], Kind] = {}

    def of(self, *labels: str) -> Kind:
        found = self._known.get(labels)
        if found is None:
            found = self._known[labels] = self._metric.labels(*labels)
        return found


class Metrics(Meter):
    """The figures of one process, or of all that share a folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._registry = CollectorRegistry()
        by_route = ("route", "method", "status")
        self._requests = self._seconds("http_request", "Time to answer a request.", _REQUEST_SECONDS, by_route)
        by_stage = ("stage", "mode")
        self._stages = self._seconds("search_stage", "Time that searches took, by stage.", _STAGE_SECONDS, by_stage)
        self._problems = self._counter("problems", "Requests answered with a problem, by its kind.", "kind")
        self._queries = self._counter("queries", "Searches that were answered.", "collection", "mode")
        self._feedback = self._counter("feedback", "Feedback that was stored.", "kind")
        self._caches = self._counter("cache_lookups", "Look-ups in a cache.", "cache", "result")
        self._spent = self._counter("indexer_seconds", "Time that bringing indexes up took, by stage.", "stage")
        self._chunks = self._counter("indexer_chunks", "Chunks of indexes that were brought up.", "done")
        self._in_flight = self._gauge("requests_in_flight", "Requests that are being answered.", "livesum")
        self._waiting = self._gauge("query_log_queue", "Queries that wait to be written into the log.", "livesum")
        self._matches = self._gauge(
            "index_fingerprint_matches",
            "1 while the index that serves has the fingerprint of its encoder, 0 in any process that sees another one.",
            "livemin",
            "collection",
            "index",
        )
        self._seen: set[tuple[str, str]] = set()  # collections and indexes that have a fingerprint's gauge
        if folder is None:  # of several processes only one would tell
            ProcessCollector(registry=self._registry)

    def answered(self, request: Request) -> None:
        method = request.method if request.method in _METHODS else "other"
        status = f"{request.status // 100}xx" if request.status else "gone"
        self._requests.of(request.route or "none", method, status).observe(request.seconds)
        if request.problem is not None:
            self._problems.of(request.problem).inc()

    def occupied(self, in_flight: int) -> None:
        self._in_flight.set(in_flight)

    def queued(self, waiting: int) -> None:
        self._waiting.set(waiting)

    def searched(self, collection: str, result: SearchResult) -> None:
        mode = str(result.mode)
        self._queries.of(collection, mode).inc()
        for stage, seconds in result.seconds.items():
            self._stages.of(stage, mode).observe(seconds)

    def judged(self, kinds: Iterable[str]) -> None:
        for kind in kinds:
            self._feedback.of(kind).inc()

    def looked_up(self, cache: str, *, hit: bool) -> None:
        self._caches.of(cache, "hit" if hit else "miss").inc()

    def indexed(self, seconds: Mapping[str, float], chunks: Mapping[str, int]) -> None:
        for stage, spent in seconds.items():
            self._spent.of(stage).inc(max(0.0, spent))
        for done, count in chunks.items():
            self._chunks.of(done).inc(count)

    def matched(self, collection: str, index: str, *, matches: bool) -> None:
        if self._folder is None:  # the library cannot take a series out of a file
            for old in [seen for seen in self._seen if seen[0] == collection and seen[1] != index]:
                self._seen.remove(old)
                self._matches.remove(*old)
        self._seen.add((collection, index))
        self._matches.labels(collection, index).set(matches)

    def text(self, stored: Figures | None) -> bytes:
        """What a scrape reads; without `stored` the database has not answered in time."""
        registry = self._registry
        if self._folder is not None:
            registry = CollectorRegistry()
            MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
        asked = CollectorRegistry()
        asked.register(_Asked(stored))
        return generate_latest(registry) + generate_latest(asked)

    def _counter(self, name: str, words: str, *labels: str) -> _Series[Counter]:
        return _Series(Counter(f"nvr_rag_{name}", words, labels, registry=self._registry))

    def _seconds(self, name: str, words: str, buckets: Sequence[float], labels: Sequence[str]) -> _Series[Histogram]:
        name = f"nvr_rag_{name}_seconds"
        return _Series(Histogram(name, words, labels, buckets=buckets, registry=self._registry))

    def _gauge(self, name: str, words: str, among: str, *labels: str) -> Gauge:
        """`among` says what several processes' values are together."""
        return Gauge(f"nvr_rag_{name}", words, labels, registry=self._registry, multiprocess_mode=among)  # type: ignore[arg-type]


class _Asked(Collector):
    """What is found out when somebody asks."""

    def __init__(self, stored: Figures | None) -> None:
        self._stored = stored

    def collect(self) -> Iterator[Metric]:
        versions = [((__version__, platform.python_version()), 1.0)]
        yield _family("build_info", "The release that runs.", ("version", "python"), versions)
        up = self._stored is not None
        yield _family("database_up", "1 when the database answered this scrape in time.", (), [((), float(up))])
        if self._stored is not None:
            yield from _of_stored(self._stored)


_Samples = Iterable[tuple[Sequence[str], float]]


def _of_stored(found: Figures) -> Iterator[Metric]:
    by_index = ("collection", "index")
    yield _family("processes", "Servers and workers that are alive.", ("kind",), found.processes)
    yield _family("jobs", "Jobs that wait, run, or have failed for good.", ("kind", "state"), found.jobs)
    yield _family("jobs_oldest_seconds", "How long the oldest job waits that is due.", ("kind",), found.oldest)
    yield _family("index_lag_changes", "Changes that a live index does not have yet.", by_index, found.lags)
    yield _family(
        "index_build_chunks_per_second", "How fast an index is brought up, by whom ever.", by_index, found.paces
    )
    yield _family(
        "index_build_stage_seconds",
        "Time that the build of an index has taken so far, by stage.",
        (*by_index, "stage"),
        found.build_seconds,
    )
    yield _family(
        "deployment_info",
        "The deployment that serves a collection.",
        ("collection", "deployment", "index", "encoder", "mode"),
        [(labels, 1.0) for labels in found.serving],
    )


def _family(name: str, words: str, labels: Sequence[str], samples: _Samples) -> Metric:
    family = GaugeMetricFamily(f"nvr_rag_{name}", words, labels=list(labels))
    for values_, number in samples:
        family.add_metric(list(values_), number)
    return family
