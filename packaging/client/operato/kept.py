"""Executions, schedules and modules of a runner: lists, and changes of one."""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from typing import Any

from operato.connection import Link, segment
from operato.files import Files
from operato.inputs import encoded
from operato.pages import pages
from operato.records import Execution
from operato.streams import AsyncStream

_SLOW_SECONDS = 600.0
"""Time limit of answers that wait for the end of executions."""


class Executions:
    """The executions that a client may see, of all callers of its modules."""

    def __init__(self, link: Link, files: Files) -> None:
        self._link = link
        self._files = files

    async def get(self, execution: str) -> Execution:
        """Return an execution as a whole, with its input."""
        return Execution.of(await self._link.json("GET", f"/executions/{segment(execution)}"))

    def list(self, /, *, limit: int | None = None, **filters: Any) -> AsyncStream[Execution]:
        """Yield executions without their payloads, newest first.

        The filters are those of the runner: `module`, `version`, `status`, `error`, `subject`, `schedule`, `rerun_of`,
        `unresolved`, `since`, `until` and others.
        """
        return pages(self._link, "/executions", filters, limit, Execution.of)

    async def output(self, execution: str, *, stream: str | None = None) -> str:
        """Return what the last attempt printed so far: to `stdout`, to `stderr`, or to both."""
        path = f"/executions/{segment(execution)}/output"
        body = await self._link.read(await self._link.open("GET", path, query={"stream": stream}))
        return body.decode("utf-8", "replace")

    async def cancel(self, execution: str) -> Execution:
        """Cancel an execution, and return it when its processes are gone. One that has ended is not changed."""
        path = f"/executions/{segment(execution)}/cancel"
        return Execution.of(await self._link.json("POST", path, again=True, seconds=_SLOW_SECONDS))

    async def rerun(
        self,
        execution: str,
        /,
        *,
        version: str | None = None,
        key: str | None = None,
        priority: int | None = None,
        run_at: float | str | None = None,
        delay: float | str | None = None,
        **more: Any,
    ) -> Execution:
        """Accept an execution that repeats one that has ended, and return it. `input=` gives it another input.

        `version` is `same`, `active` or the name of one.
        """
        if more.keys() - {"input"}:
            raise TypeError(f"rerun has no parameter {', '.join(more.keys() - {'input'})}")
        parts = [] if version is None else [f'"version":{json.dumps(version)}'.encode()]
        parts += [b'"input":' + await encoded(self._files, more["input"])] if "input" in more else []
        return Execution.of(
            await self._link.json(
                "POST",
                f"/executions/{segment(execution)}/rerun",
                query={"priority": priority, "run_at": run_at, "delay": delay},
                body=b"{%b}" % b",".join(parts) if parts else None,
                headers={"content-type": "application/json", "idempotency-key": key or uuid.uuid4().hex},
                again=True,
            )
        )

    async def rerun_all(
        self, /, *, version: str | None = None, dry_run: bool = False, limit: int | None = None, **filters: Any
    ) -> dict[str, Any]:
        """Repeat the executions of one page of a list, the oldest first; return `items` and `cursor`.

        Each item has the `id`, and the `rerun` or the `problem`. `dry_run` repeats nothing. At least one filter is
        needed; they are those of `list`.
        """
        body = None if version is None else json.dumps({"version": version}).encode()
        query = {**filters, "limit": limit, "dry_run": dry_run}
        headers = {"content-type": "application/json"}
        found = await self._link.json("POST", "/executions/rerun", query=query, body=body, headers=headers, again=True)
        return dict(found)


class Schedules:
    """The schedules of a runner. Their fields are those of its documentation."""

    def __init__(self, link: Link, files: Files) -> None:
        self._link = link
        self._files = files

    def list(self, *, module: str | None = None, limit: int | None = None) -> AsyncStream[dict[str, Any]]:
        """Yield schedules by name."""
        return pages(self._link, "/schedules", {"module": module}, limit, dict)

    async def get(self, schedule: str) -> dict[str, Any]:
        """Return a schedule, with its next time and its last execution."""
        return dict(await self._link.json("GET", _path(schedule)))

    async def create(self, name: str, module: str, /, **fields: Any) -> dict[str, Any]:
        """Make a schedule: `cron`, `every` or `at`, and optionally `timezone`, `input`, `overlap` and others."""
        body = await encoded(self._files, {"name": name, "module": module, **fields})
        return dict(await self._link.json("POST", "/schedules", body=body, headers=_JSON))

    async def update(self, schedule: str, /, **fields: Any) -> dict[str, Any]:
        """Change some fields; None stands for the default."""
        body = await encoded(self._files, fields)
        return dict(await self._link.json("PATCH", _path(schedule), body=body, headers=_JSON))

    async def delete(self, schedule: str) -> None:
        """Delete a schedule."""
        await self._link.json("DELETE", _path(schedule))

    async def pause(self, schedule: str) -> dict[str, Any]:
        """Let it start nothing until it is resumed."""
        return dict(await self._link.json("POST", _path(schedule, "/pause"), again=True))

    async def resume(self, schedule: str) -> dict[str, Any]:
        """Let it run from now on."""
        return dict(await self._link.json("POST", _path(schedule, "/resume"), again=True))

    async def fire(self, schedule: str) -> Execution:
        """Run it now, and return the accepted execution."""
        return Execution.of(await self._link.json("POST", _path(schedule, "/fire")))

    async def next(self, schedule: str, *, count: int = 5) -> Sequence[Any]:
        """Return its next times."""
        found = await self._link.json("GET", _path(schedule, "/next"), query={"count": count})
        return tuple(found["items"])


_JSON = {"content-type": "application/json"}


def _path(schedule: str, rest: str = "") -> str:
    return f"/schedules/{segment(schedule)}{rest}"


class Modules:
    """The modules that a client may call."""

    def __init__(self, link: Link) -> None:
        self._link = link

    def list(self, /, *, limit: int | None = None, **filters: Any) -> AsyncStream[dict[str, Any]]:
        """Yield modules by name. The filters are `env`, `tag` and `q`."""
        return pages(self._link, "/modules", filters, limit, dict)

    async def get(self, name: str, *, version: str | None = None) -> dict[str, Any]:
        """Return one module, without its code: its version, fields, input schema."""
        return dict(await self._link.json("GET", f"/modules/{segment(name)}", query={"version": version}))

    async def stats(self, name: str, *, window: str = "24h") -> dict[str, Any]:
        """Return how executions of a module ended, and how long its handler took."""
        return dict(await self._link.json("GET", f"/modules/{segment(name)}/stats", query={"window": window}))
