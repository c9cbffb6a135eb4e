"""`GET /metrics`: what the actors count, in the text formats of Prometheus. Read from them at each scrape.

The names are in the README. Labels are closed sets, but for modules, of which `Tally` counts a bounded number.
"""

from __future__ import annotations

import platform
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector
from quart import Response, request
from quart_trio import QuartTrio

from actors.executions import BUCKETS, PHASES, Histogram
from protocol.model import Kind
from runner.api import Service
from runner.auth import Principal, Scope, require
from runner.rest.openapi import METRICS
from runner.rest.web import arguments, serves
from runner.version import release

_BOUNDS = [*(str(bound) for bound in BUCKETS), "+Inf"]


def add_metrics_route(app: QuartTrio, service: Service, principal: Callable[[], Awaitable[Principal]]) -> None:
    """Add the route to `app`, where the setting `metrics` has one; `principal` says who makes the request at hand."""
    allowed = service.settings.server.metrics
    if allowed == "off":
        return
    process, version = ProcessCollector(registry=None), release()

    @serves(app, METRICS)
    async def metrics() -> Response:
        who = None
        if allowed == "token":
            who = await principal()
            require(who, Scope.METRICS_READ)
        arguments(METRICS)
        registry = CollectorRegistry(auto_describe=False)
        registry.register(process)
        registry.register(RunnerCollector(service, version, who))
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(registry), content_type=content_type)


class RunnerCollector(Collector):
    """All metrics of one runner at this moment; of modules, those that the principal may use (None: all)."""

    def __init__(self, service: Service, version: str, principal: Principal | None = None) -> None:
        self._service = service
        self._version = version
        self._principal = principal

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with all its series. Never waits."""
        yield _gauge(
            "operato_build_info",
            "The release, and the Python that runs it; always 1.",
            [({"version": self._version, "python": platform.python_version()}, 1)],
        )
        modules = len(self._service.registry.snapshot.modules)
        yield _gauge("operato_modules", "Modules that are served.", [({}, modules)])
        mailbox = self._service.registry.statistics()
        waiting = mailbox.waiting + mailbox.blocked
        yield _gauge("operato_registry_waiting", "Changes of the modules that wait for the registry.", [({}, waiting)])
        yield from self._executors()
        yield from self._runs()
        yield from self._ends()
        yield from self._history()

    def _executors(self) -> Iterator[Metric]:
        executors = self._service.executors
        counted = {kind: executor.statistics() for kind, executor in executors.items()}
        states = ("idle", "busy", "starting")

        def each(name: str) -> list[tuple[dict[str, str], float]]:
            return [({"env": kind}, getattr(found, name)) for kind, found in counted.items()]

        usable = [({"env": kind.value}, executor.availability.available) for kind, executor in executors.items()]
        yield _gauge("operato_environment_available", "Whether a kind of environment can be used: 1 or 0.", usable)
        workers = [
            ({"env": kind.value, "state": state}, getattr(found, state))
            for kind, found in counted.items()
            for state in states
        ]
        yield _gauge("operato_workers", "Workers; one that is busy is lent to an execution.", workers)
        yield _gauge("operato_spare_workers", "Started interpreters that have no module yet.", each("spares"))
        yield _gauge("operato_callers_waiting", "Callers that wait for a worker.", each("waiting"))
        yield _counter("operato_workers_started", "Workers that were started, spares included.", each("started"))
        yield _counter("operato_workers_ended", "Workers that have ended, spares included.", each("ended"))
        yield _gauge("operato_builds_running", "Environments that are prepared now.", each("building"))
        builds = [
            ({"env": kind.value, "outcome": outcome}, getattr(found, name))
            for kind, found in counted.items()
            for outcome, name in (("succeeded", "built"), ("failed", "builds_failed"))
        ]
        yield _counter("operato_builds", "Builds of environments that have ended.", builds)

    def _runs(self) -> Iterator[Metric]:
        runs = self._service.runs.statistics()
        yield _gauge(
            "operato_executions_live", "Executions that have not ended, queued ones included.", [({}, runs.live)]
        )
        yield _gauge("operato_executions_queued", "Accepted executions before their turn.", [({}, runs.queued)])
        yield _counter(
            "operato_executions_accepted", "Asynchronous executions that were accepted.", [({}, runs.accepted)]
        )

    def _ends(self) -> Iterator[Metric]:
        tally, who = self._service.runs.tally, self._principal
        ended = [
            ({"module": module, "status": status.value, "kind": "" if kind is None else kind.value}, number)
            for (module, status, kind), number in tally.ended.items()
            if who is None or who.may_use(module)
        ]
        yield _counter("operato_executions_ended", "Executions that have ended and are on record.", ended)
        refused = [({"kind": kind.value}, number) for kind, number in tally.refused.items()]
        yield _counter("operato_executions_refused", "Executions that were let in and have no end on record.", refused)
        yield _histogram(
            "operato_execution_duration_seconds",
            "From acceptance to the end.",
            ["env"],
            [([kind.value], found) for kind, found in tally.durations.items()],
        )
        phases = [
            ([kind.value, phase], tally.phases[kind, phase])
            for kind in Kind
            for phase in PHASES
            if (kind, phase) in tally.phases
        ]
        text = "Phases of executions that had them, over all attempts."
        yield _histogram("operato_execution_phase_seconds", text, ["env", "phase"], phases)

    def _history(self) -> Iterator[Metric]:
        found = self._service.history.statistics()
        gauges = (
            ("writable", "Whether the database takes what is recorded: 1 or 0.", found.last_error is None),
            ("pending_rows", "Recorded executions that the database does not have yet.", found.pending),
            ("unwritten_executions", "Executions that run and are known in memory only.", found.running),
            ("pending_segments", "Pieces of events that wait for the database.", found.pieces),
            ("journal_bytes", "Size of the journal.", found.journal_bytes),
            ("database_bytes", "Size of the database.", found.database_bytes),
            ("rows", "Executions in the database.", found.rows),
            ("last_commit_seconds", "How long the last commit took.", found.last_commit_seconds),
        )
        counters = (
            ("commits", "Commits to the database.", found.commits),
            ("committed_rows", "Rows that were written.", found.committed),
            ("rejected_rows", "Rows that the database would never take.", found.rejected),
            ("deleted_executions", "Executions that were too old or too many.", found.deleted),
            ("dropped_segments", "Pieces of events that were dropped.", found.pieces_dropped),
        )
        for name, text, value in gauges:
            yield _gauge(f"operato_history_{name}", text, [({}, value)])
        for name, text, value in counters:
            yield _counter(f"operato_history_{name}", text, [({}, value)])


Series = Iterable[tuple[dict[str, str], float]]


def _gauge(name: str, text: str, series: Series) -> Metric:
    metric = Metric(name, text, "gauge")
    for labels, value in series:
        metric.add_sample(name, labels, float(value))
    return metric


def _counter(name: str, text: str, series: Series) -> Metric:
    """Return a counter; its series are called `NAME_total`."""
    metric = Metric(name, text, "counter")
    for labels, value in series:
        metric.add_sample(f"{name}_total", labels, float(value))
    return metric


def _histogram(name: str, text: str, labels: list[str], series: Iterable[tuple[list[str], Histogram]]) -> Metric:
    metric = HistogramMetricFamily(name, text, labels=labels)
    for values, found in series:
        buckets = list(zip(_BOUNDS, map(float, accumulate(found.counts)), strict=True))
        metric.add_metric(values, buckets, found.seconds)
    return metric
