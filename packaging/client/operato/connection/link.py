"""Requests with the credentials of a client. They are repeated where that is safe; refusals become exceptions."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from operato.connection.settings import Settings
from operato.connection.transport import Body, NotSentError, Reply, Request, Transport
from operato.errors import (
    InternalError,
    LostError,
    OperatoError,
    OverloadedError,
    ShutdownError,
    TooLargeError,
    UnauthenticatedError,
    UnavailableError,
    failure,
)

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Largest answer in memory."""
ANSWER_SECONDS = 60.0
"""Time limit of answers that do not wait for a handler."""
LONGEST_PAUSE = 60.0
"""A runner that asks for a longer pause is not asked again."""
_PROBLEM = "application/problem+json"
_FOR_NOW = (OverloadedError, ShutdownError, UnavailableError, LostError)
"""The errors after which the same request may succeed."""


class Link:
    """The way to one runner. Connections are made when they are needed."""

    def __init__(
        self, transport: Transport, settings: Settings, *, retries: int, seconds: float = ANSWER_SECONDS
    ) -> None:
        self.transport = transport
        self._settings = settings
        self.retries = retries
        """How often a request is sent again."""
        self._seconds = seconds

    async def open(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: Body = None,
        headers: Mapping[str, object] | None = None,
        again: bool | None = None,
        seconds: float | None = -1,
    ) -> Reply:
        """Send a request and return its answer, to be read by the caller. Raises OperatoError for a refusal.

        It is sent again, at most `retries` times, if the runner was not reached or refused it for now, and if it may be
        repeated (`again`; by default every method but POST) also after a lost connection. The pauses grow, and follow
        `Retry-After`. `seconds` is the longest silence; None waits without limit.
        """
        again = method != "POST" if again is None else again
        limit = self._seconds if seconds == -1 else seconds
        number = 0
        while True:
            request = Request(method, self._target(path, query), self._headers(headers), body, limit)
            problem: OperatoError | None
            try:
                reply = await self.transport.open(request)
            except OperatoError as unanswered:
                problem, begun = unanswered, not isinstance(unanswered, NotSentError)
            else:
                problem, begun = await self._refusal(reply), False
                if problem is None:
                    return reply
            pause = max(problem.retry_after or 0, self._pause(number))
            if not isinstance(problem, _FOR_NOW) or (begun and not again) or pause > LONGEST_PAUSE:
                raise problem
            if number >= self.retries:
                raise problem
            number += 1
            await self.transport.sleep(pause)

    async def json(self, method: str, path: str, **how: Any) -> Any:
        """Send a request as `open` does, and return the JSON of its answer, None for one without a body."""
        return self.decoded(await self.read(await self.open(method, path, **how)))

    async def read(self, reply: Reply) -> bytes:
        """Return the whole body of an answer. Raises OperatoError."""
        parts: list[bytes] = []
        size = 0
        try:
            while True:
                part = await reply.part()
                if not part:
                    return b"".join(parts)
                size += len(part)
                if size > MAX_ANSWER_BYTES:
                    raise TooLargeError(f"the answer is over {MAX_ANSWER_BYTES} bytes")
                parts.append(part)
        finally:
            await reply.close()

    def decoded(self, body: bytes) -> Any:
        """Return the JSON in an answer. Raises InternalError."""
        try:
            return json.loads(body) if body.strip() else None
        except (ValueError, RecursionError):
            raise self._stranger("its answer is not JSON") from None

    async def _refusal(self, reply: Reply) -> OperatoError | None:
        """Return the error of a refusal, None for every other answer: a failed execution is one."""
        kind = reply.headers.get("content-type", "").partition(";")[0].strip()
        if reply.status < 300 or (reply.status >= 400 and kind == "application/json"):
            return None
        body = await self.read(reply)
        if kind != _PROBLEM:
            return self._stranger(f"it answered {reply.status}")
        fields = self.decoded(body)
        fields = fields if isinstance(fields, dict) else {}
        after = reply.headers.get("retry-after", "")
        seconds = float(after) if after.isdigit() else None
        problem = failure({"title": "", **fields}, status=reply.status, retry_after=seconds)
        if isinstance(problem, UnauthenticatedError) and self._settings.token is None:
            text = "there is no token: pass `token`, or set OPERATO_TOKEN"
            return UnauthenticatedError(f"{text}; `operato-runner token --subject NAME` prints one")
        return problem

    def _stranger(self, why: str) -> OperatoError:
        return InternalError(f"the server at {self._settings.url} is not an Operato Runner: {why}; check OPERATO_URL")

    def _target(self, path: str, query: Mapping[str, object] | None) -> str:
        given = {name: _text(value) for name, value in (query or {}).items() if value is not None}
        encoded = urlencode(given, doseq=True)
        return f"{self._settings.url}{path}?{encoded}" if encoded else f"{self._settings.url}{path}"

    def _headers(self, more: Mapping[str, object] | None) -> dict[str, str]:
        # No compression: the bound on answers counts the received bytes.
        headers = {"accept": f"application/json, {_PROBLEM}, */*;q=0.5", "accept-encoding": "identity"}
        if self._settings.token is not None:
            headers["authorization"] = f"Bearer {self._settings.token()}"
        return headers | {name: str(value) for name, value in (more or {}).items() if value is not None}

    def _pause(self, number: int) -> float:
        return float(min(0.1 * 2**number, 5.0) * random.uniform(0.75, 1.25))  # noqa: S311 - no secret


def _text(value: object) -> object:
    if isinstance(value, bool):
        return str(value).lower()
    return [str(each) for each in value] if isinstance(value, (list, tuple)) else value


def segment(name: str) -> str:
    """Return a name as one segment of a path."""
    return quote(name, safe="")
