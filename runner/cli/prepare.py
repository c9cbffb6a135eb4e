"""`operato-runner prepare`: the environments of the modules file are built now, without a server."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence

import click
import trio

from actors.workers import BuildLog, build
from config.load import Loaded
from config.mistakes import did_you_mean
from config.modules import ModuleSpec
from environments.base import Managed, Prepared
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.model import Kind
from runner.cli.build_output import Display, display, follow
from runner.status import CODES


def preparation(names: Sequence[str]) -> Callable[[Loaded, Mapping[Kind, Managed]], Awaitable[int]]:
    """Return the work of `prepare`: `names` are modules, none means all. Its exit code is that of the first failure."""

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
                    nursery.start_soon(_one, kinds[spec.env], spec, places, shown, ends)
        return _report(specs, ends)

    return work


def _chosen(loaded: Loaded, names: Sequence[str]) -> list[ModuleSpec]:
    known = {spec.name: spec for spec in loaded.modules.modules}
    for name in names:
        if name not in known:
            raise error(ErrorKind.NOT_FOUND, f"there is no module {name!r:.80}{did_you_mean(name, list(known))}")
    return [known[name] for name in dict.fromkeys(names)] if names else list(known.values())


async def _one(
    environment: Managed,
    spec: ModuleSpec,
    places: trio.CapacityLimiter,
    shown: Display,
    ends: dict[str, Prepared | Failure],
) -> None:
    """Build one environment; how it ended is put into `ends`. Cancelled, nothing half-built is left."""
    said = BuildLog()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(follow, said, lambda line: shown.say(spec.name, line))
        try:
            prepared = await build(environment.prepare, spec, places, said, lambda text: shown.say(spec.name, text))
            ends[spec.name] = prepared
            said.end(prepared=prepared)
            shown.end(spec.name, _how(prepared))
        except (RunnerError, OSError) as problem:
            failure = problem.failure if isinstance(problem, RunnerError) else _of_system(problem)
            ends[spec.name] = failure
            said.end(failure=failure)
            shown.end(spec.name, f"failed: {failure.kind}")


def _of_system(problem: OSError) -> Failure:
    return Failure(ErrorKind.UNAVAILABLE, f"the environment cannot be built: {problem}")


def _how(prepared: Prepared) -> str:
    return f"ready, built in {prepared.built_seconds:.1f} s" if prepared.built_seconds else "ready, it was there"


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
            click.echo(f"{spec.name:<{width}}  inline, there is nothing to build")
        else:
            click.echo(f"{spec.name:<{width}}  {end.key}  {_how(end)}")
    return code
