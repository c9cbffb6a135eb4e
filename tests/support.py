"""Helpers for the tests: executors and services without doors, and the outcome of one call."""

from __future__ import annotations

import json
import os
import textwrap
import time
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import attrs
import msgspec
import trio

from actors.events import EventLog, Follower
from actors.registry.published import Published
from actors.registry.publisher import Publisher
from actors.registry.registry import Registry
from actors.system import Surroundings, open_system
from actors.workers.call import Call, Outcome
from actors.workers.executor import Executor
from actors.workers.pool import Phases, Waiter
from actors.workers.worker import Worker
from config.load import base_environment, installer_environment, secret_values
from config.modules.spec import ModuleSpec
from config.secrets import LookUp
from config.settings import (
    ClusterSettings,
    DockerSettings,
    ExecutorSettings,
    FilesSettings,
    HistorySettings,
    NoticeSettings,
    ServerSettings,
    Settings,
    StoreSettings,
)
from environments import proc
from environments.base import Environment
from environments.base import Store as FileStore
from environments.conda.conda import CondaEnvironment
from environments.docker.docker import DockerEnvironment
from environments.limits.limits import LimitKeeper
from environments.local.inline import InlineEnvironment, Launcher
from environments.local.process import ProcessTable
from environments.store.store import Store
from environments.venv import VenvEnvironment
from protocol import messages
from protocol.errors import ErrorKind, Failure, RunnerError
from protocol.events import ItemEvent, OutputEvent, ProgressEvent
from protocol.model import Kind, Status, Stream
from runner.api.service import Service
from runner.auth.principal import Principal
from runner.outgoing import posting
from tests import engines

PATIENCE = 30
"""Seconds after which a test counts as hung."""
GRACE = 0.3
"""Seconds between the soft stop and the kill, in tests."""

WAIT_FOR = """
def wait_for(path):
    import os, time
    while not os.path.exists(path):
        time.sleep(0.002)
"""
"""For handlers that wait for the test."""


@attrs.frozen
class Ran:
    """The outcome, output and times of one call."""

    outcome: Outcome
    output: tuple[OutputEvent, ...] = ()
    events: tuple[ItemEvent | ProgressEvent, ...] = ()
    phases: Phases = attrs.field(factory=Phases)
    pid: int | str = 0
    """The worker's process, or the name of its container."""

    @property
    def value(self) -> Any:
        """The result; without one, the test fails with the failure."""
        assert self.outcome.failure is None, self.outcome.failure
        assert self.outcome.result is not None
        return json.loads(self.outcome.result)

    @property
    def failure(self) -> Failure:
        assert self.outcome.failure is not None, f"it succeeded with {self.outcome.result!r:.200}"
        return self.outcome.failure

    @property
    def kind(self) -> ErrorKind:
        return self.failure.kind

    @property
    def killed(self) -> tuple[str, ...]:
        return self.outcome.killed

    @property
    def stdout(self) -> str:
        return self._text(Stream.STDOUT)

    @property
    def stderr(self) -> str:
        return self._text(Stream.STDERR)

    def _text(self, stream: Stream) -> str:
        return "".join(chunk.text for chunk in self.output if chunk.stream is stream)

    def gone(self, pid: int) -> bool:
        """Return whether a process has gone, by the process id that the handler saw."""
        return engines.gone(self.pid, pid) if isinstance(self.pid, str) else gone(pid)


@attrs.define(eq=False)
class Rig:
    """Executors over a process table and a registry."""

    path: Path
    table: ProcessTable
    limits: LimitKeeper
    registry: Registry
    executors: dict[Kind, Executor]
    _start: Callable[[Kind], Any]
    _specs: dict[str, ModuleSpec] = attrs.field(factory=dict)
    _ids: Any = attrs.field(factory=lambda: count(1))

    @property
    def inline(self) -> Executor:
        return self.executors[Kind.INLINE]

    @property
    def condas(self) -> Path:
        """The folder of conda environments, unless the test chose another."""
        return self.path / "condas"

    @property
    def venv(self) -> Executor:
        return self.executors[Kind.VENV]

    @property
    def venv_environment(self) -> VenvEnvironment:
        environment = self.venv.environment
        assert isinstance(environment, VenvEnvironment)
        return environment

    async def publish(self, code: str = "", *, name: str = "m", env: Kind = Kind.INLINE, **fields: Any) -> Published:
        """Publish a module beside the others; one of the same name is replaced."""
        if "path" not in fields:
            fields["code"] = textwrap.dedent(code)
        fields.setdefault("timeout", 15.0)
        spec = ModuleSpec(name=name, env=env, **fields)
        if env not in self.executors:
            await self._start(env)
        await self.publish_all([*(s for s in self._specs.values() if s.name != name), spec])
        return self.registry.snapshot.get(name)

    async def publish_all(self, specs: Iterable[ModuleSpec]) -> None:
        """Make these the published modules, as `System.publish` does."""
        self._specs = {spec.name: spec for spec in specs}
        snapshot = await self.registry.publish(self._specs.values())
        for executor in self.executors.values():
            executor.publish(snapshot)

    async def call(
        self,
        module: Published,
        value: Any = None,
        *,
        timeout: float | None = None,
        on_event: Callable[[Any], None] | None = None,
        log: EventLog | None = None,
        on_worker: Callable[[Worker], None] | None = None,
        on_call: Callable[[Call], None] | None = None,
        files: Mapping[str, tuple[Path, str]] | None = None,
        store: FileStore | None = None,
    ) -> Ran:
        """Call a module once, as a door would."""
        phases = Phases()
        log = log or EventLog(limit=module.spec.output, keep=32 * 1024 * 1024, keep_items=64 * 1024 * 1024)
        raw = value if isinstance(value, msgspec.Raw) else messages.check_json(json.dumps(value).encode())
        seconds = module.spec.timeout if timeout is None else timeout
        pid: int | str = 0
        with trio.fail_after(PATIENCE):
            try:
                lease = self.executors[module.spec.env].lease(module, phases, ask=lambda: Waiter(log=log))
                async with lease as worker, _following(log, on_event):
                    pid = int(worker.guest.name) if worker.guest.name.isdigit() else worker.guest.name
                    if on_worker is not None:
                        on_worker(worker)
                    log.status(Status.RUNNING, 1)
                    call = Call(f"e{next(self._ids)}", raw, 1, seconds, log, files or {}, store)
                    if on_call is not None:
                        on_call(call)
                    outcome = await worker.execute(call)
            except RunnerError as problem:
                outcome = Outcome(failure=problem.failure, exit_code=1)
        log.end_output()
        kept = log.kept()
        printed = tuple(event for event in kept if isinstance(event, OutputEvent))
        answered = tuple(event for event in kept if isinstance(event, ItemEvent | ProgressEvent))
        return Ran(outcome, printed, answered, phases, pid)

    async def run(self, code: str, value: Any = None, *, call: dict[str, Any] | None = None, **fields: Any) -> Ran:
        """Publish and call."""
        return await self.call(await self.publish(code, **fields), value, **(call or {}))

    async def wait_until(self, condition: Callable[[], bool], why: str) -> None:
        """Wait for the effect of a process or another task."""
        await wait_until(condition, why)

    async def settled(self, executor: Executor | None = None) -> None:
        """Wait until no worker is starting, busy or ending."""
        executor = executor or self.inline

        def calm() -> bool:
            now = executor.statistics()
            return not now.busy and not now.waiting and not now.starting and self._guests(executor) == now.idle

        await wait_until(calm, lambda: f"{executor.statistics()}, {self._guests(executor)} guests")

    def _guests(self, executor: Executor) -> int:
        """Return the number of guests, from the engine or the process table."""
        if executor.environment.kind is Kind.DOCKER:
            return len(engines.containers((self.path / "instance").read_text()))
        return self.table.statistics()


@asynccontextmanager
async def _following(log: EventLog, on_event: Callable[[Any], None] | None) -> AsyncIterator[None]:
    """Call `on_event` with each item and progress as it comes."""

    async def follow() -> None:
        follower = Follower(log)
        while (events := await follower.next()) is not None:
            for event in events:
                if on_event is not None and isinstance(event, ItemEvent | ProgressEvent):
                    on_event(event)

    async with trio.open_nursery() as nursery:
        if on_event is not None:
            nursery.start_soon(follow)
        yield
        nursery.cancel_scope.cancel()


async def wait_until(condition: Callable[[], Any], why: str | Callable[[], str], *, seconds: float = PATIENCE) -> None:
    """Poll for a condition without an event, such as the state of a process."""
    with trio.move_on_after(seconds):
        while not condition():
            await trio.sleep(0.005)
        return
    raise AssertionError(f"waited {seconds} s in vain: {why if isinstance(why, str) else why()}")


def collect(pids: Iterable[int]) -> None:
    """Wait until killed processes have gone; those that this process adopted as a subreaper are reaped."""
    deadline = time.monotonic() + PATIENCE
    for pid in pids:
        while Path(f"/proc/{pid}").exists():
            assert time.monotonic() < deadline, f"{pid} does not end"
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
            time.sleep(0.002)


def gone(pid: int) -> bool:
    """Return whether a process has gone; a zombie that another process must reap counts as gone."""
    return not proc.alive(pid)


@asynccontextmanager
async def open_rig(
    path: Path,
    *,
    venvs: Path | None = None,
    offline: bool = False,
    watched: bool = False,
    max_frame_bytes: int = 16 * 1024 * 1024,
    inline: Callable[[Environment], Environment] = lambda environment: environment,
    docker: DockerSettings | None = None,
    images: Path | None = None,
    condas: Path | None = None,
    conda_exe: Path | None = None,
    short: Path | None = None,
    secrets: LookUp = secret_values,
    **settings: Any,
) -> AsyncIterator[Rig]:
    """Run executors under `path`; fails when they leave a process, container, directory or group behind.

    `inline` and `venv` run from the start, other kinds once a module of theirs is published. `watched` is a machine
    without control groups, `short` another path of the folder for workers. `settings` are for the executors; no spares
    by default.
    """
    work = path / "work"
    work.mkdir(parents=True)
    table = ProcessTable(work, short)
    launcher = Launcher.install(table, path, base_environment())
    limits = LimitKeeper(f"operato-test-{os.getpid()}")
    if watched:
        limits._parents.clear()
    settings = {"spares": 0, "grace_seconds": GRACE, **settings}

    async def verify(module: Published) -> None:
        await registry.verify(module)

    make = partial(
        Executor,
        settings=ExecutorSettings(**settings),
        limits=limits,
        max_frame_bytes=max_frame_bytes,
        secrets=secrets,
        verify=verify,
    )
    venv = VenvEnvironment(launcher, Store(venvs or path / "venvs"), path / "locks", installer_environment(), offline)
    environ = installer_environment()
    others: dict[Kind, Callable[[], Environment]] = {
        Kind.CONDA: lambda: CondaEnvironment(
            launcher, Store(condas or path / "condas"), path / "locks", environ, offline, conda_exe
        ),
        Kind.DOCKER: lambda: DockerEnvironment(
            docker or engines.settings(), Store(images or path / "images"), environ, table, path, max_frame_bytes
        ),
    }
    executors = {Kind.INLINE: make(inline(InlineEnvironment(launcher))), Kind.VENV: make(venv)}
    async with trio.open_nursery() as nursery:

        async def start(kind: Kind) -> None:
            if kind not in executors:
                executors[kind] = make(others[kind]())
            await nursery.start(executors[kind].run)

        for kind in list(executors):
            await start(kind)
        registry = Registry(Publisher(path / "code", secrets))
        await nursery.start(registry.run)
        try:
            yield Rig(path, table, limits, registry, executors, start)
        finally:
            for executor in executors.values():
                executor.close()
            nursery.cancel_scope.cancel()
    if Kind.DOCKER in executors:
        left = engines.containers((path / "instance").read_text()) if (path / "instance").exists() else []
        assert left == [], f"containers were left: {left}"
    swept = await table.sweep()
    assert not swept, f"processes outlived the executors: {swept}"
    assert table.statistics() == 0
    assert [p.name for p in work.iterdir()] == [], "a working directory was left"
    groups = [g for parent in limits._parents.values() for g in parent.glob(f"operato-test-{os.getpid()}-*")]
    assert groups == [], "a control group was left"


def descendants() -> set[int]:
    """Return every process below this one, zombies included."""
    return set(proc.descendants(os.getpid()))


def open_fds() -> dict[str, str]:
    """Return the open descriptors with their targets."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[entry] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:
            continue
    return found


ANYBODY = Principal("tester", frozenset({"admin"}))


@asynccontextmanager
async def open_service(path: Path, modules: Iterable[ModuleSpec], **settings: Any) -> AsyncIterator[Service]:
    """Run the whole runner except its doors, with its data under `path`. `settings` are for executors or history.

    `server` has those of the doors, `files` those of the store; `cluster` those of a cluster; `notices_allow` and
    `notices_tls` are for notices.
    Opened again with the same `path`, this is the next runner.
    """
    own = {field.name for field in attrs.fields(HistorySettings)}
    history = {name: settings.pop(name) for name in own & settings.keys()}
    settings_of_files = settings.pop("files", FilesSettings())
    cluster = settings.pop("cluster", ClusterSettings())
    notices, tls = NoticeSettings(settings.pop("notices_allow", ())), settings.pop("notices_tls", None)
    everything = Settings(
        notices=notices,
        server=settings.pop("server", ServerSettings()),
        store=StoreSettings(data_dir=path / "data", venv_path=path / "venvs"),
        executor=ExecutorSettings(**{"spares": 0, "grace_seconds": GRACE, **settings}),
        history=HistorySettings(**history),
        files=settings_of_files,
        cluster=cluster,
    )
    around = Surroundings(base_environment(), installer_environment(), secret_values)
    async with posting(notices.allow, tls) as post, open_system(everything, around, modules, post=post) as system:
        parts = (system.registry, system.executors, system.history, system.runs, system.files, everything)
        yield Service(*parts, system.keys, system.schedules, system.outbox)
        await system.drain(0)


def inline(name: str, code: str, **fields: Any) -> ModuleSpec:
    """Return a module of the `inline` kind."""
    return ModuleSpec(name=name, env=Kind.INLINE, code=textwrap.dedent(code), **{"timeout": 20.0, **fields})


class Watch:
    """Collects the lines of a build, which may begin at once."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(self, line: str) -> None:
        self.lines.append(line)

    def building(self) -> None:
        pass

    @asynccontextmanager
    async def place(self, _key: str) -> AsyncIterator[None]:
        yield
