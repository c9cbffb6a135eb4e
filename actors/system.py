"""Opens the parts of the runner in order and closes them in reverse; `System` holds their handles."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import structlog
import trio
from attrs import frozen

from actors.executions import Attempts, Runs
from actors.files import Files
from actors.history import History
from actors.keys import KEYS_FILE, ApiKeys
from actors.node import find_node
from actors.registry import FILE_NAME, Catalog, Published, Publisher, Registry, RegistrySnapshot
from actors.starts import STARTS_FILE, Notices, Outbox, Post, Schedules
from actors.supervise import supervise
from actors.workers import Executor
from config.modules import ModuleSpec
from config.secrets import LookUp
from config.settings import Settings
from environments.base import Environment, Managed
from environments.conda import CondaEnvironment
from environments.docker import DockerEnvironment
from environments.installer import trusting
from environments.leftovers import BACKUPS, held, remove_left, remove_links, shortened
from environments.limits import LimitKeeper
from environments.local import InlineEnvironment, Launcher, ProcessTable
from environments.store import Store
from environments.venv import VenvEnvironment
from protocol.errors import ErrorKind, error
from protocol.model import Kind

if TYPE_CHECKING:
    from actors.cluster import Cluster

log = structlog.get_logger("system")


@frozen
class Surroundings:
    """The environment variables of the runner, read once by the configuration, and the process that watches it.

    User code inherits `guest` and nothing else, uv inherits `installer`; `secrets` looks up the values of secrets.
    """

    guest: Mapping[str, str]
    installer: Mapping[str, str]
    secrets: LookUp
    watcher: int | None = None
    release: str = ""
    """The release of this program, for the other runners of a cluster."""


@frozen
class System:
    """The handles of a running system."""

    registry: Registry
    executors: Mapping[Kind, Executor]
    history: History
    runs: Runs
    files: Files
    table: ProcessTable
    keys: ApiKeys | None = None
    """The API keys; a call from the command line has none."""
    schedules: Schedules | None = None
    """A call from the command line has none, as it has no keys."""
    outbox: Outbox | None = None
    """The notices about ended executions."""

    async def publish(self, specs: Iterable[ModuleSpec]) -> None:
        """Serve `specs` as the modules of the file. Raises RunnerError; then nothing has changed."""
        await self.registry.publish(specs)

    async def drain(self, seconds: float) -> bool:
        """Begin no more executions, and end those that still run after `seconds`; return whether there were none.

        Queued executions stay queued. Cancelled, none has been ended yet.
        """
        self.runs.stop(at_once=False)
        with trio.move_on_after(seconds):
            await self.runs.wait_idle()
            return True
        log.warning("drain_timeout passed", live=self.runs.statistics().live)
        self.runs.stop(at_once=True)
        await self.runs.wait_idle()
        return False


@asynccontextmanager
async def open_system(
    settings: Settings,
    around: Surroundings,
    specs: Iterable[ModuleSpec],
    *,
    records: Path | None = None,
    post: Post | None = None,
) -> AsyncIterator[System]:
    """Serve the modules `specs` while the context is open. `records` is another folder for the history.

    `post` sends notices; without it they wait for the next runner.

    On exit executions end first, then workers, and the history is closed last. Raises RunnerError: `unavailable` when
    the data directory cannot be used, and the errors of `Registry.publish`; and `ActorFailed` in a group when an actor
    failed too often.
    """
    with _open_launcher(settings, around) as launcher:
        # A call from the command line has a record of its own, and no part in the cluster.
        async with (
            _open_cluster(settings if records is None else None, around) as cluster,
            _open_system(settings, around, specs, records, launcher, post, cluster) as system,
        ):
            yield system


@asynccontextmanager
async def _open_cluster(settings: Settings | None, around: Surroundings) -> AsyncIterator[Cluster | None]:
    """Connect to the cluster, where the settings name one."""
    if settings is None or not settings.cluster.servers:
        yield None
    else:
        from actors.cluster import open_cluster  # noqa: PLC0415  (a runner alone has no need of it)

        async with open_cluster(settings, settings.store.data_dir.absolute(), around.release) as cluster:
            yield cluster


@asynccontextmanager
async def _open_system(
    settings: Settings,
    around: Surroundings,
    specs: Iterable[ModuleSpec],
    records: Path | None,
    launcher: Launcher,
    post: Post | None,
    cluster: Cluster | None,
) -> AsyncIterator[System]:
    async def verify(module: Published) -> None:
        await registry.verify(module)

    def follow(snapshot: RegistrySnapshot) -> None:
        for executor in executors.values():
            executor.publish(snapshot)
        for schedules in follows:
            schedules.follow()

    async def existing(names: Collection[str]) -> set[str]:
        live = set() if runs is None else {name for name in names if runs.find(name) is not None}
        return live | await history.existing([name for name in names if name not in live])

    follows: list[Schedules] = []
    data, runs = settings.store.data_dir.absolute(), None
    own = data if records is None else None
    limits = LimitKeeper(f"operato-{os.getpid()}", watcher=around.watcher)
    # A server may use the same data directory: then only the server sweeps containers.
    kinds = _managed(settings, launcher, around, sweeps=records is None)
    executors = _executors(settings, around, {Kind.INLINE: InlineEnvironment(launcher), **kinds}, limits, verify)
    left = None if own is None else find_node(settings.cluster, own)
    history = History(settings.history, records or data, node=None if cluster is None else cluster.node, left=left)
    files = Files(settings.files, records or data, existing, kept_seconds=settings.history.retention_seconds)
    largest, most = settings.server.max_frame_bytes, settings.server.max_buffered_bytes
    log_of = history if cluster is None else cluster.attach(history, files)
    attempts = Attempts(executors, log_of, largest, max(largest, most), around.secrets, files, launcher.table.work_dir)
    with ExitStack() as stack:
        stack.callback(limits.close)
        async with _open_history(history, launcher):
            # A call from the command line serves its file only; registered modules belong to the server.
            catalog = None if own is None else await trio.to_thread.run_sync(Catalog.open, own / FILE_NAME)
            if catalog is not None:
                stack.callback(catalog.close)
            publisher = Publisher((records or data) / "code", around.secrets)
            make = Registry if cluster is None else partial(Registry, feed_of=cluster.feeds.modules)
            registry = make(publisher, catalog, settings.registry, follow)
            async with _open_files(files), _open_actors(registry, executors, cluster):
                await registry.publish(specs)
                if catalog is not None:
                    await registry.collect()
                opened = _open_runs(settings, registry, history, attempts, cluster)
                async with _open_keys(own, cluster) as keys, opened as runs:
                    notices_of = partial(_open_notices, settings, around, runs, post, cluster)
                    schedules_of = _open_schedules(own, registry, runs, follows, cluster)
                    async with schedules_of as schedules, notices_of() as outbox:
                        yield System(registry, executors, history, runs, files, launcher.table, keys, schedules, outbox)


@asynccontextmanager
async def _open_history(history: History, launcher: Launcher) -> AsyncIterator[None]:
    """Record executions; on exit, no process is left, and everything is stored."""
    async with trio.open_nursery() as nursery:
        recording = trio.CancelScope()
        await nursery.start(_record_within, recording, history)
        # Cancelled executions are recorded too: only the `finally` below closes the history.
        recording.shield = True
        try:
            yield
        finally:
            with trio.CancelScope(shield=True):
                await launcher.table.sweep()
                await history.aclose()
            recording.cancel()
            nursery.cancel_scope.cancel()


async def _record_within(scope: trio.CancelScope, history: History, *, task_status: trio.TaskStatus[None]) -> None:
    with scope:
        await supervise(history, name="history", task_status=task_status)


def _executors(
    settings: Settings,
    around: Surroundings,
    kinds: Mapping[Kind, Environment],
    limits: LimitKeeper,
    verify: Callable[[Published], Awaitable[None]],
) -> dict[Kind, Executor]:
    make = partial(
        Executor,
        settings=settings.executor,
        limits=limits,
        max_frame_bytes=settings.server.max_frame_bytes,
        secrets=around.secrets,
        verify=verify,
    )
    return {kind: make(environment) for kind, environment in kinds.items()}


@asynccontextmanager
async def _open_files(files: Files) -> AsyncIterator[None]:
    """Keep files; executions, which store results, have ended on exit."""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(supervise, files, name="store of files"))
        try:
            yield
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_actors(
    registry: Registry, executors: Mapping[Kind, Executor], cluster: Cluster | None
) -> AsyncIterator[None]:
    """Run registry and executors; all workers have ended on exit."""
    async with trio.open_nursery() as nursery:
        await nursery.start(partial(supervise, registry, name="registry"))
        for kind, executor in executors.items():
            await nursery.start(partial(supervise, executor, name=f"executor {kind}"))
        try:
            async with nullcontext() if cluster is None else cluster.following_modules(registry):
                yield
        finally:
            for executor in executors.values():
                executor.close()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_runs(
    settings: Settings,
    registry: Registry,
    history: History,
    attempts: Attempts,
    cluster: Cluster | None,
) -> AsyncIterator[Runs]:
    """Run executions; running ones have ended on exit."""
    runs = Runs(registry, history, attempts, settings.executor, settings.cluster.labels)
    joined = nullcontext(trio.lowlevel.checkpoint) if cluster is None else cluster.open(runs, registry)
    async with joined as begin, trio.open_nursery() as nursery:
        await nursery.start(partial(supervise, runs, name="runs"))
        await nursery.start(partial(supervise, runs.dispatcher, name="dispatcher"))
        await nursery.start(partial(supervise, runs.later, name="later"))
        await begin()
        try:
            yield runs
        finally:
            runs.stop(at_once=True)
            attempts.close()
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_notices(
    settings: Settings, around: Surroundings, runs: Runs, post: Post | None, cluster: Cluster | None
) -> AsyncIterator[Outbox]:
    """Send notices, also those that the last runner left; executions that it lost were queued again before that."""
    outbox = Outbox(runs.history)
    async with trio.open_nursery() as nursery:
        if post is not None:
            notices = Notices(outbox, runs, around.secrets, post, settings.history.idempotency_seconds)
            notices.confirm = None if cluster is None else cluster.ends
            await nursery.start(partial(supervise, notices, name="notices"))
        try:
            yield outbox
        finally:
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _open_keys(data: Path | None, cluster: Cluster | None) -> AsyncIterator[ApiKeys | None]:
    """Give the API keys of a data directory; their last uses are written on exit."""
    if data is None:
        yield None
        return
    feed = () if cluster is None else (cluster.feeds.keys,)
    keys = await trio.to_thread.run_sync(ApiKeys.open, data / KEYS_FILE, *feed)
    following = nullcontext() if cluster is None else cluster.following_keys(keys)
    async with following, trio.open_nursery() as nursery:
        await nursery.start(partial(supervise, keys, name="keys"))
        try:
            yield keys
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):  # one small transaction
                await keys.aclose()


@asynccontextmanager
async def _open_schedules(
    data: Path | None, registry: Registry, runs: Runs, follows: list[Schedules], cluster: Cluster | None
) -> AsyncIterator[Schedules | None]:
    """Start modules by their schedules, which follow the changes of modules as a member of `follows`."""
    if data is None:
        yield None
        return
    feed = () if cluster is None else cluster.starts(runs)
    schedules = await trio.to_thread.run_sync(Schedules.open, data / STARTS_FILE, registry, runs, *feed)
    follows.append(schedules)
    following = nullcontext() if cluster is None else cluster.following_schedules(schedules)
    async with following, trio.open_nursery() as nursery:
        await nursery.start(partial(supervise, schedules, name="schedules"))
        try:
            yield schedules
        finally:
            nursery.cancel_scope.cancel()
            with trio.CancelScope(shield=True):
                await schedules.aclose()


@contextmanager
def _open_launcher(settings: Settings, around: Surroundings) -> Iterator[Launcher]:
    """Remove what killed runners left, and give the launcher of this one and its process table.

    Raises RunnerError `unavailable` if the data directory is unusable.
    """
    data = settings.store.data_dir.absolute()
    work = data / "work"
    with ExitStack() as stack:
        try:
            killed = {**remove_left(work), **remove_left(data, BACKUPS)}
            remove_links()
            folder = stack.enter_context(held(work / str(os.getpid())))
            table = ProcessTable(folder, stack.enter_context(shortened(folder)))
            launcher = Launcher.install(table, data, around.guest)
        except OSError as problem:
            message = f"the data directory cannot be used: {problem}"
            raise error(ErrorKind.UNAVAILABLE, message, field="data_dir") from None
        if killed:
            log.warning("killed processes that a dead runner left", pids=list(killed), names=list(killed.values()))
        yield launcher


@asynccontextmanager
async def open_environments(settings: Settings, around: Surroundings) -> AsyncIterator[dict[Kind, Managed]]:
    """Give access to the stored environments of this machine without serving modules.

    A runner with the same data directory is not disturbed. No started process is left on exit. Raises RunnerError
    `unavailable` when the data directory cannot be used.
    """
    with _open_launcher(settings, around) as launcher:
        managed = _managed(settings, launcher, around, sweeps=False)
        try:
            yield managed
        finally:
            for environment in managed.values():
                environment.keep(())
            with trio.CancelScope(shield=True):
                await launcher.table.sweep()


def _managed(settings: Settings, launcher: Launcher, around: Surroundings, *, sweeps: bool) -> dict[Kind, Managed]:
    data, store = settings.store.data_dir.absolute(), settings.store
    venvs, condas, images = (
        Store(store.venv_path.absolute()),
        Store(store.conda_path.absolute()),
        Store(data / "images"),
    )
    locks, largest = data / "locks", settings.server.max_frame_bytes
    environ = trusting(around.installer, store.build_ca)
    docker = settings.docker, images, environ, launcher.table, data, largest
    return {
        Kind.VENV: VenvEnvironment(launcher, venvs, locks, environ, store.offline),
        Kind.CONDA: CondaEnvironment(launcher, condas, locks, environ, store.offline, store.conda_exe),
        Kind.DOCKER: DockerEnvironment(*docker, sweeps=sweeps, offline=store.offline, build_ca=store.build_ca),
    }
