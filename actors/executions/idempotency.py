"""Idempotency keys: a repeated key of the same caller and module is answered by its first execution."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

import msgspec
import trio
from attrs import define, field, frozen
from msgspec.structs import replace

from actors.executions.live import Key, Live, key_of
from actors.history import History
from protocol.errors import ErrorKind, RunnerError, error
from protocol.model import Execution, Status

MAX_KEY_CHARACTERS = 255
_COMPARED_BYTES = 256 * 1024
"""Larger inputs are compared byte by byte, not as JSON values."""


_RUNS = (Status.QUEUED, Status.RUNNING)
_MOST_REFUSED = 10
"""Executions that had the key and count as none, one after the other, before a caller is refused."""


def fingerprint(data: bytes) -> str:
    """Return a hash that is equal for equal inputs; in small inputs, white space and the order of keys do not count."""
    if len(data) <= _COMPARED_BYTES:
        with suppress(msgspec.DecodeError):  # a number out of range here may be valid for a handler
            data = msgspec.json.encode(msgspec.json.decode(data), order="sorted")
    return hashlib.sha256(data).hexdigest()


@frozen
class Delivery:
    """The id of a message that its sender delivers until it is accepted: an idempotency key by which it is run once.

    The deliveries of one message differ in their headers, so inputs are not compared. One that was answered with an
    error is delivered again in order to be run again.
    """

    key: str
    refused: Callable[[Execution], bool]
    """Returns whether the answer to an ended execution was an error for the sender."""
    compares: bool = False
    """Inputs are compared all the same."""


class Claims(Protocol):
    """Idempotency keys that several runners share. A runner that is alone needs none: it has every execution."""

    async def claim(self, execution: Execution, seconds: float, refused: str | None) -> Live | Execution | None:
        """Return None when this execution has the key now, for `seconds`, else the one that has it, live or ended.

        `refused` is the id of an execution that had it and counts as none. Raises RunnerError `unavailable`.
        """

    async def release(self, execution: Execution) -> None:
        """Give the key of an execution up that was not accepted. Raises nothing."""

    async def current(self, name: str) -> Live | Execution:
        """Return an execution of any runner, live or ended. Raises RunnerError `unavailable`."""


def _left(execution: Execution) -> bool:
    return execution.status is Status.CANCELLED


class Keyed(Protocol):
    """Where executions with idempotency keys are."""

    claims: Claims | None

    @property
    def history(self) -> History:
        """Those that are recorded."""

    def find_keyed(self, key: Key) -> Live | None:
        """Return the live execution with this idempotency key."""


@define(eq=False)
class Idempotency:
    """Finds the first execution of a key, in memory or in the history; keys are valid for `seconds`."""

    history: History
    seconds: float
    find: Callable[[Key], Live | None]
    shared: Claims | None = None
    """Those of the cluster."""
    _claims: dict[Key, trio.Event] = field(factory=dict, init=False)

    @classmethod
    def of(cls, runs: Keyed, seconds: float) -> Idempotency:
        """Return that of all executions."""
        return cls(runs.history, seconds, runs.find_keyed, runs.claims)

    async def first(
        self,
        execution: Execution,
        begin: Callable[[], Awaitable[Live | Execution]],
        delivery: Delivery | None = None,
    ) -> Live | Execution:
        """Return the first execution with the key of this one, live or ended; without one, the result of `begin`.

        With a `delivery`, that is its last execution, and one that was refused counts as none. Concurrent callers with
        the same key wait for each other here. Raises RunnerError: `conflict` when the first execution had another
        input, `bad_input` for an invalid key, and the errors of `begin`.
        """
        text = execution.idempotency_key or ""
        if not 1 <= len(text) <= MAX_KEY_CHARACTERS or not text.isprintable():
            limits = f"1 to {MAX_KEY_CHARACTERS} printable characters"
            raise error(ErrorKind.BAD_INPUT, f"an idempotency key has {limits}", field="Idempotency-Key")
        key = key_of(execution)
        while (claimed := self._claims.get(key)) is not None:
            await claimed.wait()
        claim = self._claims[key] = trio.Event()
        try:
            known = self.find(key) or await self.history.find_keyed(*key, time.time() - self.seconds)
            known = await self._counting(execution, known, delivery)
            if known is None:
                return await self._begin(execution, begin)
            if delivery is None or delivery.compares:
                await self._compare(known, execution)
            return known
        finally:
            del self._claims[key]
            claim.set()

    async def first_child(
        self, execution: Execution, begin: Callable[[Execution], Awaitable[Live | Execution]]
    ) -> Live | Execution:
        """Return the first execution with the key of one that a handler calls, or begin it.

        One that ended with its caller counts as none, so that another attempt of the caller begins it again.
        """
        if execution.summary:
            found = await trio.to_thread.run_sync(fingerprint, execution.input)
            execution = replace(execution, input_hash=found)
        key = execution.idempotency_key or ""
        return await self.first(execution, partial(begin, execution), Delivery(key, _left, compares=True))

    async def _counting(
        self, execution: Execution, known: Live | Execution | None, delivery: Delivery | None
    ) -> Live | Execution | None:
        """Return the first execution that counts; None: the key belongs to this one."""
        for _ in range(_MOST_REFUSED):
            refused = None
            if self.shared is not None and isinstance(known, Execution) and known.status in _RUNS:
                known = await self.shared.current(known.id)
            if isinstance(known, Execution) and delivery is not None and delivery.refused(known):
                refused, known = known.id, None
            if known is not None or self.shared is None:
                return known
            known = await self.shared.claim(execution, self.seconds, refused)
            if known is None:
                return None
        raise error(ErrorKind.UNAVAILABLE, "other callers use this key all the time; try again", retry_after=1)

    async def _begin(self, execution: Execution, begin: Callable[[], Awaitable[Live | Execution]]) -> Live | Execution:
        try:
            return await begin()
        except RunnerError:
            if self.shared is not None:
                await self.shared.release(execution)
            raise

    async def _compare(self, known: Live | Execution, execution: Execution) -> None:
        first: Execution | None = known.execution if isinstance(known, Live) else known
        if isinstance(known, Live) and known.execution.asynchronous:  # its input is not in memory
            first = await self.history.get(known.execution.id)
        if first is None:
            return
        given = fingerprint(execution.input)
        if given != (fingerprint(first.input) if first.input_hash is None else first.input_hash):
            text = f"the execution {first.id} had the same key and another input; use a new key"
            raise error(ErrorKind.CONFLICT, text, field="Idempotency-Key")
