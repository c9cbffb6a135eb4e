"""`Projection`: brings the states of executions from the log of the engine into the history of this runner."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Final

import structlog
import trio
from attrs import define, field

from actors.cluster.engine import EngineError, Reader, Stored
from actors.cluster.files import ids_of
from actors.cluster.letters import LaterError, Letter, UnreadableError, unpack
from actors.cluster.record.mail import Mail
from actors.cluster.record.positions import Position, Positions
from actors.history import History, stage_of, stages
from protocol.errors import RunnerError
from protocol.model import Execution

_NAME: Final = "log"
_MANY: Final = 1000
"""Letters that are stored together."""
_MANY_BYTES: Final = 8 * 1024 * 1024
"""Bytes of inputs, results and events that are."""
_KEEP_SECONDS: Final = 1.0
"""How often the position is remembered. Letters that are read again change nothing."""
_TRIES: Final = 3
_RETRY_SECONDS: Final = 1.0

Hook = Callable[[Execution, int], None]

log = structlog.get_logger("cluster")


@define(eq=False)
class Projection:
    """The actor. A state is in the history when the hooks get it, unless this process wrote it: then it is here."""

    mail: Mail
    history: History
    positions: Positions
    hooks: list[Hook] = field(factory=list, init=False)
    """Functions that get each state and its sequence; they must not raise."""
    owe: Callable[[str], None] = field(default=lambda _: None, init=False)
    """Has the state of the history offered to the log."""
    unreadable: int = field(default=0, init=False)
    """Letters that this release cannot read, since the start."""
    lag: int = field(default=0, init=False)
    """Letters that are not read yet."""
    caught_up: trio.Event = field(factory=trio.Event, init=False)
    """Set when all letters are stored that were there at the start."""
    _readable: float = field(default=math.inf, init=False)
    """Nothing up to this sequence is of a later release: once this runner is upgraded, it reads on from there."""
    _told: str = field(default="", init=False)
    """The last reason in the log."""
    _kept_at: float = field(default=float("-inf"), init=False)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Read the log until cancelled, at first from the last position."""
        task_status.started()
        engine = self.mail.engine
        await engine.prepared.wait()
        position = await self._begin()
        async with engine.read(engine.names.log, after=position.number) as reader:
            try:
                await self._read(reader, position.of)
            finally:
                with trio.CancelScope(shield=True):
                    await self._keep(reader.position, position.of)

    async def _begin(self) -> Position:
        """Return where to go on: at the begin of a log that was made again, or lost its end."""
        known = await trio.to_thread.run_sync(self.positions.get, _NAME)
        while True:
            try:
                extent = await self.mail.engine.extent(self.mail.engine.names.log)
            except EngineError as problem:
                log.info("the log of executions cannot be read yet", why=str(problem))
                await trio.sleep(_RETRY_SECONDS)
                continue
            break
        if known.number and (known.of != extent.made or known.number > extent.last):
            log.warning("the log of executions is another one than before: it is read from its begin")
            known = Position()
        self.lag = max(0, extent.last - known.number)
        if not self.lag:
            self.caught_up.set()
        return Position(known.number, extent.made)

    async def _read(self, reader: Reader, made: str) -> None:
        while True:
            found = list(await reader.batch())
            while len(found) < _MANY and reader.pending:
                with trio.move_on_after(0.01) as soon:
                    found += await reader.batch()
                if soon.cancelled_caught:
                    break
            self.lag = reader.pending + len(found)
            await self._store(found)
            self.lag = reader.pending
            if not self.lag:
                self.caught_up.set()
            if trio.current_time() >= self._kept_at + _KEEP_SECONDS or not self.lag:
                await self._keep(reader.position, made)

    async def _keep(self, reached: int, made: str) -> None:
        self._kept_at = trio.current_time()
        position = Position(int(min(reached, self._readable)), made)
        try:
            await trio.to_thread.run_sync(partial(self.positions.put, _NAME, position))
        except Exception as problem:  # noqa: BLE001  (a lost position costs time only)
            log.warning("the position in the log cannot be kept", why=str(problem))

    async def _store(self, found: Sequence[Stored]) -> None:
        """Store the states of some letters, then tell the hooks; large ones a few at a time."""
        letters: dict[str, tuple[Letter, int]] = {}
        size = 0
        for stored in found:
            letter = await self._letter(stored)
            if letter is None:
                continue
            execution = letter.execution
            letters[execution.id] = letter, stored.sequence
            size += len(execution.input) + len(execution.result or b"") + len(execution.events)
            if size > _MANY_BYTES:
                await self._store_read(letters)
                letters, size = {}, 0
        await self._store_read(letters)

    async def _store_read(self, letters: Mapping[str, tuple[Letter, int]]) -> None:
        me = self.mail.me
        others: list[Letter] = []
        mine: list[Letter] = []
        for letter, _ in letters.values():
            if letter.author.boot == me.boot:
                continue
            (mine if letter.author.node == me.node else others).append(letter)
        for letter in others:
            if letter.files or letter.parts:
                await self._note(letter)
        await self._contradict([letter.execution for letter, _ in letters.values() if not letter.author.boot])
        states = [letter.execution for letter in others] + await self._without_ended(mine)
        if states:
            await self._adopt(states)
        for letter, sequence in letters.values():
            for hook in self.hooks:
                hook(letter.execution, sequence)

    async def _letter(self, stored: Stored) -> Letter | None:
        """Return a letter with its parts; None for one that cannot be read, which is counted."""
        if stored.gone:
            return None
        for last in (False,) * (_TRIES - 1) + (True,):
            try:
                return await self.mail.whole(unpack(stored.data))
            except UnreadableError as problem:
                why = str(problem)
                if isinstance(problem, LaterError):
                    self._readable = min(self._readable, stored.sequence - 1)
                break
            except RunnerError as problem:
                why = str(problem)
                if not last:
                    await trio.sleep(_RETRY_SECONDS)
        self.unreadable += 1
        if why != self._told:  # else there may be many
            log.error("a state of an execution cannot be read", subject=stored.subject, why=why)
        self._told = why
        return None

    async def _note(self, letter: Letter) -> None:
        execution = letter.execution
        try:
            await self.mail.files.note_uses(execution.id, execution.module.name, ids_of(letter))
        except RunnerError as problem:
            log.warning("the files of an execution cannot be noted", execution=execution.id, why=str(problem))

    async def _contradict(self, offered: Sequence[Execution]) -> None:
        """Have states offered that are later than those which others have offered to a log that had lost them."""
        if not offered:
            return
        known = await self.history.read(partial(stages, names=[execution.id for execution in offered]))
        for execution in offered:
            if (stage := known.get(execution.id)) is not None and stage.follows(stage_of(execution)):
                self.owe(execution.id)

    async def _without_ended(self, mine: Sequence[Letter]) -> list[Execution]:
        """Return what an earlier process of this runner wrote and the history lacks.

        An end that it published and did not record is recorded now, with its notices.
        """
        if not mine:
            return []
        names = [letter.execution.id for letter in mine]
        known = await self.history.read(partial(stages, names=names))
        states = []
        for letter in mine:
            execution, stage = letter.execution, known.get(letter.execution.id)
            if execution.status.final and stage is not None and not stage.status.final:
                await self.history.finish(execution)
            else:
                states.append(execution)
        return states

    async def _adopt(self, states: Sequence[Execution]) -> None:
        while True:
            try:
                for at in range(0, len(states), _MANY):
                    await self.history.adopt(states[at : at + _MANY])
            except RunnerError as problem:
                log.warning("states of executions cannot be stored", why=str(problem))
                await trio.sleep(_RETRY_SECONDS)
            else:
                return
