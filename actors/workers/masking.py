"""Masking: values of secrets in output and failures become `***`. It catches accidents; it is no security boundary.

Rules:
* Every occurrence counts, overlapping ones included; each unbroken stretch of them becomes one `***`. So the masked
  text does not depend on how reads cut the output.
* Values, and lines of multi-line values, with fewer than four characters are not masked: too much text would match. The
  forms in which `repr` and JSON write a value are masked like the value.
* The masker holds back only a possible beginning of a value, until the next output decides or a moment has passed.
* Results and items of a generator are answers and are not masked.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, TypeAlias

import structlog
import trio
from attrs import define, evolve, field

from config.mistakes import ConfigError
from protocol import messages
from protocol.errors import ErrorKind, error

if TYPE_CHECKING:
    import msgspec

    from actors.events import EventLog
    from config.modules import ModuleSpec
    from config.secrets import LookUp
    from protocol.errors import Failure
    from protocol.model import Stream

_Hear: TypeAlias = Callable[[messages.Item | messages.Progress], None]

MASK = "***"
SHORTEST = 4
"""Characters that a value needs to be masked."""
HOLD_SECONDS = 0.03
"""How long to hold back a possible beginning of a value when no output follows."""
_MOST = 4096
"""Most values and lines of values to look for; of a file with more lines, the first ones are masked."""
_CUT = 4096
"""A message of this many characters may be the beginning of a longer one; see `Masker.text`."""
_LEFT_OUT = "\n...\n"
"""Replaces the middle of a long traceback."""
_MASK = MASK.encode()

log = structlog.get_logger("masking")


async def look_up(spec: ModuleSpec, secrets: LookUp) -> Mapping[str, str]:
    """Return the values of a module's secrets; without secrets there is no work, not even a checkpoint.

    Raises RunnerError as `look_up_named`.
    """
    return await look_up_named(spec, secrets, spec.secrets) if spec.secrets else {}


async def look_up_named(
    spec: ModuleSpec, secrets: LookUp, names: Iterable[str], *, quickly: bool = False
) -> Mapping[str, str]:
    """Return the values of some secrets of a module; with `quickly` those of variables without a thread.

    Raises RunnerError `unavailable` with the names of the missing secrets; the log has the places that were searched.
    """
    wanted = {name: spec.secrets[name] for name in names}
    try:
        if quickly and all(secret.file is None for secret in wanted.values()):
            return secrets(wanted)
        return await trio.to_thread.run_sync(secrets, wanted, abandon_on_cancel=True)
    except ConfigError as problem:
        for mistake in problem.mistakes:
            log.warning("a secret is missing", module=spec.name, secret=mistake.field, why=mistake.message)
        names = ", ".join(mistake.field for mistake in problem.mistakes)
        text = f"the value of {names} in `secrets` is missing; the runner's log has the places that were searched"
        raise error(ErrorKind.UNAVAILABLE, text, field="secrets") from None


class Masker:
    """Finds values in bytes of UTF-8. Immutable, so that any number of streams share one."""

    def __init__(self, patterns: Iterable[bytes]) -> None:
        self._by_head: dict[bytes, list[bytes]] = {}
        for pattern in sorted(set(patterns), key=len, reverse=True):
            self._by_head.setdefault(pattern[:SHORTEST], []).append(pattern)
        self._heads = re.compile(_any_of(self._by_head), re.DOTALL)
        self._starts = frozenset(head[:size] for head in self._by_head for size in range(1, SHORTEST))

    @classmethod
    def of(cls, values: Iterable[str]) -> Masker | None:
        """Return a masker of these values; None when there is nothing to mask."""
        patterns: dict[bytes, None] = {}
        for pattern in _patterns(list(values)):
            if len(patterns) == _MOST:
                break
            patterns[pattern] = None
        return cls(patterns) if patterns else None

    def look(self, data: bytes, *, last: bool) -> tuple[list[tuple[int, int]], int]:
        """Return the spans of values in `data`, and the position from which it may be the beginning of a value.

        With `last` no data follows, so no beginning can become a value.
        """
        spans = []
        found = self._heads.search(data)
        while found is not None:
            start = found.start()
            rest: bytes | None = None
            for pattern in self._by_head[found[0]]:  # the longest first
                if data.startswith(pattern, start):
                    spans.append((start, start + len(pattern)))
                    break
                if not last and len(data) - start < len(pattern):
                    rest = data[start:] if rest is None else rest
                    if pattern.startswith(rest):
                        return spans, start
            found = self._heads.search(data, start + 1)
        for start in range(max(0, len(data) - SHORTEST + 1), len(data)) if not last else ():
            if data[start:] in self._starts:
                return spans, start
        return spans, len(data)

    def text(self, text: str) -> str:
        """Return a whole text without the values; if it may have been cut, without the beginning of one at its end."""
        reading = Reading(self)
        masked = reading.feed(text.encode("utf-8", "surrogatepass"))
        cut = len(text) >= _CUT and reading.holds >= SHORTEST
        masked += reading.hide() if cut else reading.flush()
        return masked.decode("utf-8", "surrogatepass")

    def failure(self, failure: Failure) -> Failure:
        """Return a failure without the values."""
        return evolve(
            failure,
            message=self.text(failure.message),
            type=failure.type and self.text(failure.type),
            traceback=failure.traceback and _LEFT_OUT.join(map(self.text, failure.traceback.split(_LEFT_OUT))),
            field=failure.field and self.text(failure.field),
        )

    def before(self, hear: _Hear) -> _Hear:
        """Return a listener that passes messages on to `hear`, with text masked."""

        def masked(message: messages.Item | messages.Progress) -> None:
            if isinstance(message, messages.Progress):
                message = messages.Progress(message.id, message.done, message.total, self.text(message.text))
            hear(message)

        return masked


@define(eq=False)
class Reading:
    """One text that arrives in pieces. The pieces returned make the same text, masked."""

    masker: Masker
    _held: bytes = b""
    _covered: int = 0
    """The part of the held bytes that belongs to a value that has been masked."""
    fed_at: float = 0.0
    """When the last piece came, on the clock of the owner."""

    @property
    def holds(self) -> int:
        """Number of bytes held back."""
        return len(self._held) - self._covered

    def feed(self, data: bytes) -> bytes:
        """Add a piece; return the masked text that is certain by now."""
        return self._masked(self._held + data if self._held else data, last=False)

    def flush(self) -> bytes:
        """Return the held bytes, masked: no text follows that could complete a value."""
        return self._masked(self._held, last=True) if self._held else b""

    def hide(self) -> bytes:
        """Return the mask instead of the held bytes."""
        covered, self._held, self._covered = self._covered, b"", 0
        return b"" if covered else _MASK

    def _masked(self, data: bytes, *, last: bool) -> bytes:
        spans, hold = self.masker.look(data, last=last)
        done, parts = self._covered, []
        for start, end in spans:
            if start >= done:
                parts += [data[done:start], _MASK]
            done = max(done, end)
        if done < hold:
            parts.append(data[done:hold])
            done = hold
        self._held, self._covered = data[hold:], done - hold
        return b"".join(parts)


@define(eq=False)
class MaskedLog:
    """Masks the output of a worker's executions, one after the other. `run` must run beside the worker."""

    masker: Masker
    _log: EventLog | None = field(default=None, init=False)
    _readings: dict[tuple[Stream, bool], Reading] = field(factory=dict, init=False)
    _held: trio.Event = field(factory=trio.Event, init=False)
    _closed: bool = field(default=False, init=False)

    def before(self, log: EventLog) -> MaskedLog:
        """Write to `log` from now on."""
        self._log = log
        self._readings.clear()
        return self

    def write(self, stream: Stream, data: bytes, *, shared: bool = False) -> None:
        """Add bytes read from a stream; hold back a possible beginning of a value."""
        place = stream, shared
        reading = self._readings.get(place)
        if reading is None:
            reading = self._readings[place] = Reading(self.masker)
        self._write(place, reading.feed(data))
        if reading.holds:
            reading.fed_at = trio.current_time()
            self._held.set()

    def item(self, value: msgspec.Raw) -> None:
        """Add an item, unmasked."""
        if self._log is not None:
            self._log.item(value)

    def progress(self, done: float | None, total: float | None, text: str) -> None:
        """Add the progress that the handler reports."""
        if self._log is not None:
            self._log.progress(done, total, self.masker.text(text))

    def flush(self, fed_before: float = math.inf) -> None:
        """Write the held bytes: the handler has sent something else, has ended, or is silent."""
        for place, reading in self._readings.items():
            if reading.fed_at <= fed_before:
                self._write(place, reading.flush())

    def _write(self, place: tuple[Stream, bool], data: bytes) -> None:
        if data and self._log is not None:
            self._log.write(place[0], data, shared=place[1])

    def close(self) -> None:
        """Let `run` return."""
        self._closed = True
        self._held.set()

    async def run(self) -> None:
        """Flush when no output has followed for a moment; return when closed."""
        while True:
            await self._held.wait()
            if self._closed:
                return
            self._held = trio.Event()
            while fed := [reading.fed_at for reading in self._readings.values() if reading.holds]:
                await trio.sleep_until(min(fed) + HOLD_SECONDS)
                self.flush(trio.current_time() - HOLD_SECONDS)


def _patterns(values: list[str]) -> Iterator[bytes]:
    """Yield the patterns to mask: whole values first."""
    lines = [line.strip() for value in values if "\n" in value or "\r" in value for line in value.splitlines()]
    for text in [*values, *lines]:
        for form in (text, repr(text)[1:-1], json.dumps(text)[1:-1], json.dumps(text, ensure_ascii=False)[1:-1]):
            if len(form) >= SHORTEST and len(text) >= SHORTEST:
                yield form.encode()


def _any_of(heads: Iterable[bytes]) -> bytes:
    """Return a regular expression for any of some words of equal length; it tries few of them at each position."""
    rests: dict[bytes, list[bytes]] = {}
    for head in heads:
        rests.setdefault(head[:1], []).append(re.escape(head[1:]))
    return b"|".join(re.escape(first) + b"(?:" + b"|".join(rest) + b")" for first, rest in rests.items())
