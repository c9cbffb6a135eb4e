"""`Follower`: reads the changes of some topics in order into a file of this runner, and publishes changes of its own.

Rules:
* A change is published with the number of the last one of its topic that is applied here, so that it is refused if
  another runner was faster. Its author waits until it is applied here.
* The file notes up to which change it has all, in the transaction that applies them. A change may be applied twice.
"""

from __future__ import annotations

import math
import secrets
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Final, TypeVar

import structlog
import trio
from attrs import define, field

from actors.cluster.engine import AwayError, Engine, EngineError, FullError, RefusedError, StaleError, Stored
from actors.cluster.feed.news import CLUSTER, MARK, News, id_of, pack, token
from actors.cluster.letters import Author, UnreadableError
from actors.one_file import InTurn, OneFile, OvertakenError
from protocol.errors import ErrorKind, RunnerError, error

_APPLY_SECONDS: Final = 30.0
"""How long a change may take to come back and be applied."""
_TRIES: Final = 3
_RETRY_SECONDS: Final = 5.0
_MARKS: Final = b"mark"
_PAUSE_SECONDS: Final = 0.25
_AWAY: Final = "the servers of the cluster do not answer: nothing can be changed until they do"
_ROLLUP: Final = {"Nats-Rollup": "sub"}
"""The message takes the place of those before it, of which the stream else keeps some."""
_TOPIC: Final = "Nats-Expected-Last-Subject-Sequence-Subject"

T = TypeVar("T")

log = structlog.get_logger("cluster")


@define(eq=False)
class Follower:
    """The actor that has a file follow some topics. `apply` applies news in order, and stores `place` with them.

    `apply` may raise RunnerError: then it is called again with the same news.
    """

    engine: Engine
    author: Author
    topics: Sequence[str]
    file: OneFile
    in_file: InTurn
    apply: Callable[[int, int, Sequence[Stored]], Awaitable[None]]
    """Gets the number of the cluster (0 while this runner joins it), the place and the news."""
    lost: Callable[[], Awaitable[None]] = field(default=trio.lowlevel.checkpoint, init=False)
    """Called when the engine has lost the changes, before others are applied: this runner is `joining` then."""
    unreadable: dict[str, str] = field(factory=dict, init=False)
    """Why news of a topic could not be read: this runner changes nothing of it any more."""
    readable: float = field(default=math.inf, init=False)
    """The file notes no place after this one, so that a later release reads again what this one could not read."""
    joining: bool = field(default=False, init=False)
    place: int = field(default=0, init=False)
    """All changes up to this one are applied."""
    _cluster: int = field(default=0, init=False)
    _mark: int = field(default=0, init=False)
    """The number of a message that came after all that were there at `open`."""
    _last: dict[str, int] = field(factory=dict, init=False)
    """The number of the last change of each topic that is applied."""
    _subjects: dict[str, int] = field(factory=dict, init=False)
    """The same of each subject."""
    _sent: dict[str, int] = field(factory=dict, init=False)
    """News of this runner on their way, by id, with their numbers once they are applied."""
    _moved: trio.Event = field(factory=trio.Event, init=False)

    async def open(self) -> None:
        """Find the place of the file in this cluster; waits for the engine. Raises RunnerError `unavailable`."""
        self._cluster = await self._number()
        mark = self.engine.names.news(MARK, token(self.author.node, *self.topics))
        self._mark = await self._waiting(partial(self.engine.publish, mark, _MARKS, headers=_ROLLUP))
        known, place = await self.in_file(self.file.place)
        # With a place after the last message, the engine lost some, or was restored.
        self.joining = known != self._cluster or place >= self._mark
        self.place = 0 if self.joining else place

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Apply changes until cancelled; started when all that were there at `open` are applied."""
        subjects = [self.engine.names.news(topic, "*") for topic in (*self.topics, MARK)]
        async with self.engine.read(self.engine.names.feed, after=self.place, subjects=subjects) as reader:
            started = False
            while True:
                if not started and self.place >= self._mark:
                    started = True
                    task_status.started()
                batch = await reader.batch()
                if batch[0].sequence <= self.place:
                    log.error("the cluster has lost changes; this runner joins it again", topics=self.topics)
                    self.place, self._mark = 0, sys.maxsize
                    self._last.clear()
                    self._subjects.clear()
                    await self.lost()
                    await self.open()
                await self._apply(batch)

    async def wait_read(self) -> None:
        """Wait until all changes are applied that were there at `open`."""
        while self.place < self._mark:
            await self._moved.wait()

    async def joined(self) -> None:
        """Note that this runner belongs to the cluster. Raises RunnerError `unavailable`."""
        await self.in_file(self.file.set_place, self._cluster, self.noted(self.place))
        self.joining = False

    def noted(self, place: int) -> int:
        """Return the place that the file notes with changes up to `place`."""
        return int(min(place, self.readable))

    def leave_out(self, stored: Stored, problem: UnreadableError) -> None:
        """Leave out news that cannot be read, and tell so."""
        topic = stored.subject.rsplit(".", 2)[1]
        self.unreadable[topic] = str(problem)
        self.readable = min(self.readable, stored.sequence - 1)
        log.error("a change of the cluster cannot be read", topic=topic, number=stored.sequence, why=str(problem))

    async def catch_up(self, topic: str) -> None:
        """Apply all changes of a topic that were made before this call. Raises RunnerError `unavailable`."""
        if not self.engine.connected:
            raise error(ErrorKind.UNAVAILABLE, _AWAY, field="cluster", retry_after=5)
        await self._catch_up(self.engine.names.news(topic, ">"), topic)

    def base(self, topic: str) -> int:
        """Return the number of the last change of a topic that is applied here; a decision is based on it."""
        return self._last.get(topic, 0)

    async def change(self, topic: str, name: str, news: News, base: int) -> int:
        """Publish a change that is based on the state of its topic at `base`; return its number once it is applied.

        Raises RunnerError: `OvertakenError` when there is a later one (which is applied now), `unavailable`.
        """
        names = self.engine.names
        headers = {_TOPIC: names.news(topic, ">")}
        return await self._publish(topic, names.news(topic, name), news, base, headers)

    async def replace(self, topic: str, name: str, news: News) -> int:
        """Publish what takes the place of the last news of this name. Raises as `change`."""
        subject = self.engine.names.news(topic, name)
        return await self._publish(topic, subject, news, self._subjects.get(subject, 0), _ROLLUP)

    async def add(self, topic: str, news: News, seconds: float) -> int:
        """Publish news that depend on no others, and that stay for so long. Raises RunnerError `unavailable`."""
        return await self._publish(topic, self.engine.names.news(topic, news.id), news, 0, {}, seconds)

    async def _publish(
        self, topic: str, subject: str, news: News, base: int, headers: Mapping[str, str], ttl: float | None = None
    ) -> int:
        if (why := self.unreadable.get(topic)) is not None:
            raise error(ErrorKind.UNAVAILABLE, f"another runner made a change that this one cannot read: {why}")
        self._sent[news.id] = 0
        try:
            try:
                number = await self._stored(subject, pack(news), base, headers, ttl)
            except StaleError:
                await self._catch_up(headers.get(_TOPIC, subject), topic)
                if not self._sent[news.id]:  # else an answer was lost
                    raise OvertakenError from None
                return self._sent[news.id]
            if not await self._wait(number):
                text = "the change is made, and this runner has not read it yet; look again"
                raise error(ErrorKind.UNAVAILABLE, text, retry_after=5)
            return number
        finally:
            del self._sent[news.id]

    async def _stored(
        self, subject: str, data: bytes, expect: int | None, headers: Mapping[str, str], ttl: float | None
    ) -> int:
        if not self.engine.connected:
            raise error(ErrorKind.UNAVAILABLE, _AWAY, field="cluster", retry_after=5)
        for _ in range(_TRIES):
            try:
                return await self.engine.publish(subject, data, expect=expect, headers=headers, ttl=ttl)
            except (RefusedError, FullError) as problem:
                text = f"the servers of the cluster refuse the change: {problem}"
                raise error(ErrorKind.UNAVAILABLE, text, field="cluster", retry_after=5) from problem
            except AwayError as problem:
                log.info("a change is sent again", subject=subject, why=str(problem))
        text = "the servers of the cluster do not answer; the change may have been made: look again when they do"
        raise error(ErrorKind.UNAVAILABLE, text, field="cluster", retry_after=5)

    async def _catch_up(self, subject: str, topic: str) -> None:
        """Have what a refused change did not know."""
        try:
            last = await self.engine.last(subject, fresh=True)
        except EngineError as problem:
            raise error(ErrorKind.UNAVAILABLE, _AWAY, field="cluster", retry_after=5) from problem
        number = 0 if last is None else last.sequence
        if not await self._wait(number):
            text = "this runner has not applied earlier changes of the cluster yet; try again"
            raise error(ErrorKind.UNAVAILABLE, text, retry_after=5)
        if subject.endswith(">"):
            self._last[topic] = number
        else:
            self._subjects[subject] = number

    async def _wait(self, number: int) -> bool:
        """Wait until a change is applied; return whether it is."""
        with trio.move_on_after(_APPLY_SECONDS):
            while self.place < number:
                await self._moved.wait()
            return True
        return False

    async def _apply(self, batch: Sequence[Stored]) -> None:
        place = batch[-1].sequence
        news = [each for each in batch if each.data and not each.gone]
        cluster = 0 if self.joining else self._cluster
        while True:
            try:
                await self.apply(cluster, place, news)
            except RunnerError as problem:
                log.warning("changes of the cluster cannot be applied; trying again", why=str(problem))
                await trio.sleep(_RETRY_SECONDS)
            else:
                break
        for each in news:
            topic = each.subject.rsplit(".", 2)[1]
            self._last[topic] = self._subjects[each.subject] = each.sequence
            if topic == "audit":
                del self._subjects[each.subject]
            if (sent := id_of(each.data)) in self._sent:
                self._sent[sent] = each.sequence
        self.place = place
        self._moved.set()
        self._moved = trio.Event()

    async def _number(self) -> int:
        """Return the number of the cluster; the first runner makes it."""
        subject = self.engine.names.news(CLUSTER, "number")
        while True:
            found = await self._waiting(partial(self.engine.last, subject, fresh=True))
            if found is not None:
                return int(found.data)
            number = str(secrets.randbits(62) + 1).encode()
            with suppress(StaleError):
                await self._waiting(partial(self.engine.publish, subject, number, expect=0))

    async def _waiting(self, work: Callable[[], Awaitable[T]]) -> T:
        """Return an answer of the engine as soon as there is one."""
        while True:
            try:
                return await work()
            except (AwayError, RefusedError) as problem:
                log.info("the changes of the cluster cannot be read yet", why=str(problem))
                await trio.sleep(_PAUSE_SECONDS)
