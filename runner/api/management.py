"""The verbs that change modules, without transport types. Each checks scope and modules first."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import trio
from attrs import define, frozen

from actors.executions import Live, Runs
from actors.registry import Added, Change, ChangesQuery, Condition, Published, Registered, Registry
from actors.workers import Executor, Phases
from config.code import TooLargeError, unpack, write_files
from config.mistakes import ConfigError, Mistake, Wrong, dotted
from config.modules import Description, ModuleSpec, module_from_archive, read_module, spec_from_mapping, spec_to_mapping
from environments.checking import check_module
from environments.venv import VenvEnvironment
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Kind
from runner.auth import Principal, require, require_module

ANY = Condition()
"""No condition."""


@frozen
class Publishing:
    """How a version is made one that calls get.

    With `activate` calls that name no version get it. With `prepare` its environment is built and a worker has
    imported it before that, so that the first call is warm.
    """

    activate: bool = True
    prepare: bool = False


@define(eq=False)
class Management:
    """Changes what the registry serves over the API."""

    registry: Registry
    executors: Mapping[Kind, Executor]
    runs: Runs
    work: Path
    """A folder for a moment; what a runner that was killed leaves there goes at the next start."""

    async def register(
        self,
        principal: Principal,
        data: Mapping[str, Any],
        *,
        how: Publishing,
        condition: Condition,
    ) -> Added:
        """Check a module as the modules file describes one, and make it a version of the module of its name.

        What is registered with the same content already is found again. Raises RunnerError: `bad_input` with
        all that is wrong with it, `conflict` (the operator's file has the name; the version is there with other
        content; `condition` does not hold), `environment_failed`, `load_failed`, and `unavailable`; nothing has
        changed then. Cancelled, it may have been registered.
        """
        require(principal, "modules:write")
        name = data.get("name")
        if isinstance(name, str):
            require_module(principal, name)
            self.registry.snapshot.changeable(name, condition)  # before anything is built; the registry decides again
        return await self._publish(principal, _spec(data, None), how, condition)

    async def upload(
        self,
        principal: Principal,
        data: bytes,
        *,
        name: str | None = None,
        fields: Mapping[str, Any] = MappingProxyType({}),
        how: Publishing,
        condition: Condition,
    ) -> Added:
        """Register the module whose files are in a zip archive, as `register` does.

        `name` stands for one that its `module.yaml` does not give, and `fields` go before those in there. Raises
        RunnerError as `register`, and `bad_input` or `too_large` for what is no archive that is read.
        """
        require(principal, "modules:write")
        with tempfile.TemporaryDirectory(prefix="upload-", dir=self.work) as folder:
            work = partial(_unpacked, data, Path(folder), name, fields)
            description = await trio.to_thread.run_sync(work)
            said = str(description.fields["name"])
            require_module(principal, said)
            self.registry.snapshot.changeable(said, condition)
            spec = await trio.to_thread.run_sync(_read, description, Path(folder))
            return await self._publish(principal, spec, how, condition)

    async def patch(
        self, principal: Principal, name: str, changes: Mapping[str, Any], *, how: Publishing, condition: Condition
    ) -> Added:
        """Register the active version with some fields changed, by the rules of JSON Merge Patch (RFC 7396).

        Its code goes along. A `version` that the changes do not name is derived. Raises RunnerError as `register`.
        """
        require(principal, "modules:write")
        require_module(principal, name)
        self.registry.snapshot.changeable(name, condition)
        module = self.registry.snapshot.get(name, None, principal.may_use)
        if changes.get("name", name) != name:
            raise error(ErrorKind.BAD_INPUT, "a module keeps its name; register another one", field="name")
        data = {field: value for field, value in spec_to_mapping(module.spec).items() if field != "version"}
        has_files = data.pop("path", None) is not None and "code" not in changes
        data |= {"path": "."} if has_files else {}
        folder = module.root if has_files else None
        return await self._publish(principal, _spec(merged(data, changes), folder), how, condition)

    async def _publish(self, principal: Principal, spec: ModuleSpec, how: Publishing, condition: Condition) -> Added:
        executor = self.executors[spec.env]
        if isinstance(checker := self.executors[Kind.VENV].environment, VenvEnvironment):
            _refuse(await check_module(checker, spec))
        module, files = await self.registry.stage(spec, principal.subject)
        try:
            if not how.prepare:
                await executor.lock(module)
                return await self.registry.register(module, files, activate=how.activate, condition=condition)
            async with _warm(executor, module):
                return await self.registry.register(module, files, activate=how.activate, condition=condition)
        finally:
            self.registry.release(module)
            with trio.CancelScope(shield=True):  # what was refused, or has gone for it, leaves nothing
                await self._collect()

    async def _collect(self) -> None:
        """Remove the code of versions that are gone, but not from under executions."""
        await self.registry.collect(live.module.root for live in self.runs.live_executions())

    async def activate(
        self, principal: Principal, name: str, version: str, *, prepare: bool, condition: Condition
    ) -> tuple[Registered, Published]:
        """Let calls get a version that is there, and return it; with `prepare` after its environment was built.

        Raises RunnerError: `not_found`, `conflict`, and with `prepare` what came of that; nothing has changed then.
        """
        module = self._known(principal, name, version)
        if not prepare:
            after = await self.registry.activate(name, version, subject=principal.subject, condition=condition)
            return after, module
        async with _warm(self.executors[module.spec.env], module):
            after = await self.registry.activate(name, version, subject=principal.subject, condition=condition)
        return after, module

    async def remove(
        self,
        principal: Principal,
        name: str,
        version: str | None = None,
        *,
        force: bool = False,
        condition: Condition = ANY,
    ) -> None:
        """Delete a module, or a version that is not active. Its executions stay in the history.

        Raises RunnerError: `not_found`, `conflict` also while it runs or is queued, unless `force`: then it is no
        module any more, and what runs and waits is cancelled and has ended when this returns.
        """
        require(principal, "modules:write")
        require_module(principal, name)
        self.registry.snapshot.get_registered(name, condition, principal.may_use)
        at_work = self.runs.live_executions(name, version)
        if at_work and not force:
            several = len(at_work) > 1
            those = f"{len(at_work)} executions run or wait" if several else "an execution of it runs or waits"
            text = f"{those}; let that end, or delete with `force`"
            raise error(ErrorKind.CONFLICT, text, field="force", retry_after=1)
        await self.registry.remove(name, version, subject=principal.subject, condition=condition)
        async with trio.open_nursery() as nursery:
            for live in self.runs.live_executions(name, version):
                nursery.start_soon(self._cancel, live, f"the module was deleted by {principal.subject}")
        await self._collect()

    async def _cancel(self, live: Live, why: str) -> None:
        with suppress(RunnerError):  # it never began, or its end cannot be recorded: the log says so
            await self.runs.cancel(live, why)

    def versions(self, principal: Principal, name: str) -> tuple[list[Published], Registered | None]:
        """Return the versions that calls can get, newest first, and what is known of the module where it is registered.

        Raises RunnerError `forbidden` or `not_found`.
        """
        require(principal, "modules:read")
        require_module(principal, name)
        snapshot = self.registry.snapshot
        registered = snapshot.registered_only(name)
        if registered is not None:
            return list(registered.versions.values())[::-1], registered
        return [snapshot.get(name, None, principal.may_use)], None

    async def changes(self, principal: Principal, query: ChangesQuery) -> list[Change]:
        """Return who changed what and when, newest first. Raises RunnerError `forbidden` or `unavailable`."""
        require(principal, "admin")
        return await self.registry.changes(query)

    def _known(self, principal: Principal, name: str, version: str | None) -> Published:
        require(principal, "modules:write")
        require_module(principal, name)
        return self.registry.snapshot.get(name, version, principal.may_use)


@asynccontextmanager
async def _warm(executor: Executor, module: Published) -> AsyncIterator[None]:
    """Build the environment and hold a worker that has imported the module. Raises RunnerError when it cannot."""
    async with executor.lease(module, Phases(), patient=True):
        yield


def _spec(data: Mapping[str, Any], folder: Path | None) -> ModuleSpec:
    try:
        return spec_from_mapping(data, base=folder, allow_path=folder is not None)
    except ConfigError as problem:
        raise _bad(problem) from None


def _refuse(wrongs: Iterable[Wrong]) -> None:
    mistakes = [Mistake(wrong.message, None, None, dotted(wrong.where), wrong.allowed) for wrong in wrongs]
    if mistakes:
        raise _bad(ConfigError(mistakes))


def _bad(problem: ConfigError) -> RunnerError:
    first = problem.mistakes[0].field if problem.mistakes else None
    return error(ErrorKind.BAD_INPUT, str(problem), field=first or None)


def _unpacked(data: bytes, folder: Path, name: str | None, fields: Mapping[str, Any]) -> Description:
    """Put the files of an archive into a folder, and return what they say. Blocks. Raises RunnerError."""
    try:
        files = unpack(data)
        write_files(files, folder)
        return module_from_archive(files, name, fields)
    except ConfigError as problem:
        raise _bad(problem) from None
    except Wrong as wrong:
        kind = ErrorKind.TOO_LARGE if isinstance(wrong, TooLargeError) else ErrorKind.BAD_INPUT
        raise error(kind, str(wrong), field="archive") from None
    except OSError as problem:
        raise error(ErrorKind.UNAVAILABLE, f"the archive cannot be unpacked: {problem}") from problem


def _read(description: Description, folder: Path) -> ModuleSpec:
    try:
        return read_module(description, folder)
    except ConfigError as problem:
        raise _bad(problem) from None


def merged(target: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return `target` with the changes of a JSON Merge Patch (RFC 7396): null takes a field away."""
    found = dict(target)
    for name, value in patch.items():
        if value is None:
            found.pop(name, None)
        elif isinstance(value, Mapping):
            inner = found.get(name)
            found[name] = merged(inner if isinstance(inner, Mapping) else {}, value)
        else:
            found[name] = value
    return found
