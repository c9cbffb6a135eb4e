"""The verbs that change modules, without transport types. Each checks scope and modules first."""

from __future__ import annotations

import shutil
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
from runner.auth import Principal, Scope, require, require_module

ANY = Condition()
"""No condition."""


@frozen
class Publishing:
    """How a version is published.

    With `activate` it is the version used by calls that name none. With `prepare` its environment is built and a
    worker has imported it before that, so that the first call is warm.
    """

    activate: bool = True
    prepare: bool = False


@define(eq=False)
class Management:
    """Changes the modules of the registry."""

    registry: Registry
    executors: Mapping[Kind, Executor]
    runs: Runs
    work: Path
    """A folder for temporary files; the next start removes those of a killed runner."""

    async def register(
        self,
        principal: Principal,
        data: Mapping[str, Any],
        *,
        how: Publishing,
        condition: Condition,
    ) -> Added:
        """Check a module in the form of the modules file, and register it as a version of the module of its name.

        If the same content is registered already, that version is returned. Raises RunnerError: `bad_input` with all
        mistakes, `conflict` (the operator's file has the name; the version exists with other content; `condition` is
        not met), `environment_failed`, `load_failed`, and `unavailable`; then nothing has changed. On cancellation it
        may have been registered.
        """
        require(principal, Scope.MODULES_WRITE)
        name = data.get("name")
        if isinstance(name, str):
            require_module(principal, name)
            self.registry.snapshot.changeable(name, condition)  # before anything is built; the registry decides again
        spec = await trio.to_thread.run_sync(_spec, data, None)
        return await self._publish(principal, spec, how, condition)

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

        `name` is used if its `module.yaml` has none, and `fields` override those in there. Raises RunnerError as
        `register`, and `bad_input` or `too_large` for an archive that cannot be read.
        """
        async with self._uploaded(principal, data, name, fields, condition) as spec:
            return await self._publish(principal, spec, how, condition)

    async def check(
        self, principal: Principal, data: bytes, *, name: str | None = None, activate: bool, condition: Condition
    ) -> ModuleSpec:
        """Return the module of an archive if `upload` would begin to build it; nothing is built or registered.

        Raises RunnerError as `upload`, without the failures of builds and imports.
        """
        async with self._uploaded(principal, data, name, {}, condition) as spec:
            await self._check(principal, spec, activate=activate)
            return spec

    @asynccontextmanager
    async def _uploaded(
        self, principal: Principal, data: bytes, name: str | None, fields: Mapping[str, Any], condition: Condition
    ) -> AsyncIterator[ModuleSpec]:
        """Give the module of an archive, whose files are in a folder inside of the block. Raises RunnerError."""
        require(principal, Scope.MODULES_WRITE)
        async with _folder(self.work) as folder:
            work = partial(_unpacked, data, folder, name, fields)
            description = await trio.to_thread.run_sync(work)
            found = str(description.fields["name"])
            require_module(principal, found)
            self.registry.snapshot.changeable(found, condition)
            yield await trio.to_thread.run_sync(_read, description, folder)

    async def patch(
        self, principal: Principal, name: str, changes: Mapping[str, Any], *, how: Publishing, condition: Condition
    ) -> Added:
        """Register the active version with some fields changed, by the rules of JSON Merge Patch (RFC 7396).

        Its code is kept. Without `version` in the changes a version is derived. Raises RunnerError as `register`.
        """
        require(principal, Scope.MODULES_WRITE)
        self.registry.snapshot.changeable(name, condition, principal.may_use)
        module = self.registry.snapshot.get(name, None, principal.may_use)
        if changes.get("name", name) != name:
            raise error(ErrorKind.BAD_INPUT, "a module keeps its name; register another module instead", field="name")
        data = {field: value for field, value in spec_to_mapping(module.spec).items() if field != "version"}
        has_files = data.pop("path", None) is not None and "code" not in changes
        data |= {"path": "."} if has_files else {}
        if {"requirements", "dependencies", "constraints"} & changes.keys():
            data.pop("packages_from", None)
        folder = module.spec.path if has_files else None
        spec = await trio.to_thread.run_sync(_spec, merged(data, changes), folder)
        return await self._publish(principal, spec, how, condition)

    async def _publish(self, principal: Principal, spec: ModuleSpec, how: Publishing, condition: Condition) -> Added:
        await self._check(principal, spec, activate=how.activate)
        executor = self.executors[spec.env]
        module, files = await self.registry.stage(spec, principal.subject)
        try:
            if not how.prepare:
                await executor.lock(module)
                return await self.registry.register(module, files, activate=how.activate, condition=condition)
            async with _warm(executor, module):
                return await self.registry.register(module, files, activate=how.activate, condition=condition)
        finally:
            self.registry.release(module)
            with trio.CancelScope(shield=True):  # a refused or replaced version leaves no files
                await self._collect()

    async def _check(self, principal: Principal, spec: ModuleSpec, *, activate: bool) -> None:
        """Raise the RunnerError of a module that is not to be published."""
        self._require_for(principal, spec, activate=activate)
        self._check_recipients(principal, spec)
        if isinstance(checker := self.executors[Kind.VENV].environment, VenvEnvironment):
            _refuse(await check_module(checker, spec))

    def _check_recipients(self, principal: Principal, spec: ModuleSpec) -> None:
        """Raise RunnerError `bad_input` when a module would tell one that does not exist for the principal."""
        for place, each in enumerate(spec.on_end):
            if each.module is not None:
                try:
                    self.registry.snapshot.get(each.module, None, principal.may_use)
                except RunnerError as problem:
                    text = f"{problem.failure.message}: register it first"
                    raise error(ErrorKind.BAD_INPUT, text, field=f"on_end[{place}].module") from None

    async def _collect(self) -> None:
        """Remove the code of versions that no longer exist, except those that executions still use."""
        await self.registry.collect(live.module.root for live in self.runs.live_executions())

    async def activate(
        self, principal: Principal, name: str, version: str, *, prepare: bool, condition: Condition
    ) -> tuple[Registered, Published]:
        """Activate a version that exists, and return it; with `prepare` after its environment was built.

        Raises RunnerError: `not_found`, `conflict`, and with `prepare` the failure of the build; then nothing has
        changed.
        """
        module = self._known(principal, name, version)
        self._require_for(principal, module.spec, activate=True)
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

        Raises RunnerError: `not_found`, `conflict`, also while executions of it run or wait. With `force` these are
        cancelled instead, and have ended when this returns.
        """
        require(principal, Scope.MODULES_WRITE)
        self.registry.snapshot.get_registered(name, condition, principal.may_use)
        at_work = await self.runs.owners.at_work(name, version)
        if at_work and not force:
            several = len(at_work) > 1
            those = f"{len(at_work)} executions of it run or wait" if several else "an execution of it runs or waits"
            text = f"{those}; wait for the end, or delete with `force`"
            raise error(ErrorKind.CONFLICT, text, field="force", retry_after=1)
        await self.registry.remove(name, version, subject=principal.subject, condition=condition)
        async with trio.open_nursery() as nursery:
            for live in await self.runs.owners.at_work(name, version):
                nursery.start_soon(self._cancel, live, f"the module was deleted by {principal.subject}")
        await self._collect()

    async def _cancel(self, live: Live, why: str) -> None:
        with suppress(RunnerError):  # it never began, or its end cannot be recorded, which is logged
            await self.runs.owners.cancel(live, why)

    def versions(self, principal: Principal, name: str) -> tuple[list[Published], Registered | None]:
        """Return the versions of a module, newest first, and its registration; None for one of the operator's file.

        Raises RunnerError `forbidden` or `not_found`.
        """
        require(principal, Scope.MODULES_READ)
        snapshot = self.registry.snapshot
        registered = snapshot.registered_only(name) if principal.may_use(name) else None
        if registered is not None:
            return list(registered.versions.values())[::-1], registered
        return [snapshot.get(name, None, principal.may_use)], None

    async def changes(self, principal: Principal, query: ChangesQuery) -> list[Change]:
        """Return the changes of modules, newest first. Raises RunnerError `forbidden` or `unavailable`."""
        require(principal, Scope.ADMIN)
        return await self.registry.audit.changes(query)

    def _require_for(self, principal: Principal, spec: ModuleSpec, *, activate: bool) -> None:
        """Raise RunnerError `forbidden` when the principal may not publish endpoints, which others call, or schedules.

        Also `conflict`, here for callers that are limited to modules: the registry would name one of the others.
        """
        if spec.schedules and not principal.allows(Scope.SCHEDULES_WRITE):
            text = f"schedules need the scope {str(Scope.SCHEDULES_WRITE)!r} (claim `scope`), which the token lacks"
            raise error(ErrorKind.FORBIDDEN, f"{text}; remove `schedules`, or use such a token", field="schedules")
        if spec.endpoints and not principal.allows(Scope.MODULES_ADMIN):
            text = f"endpoints need the scope {str(Scope.MODULES_ADMIN)!r} (claim `scope`), which the token lacks"
            raise error(ErrorKind.FORBIDDEN, f"{text}; remove `endpoints`, or use such a token", field="endpoints")
        if activate and principal.modules:
            self.registry.snapshot.routes.check(spec.name, spec, principal.may_use)

    def _known(self, principal: Principal, name: str, version: str | None) -> Published:
        require(principal, Scope.MODULES_WRITE)
        return self.registry.snapshot.get(name, version, principal.may_use)


@asynccontextmanager
async def _folder(work: Path) -> AsyncIterator[Path]:
    """Give a folder for the files of an upload. Made and removed in a thread: there may be very many."""
    folder = Path(tempfile.mkdtemp(prefix="upload-", dir=work))
    try:
        yield folder
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(shutil.rmtree, folder, ignore_errors=True))


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
    """Write the files of an archive into a folder, and return their description. Blocks. Raises RunnerError."""
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
    """Return `target` with the changes of a JSON Merge Patch (RFC 7396): null removes a field."""
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
