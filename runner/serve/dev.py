"""Serving one file while its author edits it: each call is printed with its output, its times and its error."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import AsyncExitStack, asynccontextmanager
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import trio
from attrs import define, field

from actors.events import Follower, LeftEvent
from actors.workers import Phases
from config.mistakes import Mistake
from config.modules import ModulesFile, ModuleSpec, read_script
from protocol.errors import RunnerError
from protocol.events import DroppedEvent, Event, ItemEvent, OutputEvent, ProgressEvent, StatusEvent
from protocol.model import Execution, Isolation, Status
from runner.terminal import one_line, printable, show_line

if TYPE_CHECKING:
    from actors.executions import Live
    from actors.system import System

_SHOWN = 400
"""Characters of an input, a result or an item."""
_LONGEST = 4096
"""Characters of a line of output that is printed without its end."""
_MOST_CALLS = 1000
"""Calls that wait to be printed."""
_WORTH_SECONDS = 0.01
"""A shorter part of a call is not named."""
_CALLER = "dev"
_STORED = re.compile(r"/[^\"\n]*/code/[^/\"\n]+/main\.py")
"""The copy of one file, from which workers import it."""


@define(eq=False)
class Console:
    """Prints the calls of one file. Add `enter` to `Runs.on_enter`, and run `run` beside it."""

    file: Path
    _send: trio.MemorySendChannel[Live] = field(init=False)
    _receive: trio.MemoryReceiveChannel[Live] = field(init=False)
    _numbers: count[int] = field(factory=lambda: count(1), init=False)

    def __attrs_post_init__(self) -> None:
        self._send, self._receive = trio.open_memory_channel(_MOST_CALLS)

    def enter(self, live: Live) -> None:
        """Take an execution that has become live; beyond what can be printed, calls are left out."""
        try:
            self._send.send_nowait(live)
        except trio.WouldBlock:
            return
        live.has_followers = live.log.followed = True

    async def run(self) -> None:
        """Print until cancelled."""
        async with trio.open_nursery() as nursery:
            async for live in self._receive:
                nursery.start_soon(self._follow, live, f"#{next(self._numbers)}")

    async def _follow(self, live: Live, number: str) -> None:
        module = live.module.spec.name
        self.say(number, ("call ", "bold cyan"), (module, "bold"), (f" {_short(live.execution.input)}", ""))
        follower, lines = Follower(live.log), _Lines()
        while (events := await follower.next()) is not None:
            for event in events:
                self._show(number, event, lines)
        for line in lines.rest():
            self.say(number, ("| ", "dim"), (line, ""))
        await live.ended.wait()
        if live.refusal is None:
            self._end(number, live.execution)
        else:
            failure = live.refusal.failure
            self.say(number, (str(failure.kind), "bold red"), (f": {one_line(failure.message)}", ""))

    def _show(self, number: str, event: Event | LeftEvent, lines: _Lines) -> None:
        match event:
            case OutputEvent():
                for line in lines.add(event.stream, event.text):
                    self.say(number, ("| ", "dim"), (line, ""))
            case ItemEvent():
                self.say(number, ("item ", "cyan"), (_short(bytes(event.value)), ""))
            case ProgressEvent():
                of = "" if event.total is None else f" of {event.total:g}"
                done = "" if event.done is None else f"{event.done:g}{of} "
                self.say(number, ("progress ", "cyan"), (f"{done}{event.text}".rstrip(), ""))
            case DroppedEvent():
                self.say(number, (f"({event.events} events are left out)", "dim"))
            case StatusEvent():
                if event.reason:
                    self.say(number, (f"waits: {event.reason}", "dim"))

    def _end(self, number: str, execution: Execution) -> None:
        failure = execution.failure
        times = _times(execution)
        if failure is None:
            result = f": {_short(execution.result or b'null')}" if execution.status is Status.SUCCEEDED else ""
            self.say(number, (str(execution.status), "bold green"), (f" in {times}{result}", ""))
            return
        if failure.traceback:
            for line in with_source(failure.traceback, self.file).rstrip("\n").split("\n"):
                self.say(number, ("| ", "red"), (printable(line), ""))
        self.say(number, (str(failure.kind), "bold red"), (f" after {times}: {one_line(failure.message)}", ""))

    def say(self, number: str, *parts: tuple[str, str]) -> None:
        """Print one line, with the time and the number of a call."""
        show_line((f"{time.strftime('%H:%M:%S')} ", "dim"), (f"{number} " if number else "", "dim"), *parts, err=True)


class _Lines:
    """Output in pieces, made into lines for each stream."""

    def __init__(self) -> None:
        self._open: dict[Any, str] = {}

    def add(self, stream: Any, text: str) -> Iterable[str]:
        """Return the lines that this piece completes."""
        *lines, rest = (self._open.pop(stream, "") + text).split("\n")
        self._open[stream] = rest
        if len(rest) > _LONGEST:
            lines.append(self._open.pop(stream))
        return [printable(line) for line in lines]

    def rest(self) -> Iterable[str]:
        """Return the lines without an end."""
        return [printable(line) for line in self._open.values() if line]


def with_source(text: str, file: Path) -> str:
    """Return a traceback with the author's file in place of its stored copy."""
    return _STORED.sub(lambda _: str(file), text)


def _times(execution: Execution) -> str:
    """Return the time of a call, and its parts other than the handler that took a while."""
    timings = execution.timings
    parts = {"queue": timings.queue, "build": timings.build, "start": timings.start, "import": timings.load}
    more = ", ".join(f"{name} {_span(value)}" for name, value in parts.items() if value >= _WORTH_SECONDS)
    return f"{_span(execution.duration or 0.0)} (handler {_span(timings.run)}{', ' if more else ''}{more})"


def _span(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.1f} ms"


def _short(data: bytes) -> str:
    text = one_line(data[: 4 * _SHOWN].decode(errors="replace"))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


@define(eq=False)
class Dev:
    """How one file is served for its author."""

    file: Path
    console: Console = field(init=False)
    _mistaken: bool = field(default=False, init=False)
    """The file has mistakes, and the last good version is served."""

    def __attrs_post_init__(self) -> None:
        self.console = Console(self.file)

    def begin(self, system: System, nursery: trio.Nursery) -> None:
        """Print the calls of a system from now on."""
        system.runs.on_enter.append(self.console.enter)
        nursery.start_soon(self.console.run)
        nursery.start_soon(self._begin, system)

    async def _begin(self, system: System) -> None:
        """Import the file before its first call, which is fast then, and tell its author what is wrong with it."""
        try:
            async with self.trying(system, [module.spec for module in system.registry.snapshot.modules.values()]):
                pass
        except (RunnerError, OSError) as problem:
            self._wrong(problem)

    def announce(self, url: str, name: str, page: str, call: str) -> None:
        """Print where the file is served: the page on which it can be called, and a command that calls it."""
        self.console.say("", (f"{self.file}", "bold"), (f" serves {name} at {url}", ""))
        for what, text in (("page", page), ("call", call), ("stop", "Ctrl-C")):
            self.console.say("", (f"  {what}  ", "dim"), (text, ""))

    def read(self, path: Path) -> tuple[ModulesFile, tuple[Mistake, ...]]:
        """Read the file; see `read_script`."""
        return read_script(path)

    def reloaded(self, *, changed: bool) -> None:
        """Print that the file is served as it is, if it was not before."""
        if changed or self._mistaken:
            self.console.say("", ("reloaded" if changed else "the mistake is gone; nothing else changed", "green"))
        self._mistaken = False

    def refused(self, problem: Exception) -> None:
        """Print the mistakes in a change."""
        self._mistaken = True
        self._wrong(problem)
        self.console.say("", ("the last good version keeps serving", "yellow"))

    def _wrong(self, problem: Exception) -> None:
        failure = problem.failure if isinstance(problem, RunnerError) else None
        text = str(problem) if failure is None else f"{failure.traceback or ''}{failure.kind}: {failure.message}"
        for line in with_source(text, self.file).replace(str(self.file.absolute()), str(self.file)).splitlines():
            self.console.say("", (printable(line), "red"))

    @asynccontextmanager
    async def trying(self, system: System, specs: Iterable[ModuleSpec]) -> AsyncIterator[None]:
        """Hold a worker that has imported each changed module. Raises RunnerError for one that does not load."""
        async with AsyncExitStack() as stack:
            for spec in specs:
                if spec.isolation is Isolation.NONE:
                    continue
                module, _ = await system.registry.stage(spec, _CALLER)
                stack.callback(system.registry.release, module)
                await stack.enter_async_context(system.executors[spec.env].lease(module, Phases(), patient=True))
            yield
