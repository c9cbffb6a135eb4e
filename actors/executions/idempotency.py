"""Idempotency keys: a repeated key of the same caller and module is answered by its first execution."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgspec
import trio
from attrs import define, field

from actors.executions.live import Key, Live, key_of
from actors.history import History
from protocol.errors import ErrorKind, error
from protocol.model import Execution

MAX_KEY_CHARACTERS = 255
_COMPARED_BYTES = 256 * 1024
"""Larger inputs are compared byte by byte, not as JSON values."""


def fingerprint(data: bytes) -> bytes:
    """Return a hash that is equal for equal inputs; in small inputs, white space and the order of keys do not count."""
    if len(data) <= _COMPARED_BYTES:
        with suppress(msgspec.DecodeError):  # a number out of range here may be valid for a handler
            data = msgspec.json.encode(msgspec.json.decode(data), order="sorted")
    return hashlib.sha256(data).digest()


@define(eq=False)
class Idempotency:
    """Finds the first execution of a key, in memory or in the history; keys are valid for `seconds`."""

    history: History
    seconds: float
    find: Callable[[Key], Live | None]
    _claims: dict[Key, trio.Event] = field(factory=dict, init=False)

    async def first(self, execution: Execution, begin: Callable[[], Awaitable[Live | Execution]]) -> Live | Execution:
        """Return the first execution with the key of this one, live or ended; without one, the result of `begin`.

        Concurrent callers with the same key wait for each other here. Raises RunnerError: `conflict` when the first
        execution had another input, `bad_input` for an invalid key, and the errors of `begin`.
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
            if known is None:
                return await begin()
            await self._compare(known, execution)
            return known
        finally:
            del self._claims[key]
            claim.set()

    async def _compare(self, known: Live | Execution, execution: Execution) -> None:
        first: Execution | None = known.execution if isinstance(known, Live) else known
        if isinstance(known, Live) and known.execution.asynchronous:  # its input is not in memory
            first = await self.history.get(known.execution.id)
        if first is not None and fingerprint(first.input) != fingerprint(execution.input):
            text = f"the execution {first.id} had the same key and another input; use a new key"
            raise error(ErrorKind.CONFLICT, text, field="Idempotency-Key")
