"""The connection of a command to a running server: requests over HTTP, and `client_socket` for websockets.

Whatever a server or the network does wrong comes out as one RunnerError that says what to do. Every wait and every
answer has a bound. Proxies of the environment are not used.
"""

from __future__ import annotations

import http
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote, urlencode

import httpx
import msgspec
import trio
from attrs import evolve, field, frozen

from config.client import Address, ClientSettings
from config.mistakes import ConfigError, Mistake
from protocol.errors import ErrorKind, Failure, RunnerError, error
from runner.client.local_token import Credentials
from runner.client.socket import Socket, open_socket
from runner.client.trouble import NO_HOST, lost, no_answer, not_a_runner, unreachable
from runner.status import CODES

T = TypeVar("T")

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Largest answer that is read, and largest input that is sent; the runner has its own `max_frame`."""
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""For answers that do not wait for a handler."""
_PROBLEM = "application/problem+json"
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
"""An answer may take hours, so a server whose machine is gone is noticed by this: after 50 s."""


@frozen
class Answer:
    """What a runner answered. `headers` have names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    address: Address

    def read(self, kind: type[T]) -> T:
        """Return the JSON of the body. Raises RunnerError when it is not what a runner says."""
        try:
            return msgspec.json.decode(self.body, type=kind)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            raise not_a_runner(self.address, "its answer cannot be read") from None


class _Problem(msgspec.Struct):
    detail: str = ""
    title: str = ""
    kind: str | None = None
    field: str | None = None


@frozen(eq=False)
class Client:
    """A way to one runner. Made by `open_client`; any number of requests and websockets may be open at a time."""

    address: Address
    _credentials: Credentials
    _http: httpx.AsyncClient
    _context: ssl.SSLContext | None

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, object] | None = None,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = ANSWER_SECONDS,
    ) -> Answer:
        """Make one request and return its answer, which came within `seconds` (None: whenever it comes).

        An execution that failed is an answer. Raises RunnerError for every problem that the runner answers, with kind,
        message and field as it said them; `unavailable` when no runner can be reached, `lost` when the connection broke
        while the answer was awaited, `too_large`. Cancelled, the connection is closed.
        """
        limits = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        given = {**self._headers(), **(headers or {})}
        try:
            request = self._http.build_request(method, self._target(path, query), content=body, headers=given)
            request.extensions["timeout"] = limits.as_dict()
            response = await self._http.send(request, stream=True)
            try:
                content = await self._content(response)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await response.aclose()
        except httpx.HTTPError as problem:
            raise _translated(self.address, problem, seconds) from None
        except (httpx.InvalidURL, UnicodeError):  # a name that cannot be one
            raise unreachable(self.address, NO_HOST) from None
        answer = Answer(
            response.status_code, {k.lower(): v for k, v in response.headers.items()}, content, self.address
        )
        self._check(answer)
        return answer

    def socket(self, path: str, *, query: Mapping[str, object] | None = None) -> AbstractAsyncContextManager[Socket]:
        """Open a websocket, closed at the end of the block. Raises RunnerError as `request`."""
        token = self._credentials.token()
        headers = [] if token is None else [(b"authorization", b"Bearer " + token.encode())]
        return open_socket(
            self.address,
            self.address.prefix + _with_query(path, query),
            headers,
            context=self._context,
            seconds=CONNECT_SECONDS,
            max_bytes=MAX_ANSWER_BYTES,
            refusal=self._refusal,
        )

    def _target(self, path: str, query: Mapping[str, object] | None) -> str:
        return f"{self.address}{_with_query(path, query)}"

    def _headers(self) -> dict[str, str]:
        token = self._credentials.token()
        # Nothing is to be unpacked here: what is received is what counts against the bound.
        headers = {"accept": "application/json, application/problem+json, */*;q=0.5", "accept-encoding": "identity"}
        return headers if token is None else {**headers, "authorization": f"Bearer {token}"}

    async def _content(self, response: httpx.Response) -> bytes:
        """Return the body. Raises RunnerError `too_large`, and what httpx raises."""
        parts, size = [], 0
        try:
            async for part in response.aiter_raw():
                size += len(part)
                if size <= MAX_ANSWER_BYTES:
                    parts.append(part)
                else:  # leaving the loop would leave the generators of httpx open; without a connection they end
                    await response.extensions["network_stream"].aclose()
        except httpx.HTTPError:
            if size <= MAX_ANSWER_BYTES:
                raise
        if size > MAX_ANSWER_BYTES:
            raise error(ErrorKind.TOO_LARGE, f"the answer of {self.address} is over {MAX_ANSWER_BYTES} bytes")
        return b"".join(parts)

    def _check(self, answer: Answer) -> None:
        """Raise RunnerError for whatever is not an answer to be read."""
        kind = answer.headers.get("content-type", "").partition(";")[0].strip()
        if kind == _PROBLEM or 300 <= answer.status < 400 or (answer.status >= 400 and kind != "application/json"):
            raise RunnerError(self._refusal(answer.status, answer.headers, answer.body))

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
        """Return what a runner said of a request that it refused, with what can be done about it."""
        failure = failure_of(self.address, status, headers, body)
        if failure.kind is ErrorKind.UNAUTHENTICATED:
            return evolve(failure, message=f"{failure.message}; {self._credentials.remedy}")
        return failure


def failure_of(address: Address, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Return the failure of a refused request: that of its problem document, else what can be told of the status."""
    content_type = headers.get("content-type", "").partition(";")[0].strip()
    if content_type == _PROBLEM:
        try:
            problem = msgspec.json.decode(body, type=_Problem)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            problem = _Problem()
        message = printable(problem.detail or problem.title) or f"{address} answered {status}"
        after = headers.get("retry-after", "")
        seconds = float(after) if after.isascii() and after.isdigit() and len(after) < 9 else None
        at = None if problem.field is None else printable(problem.field)
        return Failure(_kind(problem.kind, status), message, field=at, retry_after=seconds)
    location = printable(headers.get("location", ""))
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
    says = f"it answered {status} {phrase}".rstrip()
    return not_a_runner(address, f"{says}, and points to {location:.200}" if location else says).failure


def _kind(said: str | None, status: int) -> ErrorKind:
    if said in set(ErrorKind):
        return ErrorKind(said)
    fitting = {codes.http: kind for kind, codes in reversed(CODES.items())}
    return fitting.get(status, ErrorKind.BAD_INPUT if status < 500 else ErrorKind.INTERNAL)


def printable(text: str) -> str:
    """Return text without what would steer a terminal; lines stay."""
    return "".join(c if c.isprintable() or c in "\n\t" else " " for c in text)


def segment(name: str) -> str:
    """Return a name as one part of a path."""
    return quote(name, safe="", errors="surrogateescape")


def _with_query(path: str, query: Mapping[str, object] | None) -> str:
    """Return a path with the parameters that are not None; a tuple or list is one for each of its values."""
    given = {name: value for name, value in (query or {}).items() if value is not None}
    encoded = urlencode(given, doseq=True, errors="surrogateescape")
    return f"{path}?{encoded}" if encoded else path


def _translated(address: Address, problem: httpx.HTTPError, seconds: float | None) -> RunnerError:
    if isinstance(problem, httpx.ConnectTimeout):
        return unreachable(address, f"no answer within {CONNECT_SECONDS:g} s")
    if isinstance(problem, httpx.ConnectError):
        return unreachable(address, problem)
    if isinstance(problem, httpx.TimeoutException):
        return no_answer(address, seconds)
    if isinstance(problem, httpx.RemoteProtocolError) and "disconnected" not in str(problem):
        return not_a_runner(address, "it does not speak HTTP")
    if "without sending a response" in str(problem):
        return lost(address, "closed without an answer; if that is no runner, or speaks TLS, change OPERATO_URL")
    return lost(address, problem)


def make_context(settings: ClientSettings) -> ssl.SSLContext | None:
    """Return how TLS is spoken, None in the clear. Raises ConfigError for a file that cannot be used."""
    if not settings.address.secure:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as problem:
        why = "it holds no certificate in PEM" if isinstance(problem, ssl.SSLError) else problem.strerror
        raise ConfigError([Mistake(f"{settings.ca_file} cannot be used: {why}", None, None, "--ca")]) from None
    if settings.cert_file is not None:
        _show_certificate(context, settings.cert_file, settings.key_file)
    return context


def _show_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Let `context` show a certificate. Raises ConfigError."""
    try:
        for path in (certificate, key or certificate):  # OpenSSL does not say which one it could not read
            path.open("rb").close()
        context.load_cert_chain(certificate, key, password=str)  # asked for where nobody may be: there is none
    except OSError as problem:
        found, at = key or certificate, "--cert" if key is None else "--cert-key"
        if not isinstance(problem, ssl.SSLError):
            text = f"{problem.filename} cannot be read: {problem.strerror}"
            at = "--cert" if problem.filename == str(certificate) else at
        elif problem.reason == "KEY_VALUES_MISMATCH":
            text = f"{found} has not the key of {certificate}"
        else:
            text, at = f"{certificate} and {found} are no certificate and unencrypted key in PEM", "--cert"
            if key is None:
                text = f"{certificate} is no certificate with its unencrypted key in PEM; name the key with --cert-key"
        raise ConfigError([Mistake(text, None, None, at)]) from None


@asynccontextmanager
async def open_client(settings: ClientSettings, credentials: Credentials) -> AsyncIterator[Client]:
    """Yield the way to a runner; nothing is connected before the first request. Raises ConfigError."""
    context = make_context(settings)
    transport = httpx.AsyncHTTPTransport(
        verify=context if context is not None else False,
        trust_env=False,
        limits=httpx.Limits(max_connections=10, max_keepalive_connections=2),
        socket_options=_KEEP_ALIVE,
    )
    async with httpx.AsyncClient(transport=transport, trust_env=False, follow_redirects=False) as http_client:
        yield Client(settings.address, credentials, http_client, context)


def run(settings: ClientSettings, credentials: Credentials, work: Callable[[Client], Awaitable[int]]) -> int:
    """Run what a command does with a client and return its exit code. Raises RunnerError and ConfigError."""

    async def connected() -> int:
        async with open_client(settings, credentials) as client:
            return await work(client)

    return trio.run(connected)
