"""`GET /metrics`: the counters of the actors, in the text formats of Prometheus. They are read at each scrape.

`docs/operating.md` lists the names. The values of a label are a closed set; of modules, `Tally` counts a bounded
number.
"""

from __future__ import annotations

import platform
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import accumulate
from types import MappingProxyType
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import HistogramMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from actors.executions import BUCKETS, PHASES, Histogram
from actors.history import HistoryStatistics
from protocol.errors import RunnerError
from protocol.model import Kind
from runner.api import Service
from runner.auth import Principal
from runner.rest.endpoint import SHARE, Answer, Endpoint, Request, serves
from runner.rest.hooks import Refusal
from runner.version import release

PARTS: Final = ("code", "files", "history", "journal", "keys", "modules", "schedules")
CREDENTIALS: Final = ("none", "token", "key")
_BOUNDS = [*(str(bound) for bound in BUCKETS), "+Inf"]


def endpoint(refused: Mapping[str, int]) -> Endpoint:
    """Return the endpoint of the metrics; `refused` counts refused callers by the credential that they showed."""

    @serves("getMetrics")
    async def metrics(request: Request) -> Answer:
        """Show the metrics: to a caller with a token those of its modules, to everybody all where they are open."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(_process())
        registry.register(
            RunnerCollector(request.service, release(), request.caller, refused, await _unsent(request.service))
        )
        encode, content_type = choose_encoder(request.header("accept") or "")
        body = encode(registry)
        request.scope[SHARE] = share = request.service.answers.reserved()
        request.service.answers.take(share, len(body))
        return Answer(body, content_type=content_type)

    return metrics


@lru_cache(maxsize=1)
def _process() -> ProcessCollector:
    return ProcessCollector(registry=None)


async def _unsent(service: Service) -> Mapping[str, int]:
    """Return the numbers of unsent notices; none while the history cannot be read."""
    try:
        return {} if service.outbox is None else await service.outbox.unsent()
    except RunnerError:
        return {}


class RunnerCollector(Collector):
    """All metrics of one runner at this moment, for the modules that the principal may use (None: all modules)."""

    def __init__(
        self,
        service: Service,
        version: str,
        principal: Principal | None = None,
        refused: Mapping[str, int] = MappingProxyType({}),
        unsent: Mapping[str, int] = MappingProxyType({}),
    ) -> None:
        self._service = service
        self._version = version
        self._principal = principal
        self._refused = refused
        self._unsent = unsent

    def collect(self) -> Iterator[Metric]:
        """Yield each metric with all its series. Never waits."""
        yield _gauge(
            "operato_build_info",
            "The release and the version of Python, as labels; always 1.",
            [({"version": self._version, "python": platform.python_version()}, 1)],
        )
        yield from self._cluster()
        modules = len(self._service.registry.snapshot.modules)
        yield _gauge("operato_modules", "Modules that are served.", [({}, modules)])
        mailbox = self._service.registry.statistics()
        waiting = mailbox.waiting + mailbox.blocked
        yield _gauge("operato_registry_waiting", "Changes of modules that wait for the registry.", [({}, waiting)])
        buffered = self._service.budget.taken
        yield _gauge("operato_buffered_bytes", "Bytes of requests that are not complete.", [({}, buffered)])
        refused = [({"reason": each.value}, self._service.signatures_refused[each.value]) for each in Refusal]
        yield _counter("operato_signatures_refused", "Requests of endpoints with a refused signature.", refused)
        yield from self._access()
        yield from self._notices()
        yield from self._executors()
        yield from self._runs()
        yield from self._ends()
        yield from self._files()
        yield from self._history()

    def _cluster(self) -> Iterator[Metric]:
        state = self._service.runs.owners.cluster()
        if state is None:
            return
        label = {"node": state.node}
        gauges = (
            (
                "connected",
                "Whether the runner has a connection to the servers of the cluster: 1 or 0.",
                state.connected,
            ),
            ("nodes", "Runners of the cluster that are there.", len(state.nodes)),
            ("lag_executions", "States of executions that the history does not have yet.", state.lag),
            ("unsent_executions", "Executions whose state the cluster does not have yet.", state.unsent),
        )
        counters = (
            ("unreadable_messages", "Messages of other releases that could not be read.", state.unreadable),
            ("forwarded_calls", "Calls that other runners took.", state.forwarded),
        )
        for name, text, value in gauges:
            yield _gauge(f"operato_cluster_{name}", text, [(label, value)])
        for name, text, value in counters:
            yield _counter(f"operato_cluster_{name}", text, [(label, value)])

    def _access(self) -> Iterator[Metric]:
        refused = [({"credential": name}, self._refused.get(name, 0)) for name in CREDENTIALS]
        yield _counter("operato_authentication_failures", "Requests without a valid token or key.", refused)
        if counts := self._service.schedules.statistics():
            states = [({"state": name}, counts[name]) for name in ("active", "paused")]
            yield _gauge("operato_schedules", "Schedules by state.", states)
            ends = [({"outcome": name}, counts[name]) for name in ("started", "skipped", "missed", "failed")]
            yield _counter("operato_schedule_instants", "Instants of schedules by their outcome.", ends)
        if self._service.api_keys is not None:
            states = [({"state": name}, count) for name, count in self._service.api_keys.statistics().items()]
            yield _gauge("operato_api_keys", "API keys by state; ended ones were revoked or have expired.", states)

    def _notices(self) -> Iterator[Metric]:
        outbox = self._service.outbox
        if outbox is not None:
            outcomes = [({"outcome": name}, getattr(outbox, name)) for name in ("delivered", "failed", "dead")]
            yield _counter("operato_notices", "Attempts to send notices; failed ones are repeated.", outcomes)
        if self._unsent:
            states = [({"state": name}, count) for name, count in self._unsent.items()]
            yield _gauge("operato_notices_unsent", "Stored notices that wait or are dead.", states)

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
        yield _gauge("operato_workers", "Workers by state; a busy worker runs an execution.", workers)
        yield _gauge("operato_calls", "Calls that run in workers, or are about to.", each("calls"))
        parked = "Busy workers whose handlers wait for calls of modules."
        yield _gauge("operato_workers_parked", parked, each("parked"))
        yield _gauge("operato_spare_workers", "Started interpreters without a module.", each("spares"))
        yield _gauge("operato_kept_memory_bytes", "Memory of idle workers.", each("kept_memory"))
        evicted = "Idle workers retired for others, or because memory was short."
        yield _counter("operato_workers_evicted", evicted, each("evicted"))
        yield _gauge("operato_callers_waiting", "Callers that wait for a worker.", each("waiting"))
        yield _counter("operato_workers_started", "Workers that were started, including spares.", each("started"))
        yield _counter("operato_workers_ended", "Workers that have ended, including spares.", each("ended"))
        yield _gauge("operato_builds_running", "Builds of environments that are running.", each("building"))
        builds = [
            ({"env": kind.value, "outcome": outcome}, getattr(found, name))
            for kind, found in counted.items()
            for outcome, name in (("succeeded", "built"), ("failed", "builds_failed"))
        ]
        yield _counter("operato_builds", "Builds of environments that have ended.", builds)

    def _runs(self) -> Iterator[Metric]:
        runs = self._service.runs.statistics()
        yield _gauge(
            "operato_executions_live", "Executions that have not ended, including queued ones.", [({}, runs.live)]
        )
        yield _gauge("operato_executions_queued", "Accepted executions that wait for their turn.", [({}, runs.queued)])
        awaiting = "Executions that wait for a person to approve them."
        yield _gauge("operato_executions_awaiting_approval", awaiting, [({}, runs.awaiting)])
        scheduled = "Accepted executions that are queued at their time."
        yield _gauge("operato_executions_scheduled", scheduled, [({}, runs.scheduled)])
        called = "Calls of modules by handlers."
        yield _counter("operato_calls_of_modules", called, [({}, runs.called)])
        yield _counter(
            "operato_executions_accepted", "Asynchronous executions that were accepted.", [({}, runs.accepted)]
        )

    def _ends(self) -> Iterator[Metric]:
        tally, principal = self._service.runs.tally, self._principal
        ended = [
            ({"module": module, "status": status.value, "kind": "" if kind is None else kind.value}, number)
            for (module, status, kind), number in tally.ended.items()
            if principal is None or principal.may_use(module)
        ]
        yield _counter("operato_executions_ended", "Recorded executions that have ended.", ended)
        refused = [({"kind": kind.value}, number) for kind, number in tally.refused.items()]
        yield _counter("operato_executions_refused", "Executions that were begun and have no recorded end.", refused)
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
        text = "Seconds in each phase, over all attempts of an execution."
        yield _histogram("operato_execution_phase_seconds", text, ["env", "phase"], phases)

    def _files(self) -> Iterator[Metric]:
        found = self._service.files.statistics()
        gauges = (
            ("stored", "Stored files.", found.files),
            ("bytes", "Bytes of stored files.", found.bytes),
            ("limit_bytes", "The limit `max_files_bytes`.", found.limit_bytes),
            ("unfinished", "Files that are being written.", found.writing),
            ("unfinished_bytes", "Bytes of files that are being written.", found.writing_bytes),
        )
        for name, text, value in gauges:
            yield _gauge(f"operato_files_{name}", text, [({}, value)])
        yield _counter("operato_files_refused", "Files that were refused without room.", [({}, found.refused)])
        yield _counter(
            "operato_files_deleted", "Files that were deleted as no execution used them.", [({}, found.collected)]
        )

        yield _counter("operato_files_fetched", "Files that came from other runners.", [({}, found.fetched)])

    def _history(self) -> Iterator[Metric]:
        found = self._service.history.statistics()
        gauges = (
            ("writable", "Whether ends can be recorded, here and in the database: 1 or 0.", _writable(found)),
            ("pending_rows", "Recorded executions that are not in the database yet.", found.pending),
            ("unwritten_bytes", "Inputs, results and events that wait for the database.", found.unwritten_bytes),
            ("unwritten_executions", "Running executions that are only in memory.", found.running),
            ("pending_segments", "Pieces of events that wait for the database.", found.pieces),
            ("journal_bytes", "Size of the journal.", found.journal_bytes),
            ("database_bytes", "Size of the database.", found.database_bytes),
            ("rows", "Executions in the database.", found.rows),
            ("last_commit_seconds", "Duration of the last commit.", found.last_commit_seconds),
        )
        counters = (
            ("commits", "Commits to the database.", found.commits),
            ("committed_rows", "Rows that were written.", found.committed),
            ("rejected_rows", "Rows that the database refused.", found.rejected),
            ("deleted_executions", "Executions deleted by age or number.", found.deleted),
            ("dropped_segments", "Pieces of events that were dropped.", found.pieces_dropped),
        )
        damaged = self._service.damaged()
        parts = [({"part": part}, part in damaged) for part in PARTS]
        yield _gauge("operato_damaged", "Whether a stored part was found damaged since the start: 1 or 0.", parts)
        for name, text, value in gauges:
            yield _gauge(f"operato_history_{name}", text, [({}, value)])
        for name, text, value in counters:
            yield _counter(f"operato_history_{name}", text, [({}, value)])


def _writable(found: HistoryStatistics) -> bool:
    return found.last_error is None and found.refusing is None


Series = Iterable[tuple[dict[str, str], float]]


def _gauge(name: str, text: str, series: Series) -> Metric:
    metric = Metric(name, text, "gauge")
    for labels, value in series:
        metric.add_sample(name, labels, float(value))
    return metric


def _counter(name: str, text: str, series: Series) -> Metric:
    """Return a counter; its series have the name `NAME_total`."""
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
