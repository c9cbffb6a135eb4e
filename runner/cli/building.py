"""Building environments without a server, and showing the progress: bars on a terminal, else plain lines."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Protocol

import click
import trio
from attrs import evolve

from actors.workers import BuildLog, build
from config.load import Loaded
from config.mistakes import did_you_mean
from config.modules import ModuleSpec
from environments.base import Managed, Prepared
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Kind
from runner.cli.survey import Survey, Work, nothing_to_build, survey
from runner.status import CODES

_AMOUNT = re.compile(r"(\d+(?:\.\d+)?) of (\d+(?:\.\d+)?)")
_SHOWN_CHARACTERS = 70


# -- prepare -----------------------------------------------------------------------------------------------------------


def preparation(names: Sequence[str]) -> Work:
    """Return the work of `prepare` for these modules, by default for all; it ends with the first failure's code."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        specs = _chosen(loaded, names)
        for kind in {spec.env for spec in specs if spec.env in kinds}:
            await kinds[kind].probe()
        built = [spec for spec in specs if spec.env in kinds]
        ends: dict[str, Prepared | Failure] = {}
        places = trio.CapacityLimiter(loaded.settings.executor.max_builds)
        with display([spec.name for spec in built]) as shown:
            async with trio.open_nursery() as nursery:
                for spec in built:
                    nursery.start_soon(_prepare, kinds[spec.env], spec, places, shown, ends)
        return _report(specs, ends)

    return work


def _chosen(loaded: Loaded, names: Sequence[str]) -> list[ModuleSpec]:
    known = {spec.name: spec for spec in loaded.modules.modules}
    for name in names:
        if name not in known:
            raise error(ErrorKind.NOT_FOUND, f"there is no module {name!r:.80}{did_you_mean(name, list(known))}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(known.values())


async def _prepare(
    environment: Managed,
    spec: ModuleSpec,
    places: trio.CapacityLimiter,
    shown: Display,
    ends: dict[str, Prepared | Failure],
) -> None:
    """Build one environment and put its end into `ends`. Cancelled, it leaves nothing half-built."""
    lines = BuildLog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, lines, lambda line: shown.line(spec.name, line))
        try:
            prepared = await build(environment.prepare, spec, places, lines, lambda text: shown.line(spec.name, text))
            ends[spec.name] = prepared
            lines.end(prepared=prepared)
            shown.end(spec.name, _outcome(prepared))
        except (RunnerError, OSError) as problem:
            failure = problem.failure if isinstance(problem, RunnerError) else _of_system(problem)
            ends[spec.name] = failure
            lines.end(failure=failure)
            shown.end(spec.name, f"failed: {failure.kind}")


def _of_system(problem: OSError) -> Failure:
    return Failure(ErrorKind.UNAVAILABLE, f"the environment cannot be built: {problem}")


def _outcome(prepared: Prepared) -> str:
    return f"ready, built in {prepared.built_seconds:.1f} s" if prepared.built_seconds else "ready, already built"


def _report(specs: Sequence[ModuleSpec], ends: Mapping[str, Prepared | Failure]) -> int:
    """Print one line for each module; return the exit code."""
    width = max((len(spec.name) for spec in specs), default=0)
    code = 0
    for spec in specs:
        end = ends.get(spec.name)
        if isinstance(end, Failure):
            code = code or CODES[end.kind].exit
            for line in end.message.splitlines() or [""]:
                click.echo(f"error: {spec.name}: {end.kind}: {line}", err=True)
        elif end is None:
            click.echo(f"{spec.name:<{width}}  inline, nothing to build")
        else:
            click.echo(f"{spec.name:<{width}}  {end.key}  {_outcome(end)}")
    return code


# -- rebuild -----------------------------------------------------------------------------------------------------------


def rebuilding(wanted: str) -> Work:
    """Return the work of `env rebuild`."""

    async def work(loaded: Loaded, kinds: Mapping[Kind, Managed]) -> int:
        found = await survey(loaded, kinds)
        spec = _to_rebuild(found, wanted)
        began = time.perf_counter()
        lines = BuildLog()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, lines, lambda line: click.echo(line, err=True))
            try:
                places = trio.CapacityLimiter(1)
                prepared = await build(kinds[spec.env].rebuild, spec, places, lines, lines.add)
            except RunnerError as problem:
                lines.end(failure=problem.failure)
                raise _with_modules(problem, found) from None
            lines.end(prepared=prepared)
        click.echo(f"{prepared.key} was rebuilt in {time.perf_counter() - began:.1f} s")
        return 0

    return work


def _to_rebuild(found: Survey, wanted: str) -> ModuleSpec:
    """Return the module whose environment is meant by its name or key. Raises RunnerError."""
    names = [wanted] if wanted in found.specs else found.users(wanted)
    if not names and any(one.key == wanted for one in found.stored):
        text = f"no module of the file uses {wanted}, so its contents are unknown; `env gc` removes it in time"
        raise error(ErrorKind.BAD_INPUT, text, field="key")
    if not names:
        raise found.missing(wanted)
    spec = found.specs[names[0]]
    if spec.env is Kind.INLINE:
        raise error(ErrorKind.BAD_INPUT, nothing_to_build(spec), field="module")
    return spec


def _with_modules(problem: RunnerError, found: Survey) -> RunnerError:
    """Return the refusal to replace an environment in use, with the modules that use it."""
    if problem.failure.kind is not ErrorKind.CONFLICT:
        return problem
    users = found.users(problem.failure.message.partition(" ")[0])
    text = f"{problem.failure.message} (modules that use it: {', '.join(users) or 'none'})"
    return RunnerError(evolve(problem.failure, message=text))


# -- progress ----------------------------------------------------------------------------------------------------------


async def follow(lines: BuildLog, show: Callable[[str], None]) -> None:
    """Pass the lines of a build to `show` until it has ended, and say how many were missed."""
    number = 0
    while True:
        await lines.wait(number)
        found = lines.read(number)
        number = found.next
        if found.dropped:
            show(f"({found.dropped} lines are left out)")
        for line in filter(str.strip, found.lines):
            show(line)
        if lines.ended:
            return


class Display(Protocol):
    """Shows the progress of builds, by module."""

    def line(self, module: str, line: str) -> None:
        """Show a line of a build."""

    def end(self, module: str, outcome: str) -> None:
        """Show the outcome of a build."""


class PlainDisplay:
    """Lines on standard error, each with its module."""

    def line(self, module: str, line: str) -> None:
        """Print a line."""
        click.echo(f"{module}: {line}", err=True)

    def end(self, module: str, outcome: str) -> None:
        """Print the outcome."""
        click.echo(f"{module}: {outcome}", err=True)


def amount_in(line: str) -> tuple[float, float] | None:
    """Return done and total of a line such as `12.0 of 80.5 MB`."""
    found = _AMOUNT.search(line)
    if found is None or not float(found[2]) or float(found[1]) > float(found[2]):
        return None
    return float(found[1]), float(found[2])


@contextmanager
def display(modules: list[str]) -> Iterator[Display]:
    """Yield a display for these modules: bars if standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield PlainDisplay()
        return
    from rich.console import Console  # rich takes 0.1 s to import, and only terminals need it
    from rich.markup import escape
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[line]}"), console=Console(stderr=True)) as progress:
        tasks = {name: progress.add_task(escape(name), total=None, line="") for name in modules}

        class Bars:
            """One bar for each module."""

            def line(self, module: str, line: str) -> None:
                done, total = amount_in(line) or (0.0, None)
                shown = escape(line[:_SHOWN_CHARACTERS])
                progress.update(tasks[module], completed=done, total=total, line=shown)

            def end(self, module: str, outcome: str) -> None:
                progress.update(tasks[module], completed=1, total=1, line=escape(outcome.splitlines()[0][:200]))

        yield Bars()
