"""The health of the machine and of the runner, as lines of the overview."""

from __future__ import annotations

from typing import Final

from attrs import define, field, frozen

from actors.history import HistoryStatistics
from protocol.errors import RunnerError
from runner.api import Glance, Hardware
from runner.auth import Scope
from runner.ui.looks import as_size
from runner.ui.visit import Visit

_LITTLE: Final = 0.1
"""Of disk or memory: less is worth a look."""
_NONE: Final = 0.03
"""Of disk or memory: less will soon stop something."""
_GIB: Final = 1024**3


@frozen
class Line:
    """One thing that is measured; `level` is good, warning or bad."""

    name: str
    level: str
    text: str
    share: float | None = None
    """How full it is, 0 to 1."""


@define
class Health:
    """The lines, and the problems that must be seen first."""

    lines: list[Line] = field(factory=list)
    problems: list[tuple[str, str, str]] = field(factory=list)
    """Level, heading, text."""

    @property
    def level(self) -> str:
        """The worst level of all."""
        levels = {each.level for each in self.lines} | {each[0] for each in self.problems}
        return next((level for level in ("bad", "warning") if level in levels), "good")


async def find_health(page: Visit, glance: Glance) -> Health | None:
    """Return the health, as far as the reader may see it; None if nothing of it."""
    health = Health()
    if page.may(Scope.METRICS_READ):
        try:
            machine, record = await glance.machine(page.principal)
        except RunnerError as problem:
            health.problems.append(
                ("bad", page.words("The state of the machine is not known"), problem.failure.message)
            )
        else:
            _add_machine(page, health, machine)
            _add_record(page, health, record)
        _add_cluster(page, health)
    if page.may(Scope.MODULES_READ):
        _add_kinds(page, health)
    return health if health.lines or health.problems else None


def _add_machine(page: Visit, health: Health, machine: Hardware) -> None:
    t = page.words
    for name, total, free in (
        (t("Disk"), machine.disk_total, machine.disk_free),
        (t("Memory"), machine.memory_total, machine.memory_free),
    ):
        if total and free is not None:
            text = t("{free} of {total} free", free=as_size(free), total=as_size(total))
            health.lines.append(Line(name, _level(free, total), text, 1 - free / total))
    if machine.load is not None:
        share = machine.load / machine.cpus
        text = t.plural(machine.cpus, "{load} on {n} processor", "{load} on {n} processors", load=f"{machine.load:.1f}")
        health.lines.append(Line(t("Load"), "warning" if share > 2 else "good", text, min(1.0, share)))


def _level(free: int, total: int) -> str:
    if free < total * _NONE and free < _GIB:
        return "bad"
    return "warning" if free < total * _LITTLE and free < 10 * _GIB else "good"


def _add_record(page: Visit, health: Health, record: HistoryStatistics) -> None:
    t, settings = page.words, page.service.settings.history
    text = t.plural(record.rows, "{n} execution, {size}", "{n} executions, {size}", size=as_size(record.database_bytes))
    share = max(record.rows / settings.max_rows, record.database_bytes / settings.max_bytes)
    level = "good" if record.refusing is None and record.last_error is None else "bad"
    health.lines.append(Line(t("History"), level, text, min(1.0, share)))
    if record.refusing is not None:
        health.problems.append(("bad", t("No execution may begin"), record.refusing))
    elif record.last_error is not None:
        health.problems.append(("bad", t("The history cannot be written"), record.last_error))
    if damaged := page.service.damaged():
        remedy = t("The log names the files and the remedy.")
        health.problems.append(("bad", t("Damaged: {parts}", parts=", ".join(damaged)), remedy))


def _add_cluster(page: Visit, health: Health) -> None:
    t, cluster = page.words, page.service.machine.nodes(page.principal)
    if cluster["node"] is None:
        return
    text = t.plural(len(cluster["items"]), "{n} runner", "{n} runners")
    health.lines.append(Line(t("Cluster"), "good" if cluster["connected"] else "warning", text))
    if not cluster["connected"]:
        title = t("{node} does not reach the NATS servers of the cluster", node=cluster["node"])
        remedy = t("Calls go on; asynchronous calls are refused. The page Nodes has more.")
        health.problems.append(("warning", title, remedy))


def _add_kinds(page: Visit, health: Health) -> None:
    """Add the workers of each kind of environment that modules of the reader use."""
    t, may_use = page.words, page.principal.may_use
    modules = page.service.registry.snapshot.modules
    used = {module.spec.env for name, module in modules.items() if may_use(name)}
    for kind in page.service.machine.kinds(page.principal):
        if kind["env"] not in used:
            continue
        if not kind["available"]:
            title = t("No {kind} on this machine: its modules fail", kind=kind["env"])
            health.problems.append(("warning", title, kind["reason"] or ""))
            continue
        found, limit = kind["statistics"], page.service.settings.executor.max_workers
        text = t(
            "{busy} busy, {idle} idle, {waiting} wait", **{name: found[name] for name in ("busy", "idle", "waiting")}
        )
        health.lines.append(Line(t("{kind} workers", kind=kind["env"]), "good", text, min(1.0, found["busy"] / limit)))
