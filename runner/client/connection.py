"""The connection to a running server: HTTP requests here, websockets in `runner.client.socket`.

Every error of the server or the network is raised as one RunnerError that names the remedy. Every wait and every answer
has a bound. Proxies from the environment are not used.
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
from config.units import decimal
from protocol.errors import PROBLEM, ErrorKind, Failure, RunnerError, error
from runner.client.local_token import Credentials
from runner.client.socket import Socket, open_socket
from runner.client.trouble import NO_HOST, lost, no_answer, not_a_runner, unreachable
from runner.status import CODES
from runner.terminal import printable

T = TypeVar("T")

MAX_ANSWER_BYTES = 256 * 1024 * 1024
"""Largest answer and largest input; the runner has its own limit `max_frame`."""
CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 60.0
"""Time limit of answers that do not wait for a handler."""
_PART_BYTES = 64 * 1024
_KEEP_ALIVE = [
    (socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1),
    (socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 20),
    (socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10),
    (socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3),
]
"""An answer may take hours; these probes detect a lost server after 50 s."""


@frozen
class Answer:
    """The answer of a runner. `headers` have names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = field(repr=False)
    address: Address

    def read(self, kind: type[T]) -> T:
        """Return the decoded body. Raises RunnerError if it is not such JSON."""
        return decode(self.body, kind, self.address)


def decode(data: bytes | msgspec.Raw, kind: type[T], address: Address) -> T:
    """Return decoded JSON of a runner. Raises RunnerError if it is not of this type."""
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        raise not_a_runner(address, "its answer cannot be read") from None


class _Problem(msgspec.Struct):
    detail: str = ""
    title: str = ""
    kind: str | None = None
    field: str | None = None


@frozen(eq=False)
class Client:
    """A client of one runner, made by `open_client`. Many requests and websockets may be open at a time."""

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
        body: bytes | AsyncIterator[bytes] | None = None,
        headers: Mapping[str, str] | None = None,
        seconds: float | None = ANSWER_SECONDS,
        sent: Callable[[int], None] | None = None,
        into: Callable[[Answer, bytes], Awaitable[None]] | None = None,
    ) -> Answer:
        """Make one request and return its answer, which must come within `seconds` (None: no limit).

        `sent` gets the size of each part of the body when it is on its way. `into` gets the parts of an answer of 200,
        of any size, with its head; the returned answer has no body then.

        A failed execution is an answer, too. Raises RunnerError for every problem document of the runner, with its
        kind, message and field; `unavailable` if no runner can be reached, `lost` if the connection breaks before the
        answer, `too_large`. Cancelled, the connection is closed.
        """
        limits = httpx.Timeout(seconds, connect=CONNECT_SECONDS)
        given = {**self._headers(), **(headers or {})}
        content: bytes | AsyncIterator[bytes] | None = body
        if isinstance(body, bytes) and sent is not None:
            given["content-length"], content = str(len(body)), _parts(body, sent)
        try:
            request = self._http.build_request(method, self._target(path, query), content=content, headers=given)
            request.extensions["timeout"] = limits.as_dict()
            response = await self._http.send(request, stream=True)
            try:
                head = Answer(response.status_code, _lowered(response.headers), b"", self.address)
                if into is not None and head.status == 200:
                    received = b""
                    async for part in response.aiter_raw():
                        await into(head, part)
                else:
                    received = await self._content(response)
            finally:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1):
                    await response.aclose()
        except httpx.HTTPError as problem:
            raise _translated(self.address, problem, seconds) from None
        except (httpx.InvalidURL, UnicodeError):  # not a host name
            raise unreachable(self.address, NO_HOST) from None
        answer = evolve(head, body=received)
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
        # No compression: the bound on answers counts the received bytes.
        headers = {"accept": f"application/json, {PROBLEM}, */*;q=0.5", "accept-encoding": "identity"}
        return headers if token is None else {**headers, "authorization": f"Bearer {token}"}

    async def _content(self, response: httpx.Response) -> bytes:
        """Return the body. Raises RunnerError `too_large` and httpx.HTTPError."""
        parts, size = [], 0
        try:
            async for part in response.aiter_raw():
                size += len(part)
                if size <= MAX_ANSWER_BYTES:
                    parts.append(part)
                else:  # a break would leave the generators of httpx open; closing the connection ends them
                    await response.extensions["network_stream"].aclose()
        except httpx.HTTPError:
            if size <= MAX_ANSWER_BYTES:
                raise
        if size > MAX_ANSWER_BYTES:
            raise error(ErrorKind.TOO_LARGE, f"the answer of {self.address} is over {MAX_ANSWER_BYTES} bytes")
        return b"".join(parts)

    def _check(self, answer: Answer) -> None:
        """Raise RunnerError for a problem document, a redirect and an answer of another server."""
        kind = answer.headers.get("content-type", "").partition(";")[0].strip()
        if kind == PROBLEM or 300 <= answer.status < 400 or (answer.status >= 400 and kind != "application/json"):
            raise RunnerError(self._refusal(answer.status, answer.headers, answer.body))

    def _refusal(self, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
        """Return the failure of a refused request, with the remedy if it is about the token."""
        failure = failure_of(self.address, status, headers, body)
        if failure.kind is ErrorKind.UNAUTHENTICATED:
            given = self._credentials
            return evolve(failure, message=f"{given.cause or failure.message}; {given.remedy}")
        return failure


def failure_of(address: Address, status: int, headers: Mapping[str, str], body: bytes) -> Failure:
    """Return the failure of a refused request from its problem document, else from its status."""
    content_type = headers.get("content-type", "").partition(";")[0].strip()
    if content_type == PROBLEM:
        try:
            problem = msgspec.json.decode(body, type=_Problem)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            problem = _Problem()
        message = printable(problem.detail or problem.title) or f"{address} answered {status}"
        seconds = decimal(headers.get("retry-after", ""))
        place = None if problem.field is None else printable(problem.field)
        return Failure(_kind(problem.kind, status), message, field=place, retry_after=seconds)
    location = printable(headers.get("location", ""))
    phrase = http.HTTPStatus(status).phrase if status in set(http.HTTPStatus) else ""
    answer = f"it answered {status} {phrase}".rstrip()
    return not_a_runner(address, f"{answer} with a redirect to {location:.200}" if location else answer).failure


def _kind(name: str | None, status: int) -> ErrorKind:
    if name in set(ErrorKind):
        return ErrorKind(name)
    fitting = {codes.http: kind for kind, codes in reversed(CODES.items())}
    return fitting.get(status, ErrorKind.BAD_INPUT if status < 500 else ErrorKind.INTERNAL)


async def _parts(body: bytes, sent: Callable[[int], None]) -> AsyncIterator[bytes]:
    for start in range(0, len(body), _PART_BYTES):
        part = body[start : start + _PART_BYTES]
        yield part
        sent(len(part))


def _lowered(headers: httpx.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def segment(name: str) -> str:
    """Return a name as one segment of a path."""
    return quote(name, safe="", errors="surrogateescape")


def _with_query(path: str, query: Mapping[str, object] | None) -> str:
    """Return a path with the parameters that are not None; a tuple or list repeats its parameter."""
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
        return not_a_runner(address, "it does not use HTTP")
    if "without sending a response" in str(problem):
        return lost(address, "closed without an answer; check OPERATO_URL: it may use TLS, or not be a runner")
    return lost(address, problem)


def make_context(settings: ClientSettings) -> ssl.SSLContext | None:
    """Return the TLS context, None for http. Raises ConfigError for an unusable file."""
    if not settings.address.secure:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.ca_file)
    except OSError as problem:
        why = "it has no certificate in PEM format" if isinstance(problem, ssl.SSLError) else problem.strerror
        raise ConfigError([Mistake(f"{settings.ca_file} cannot be used: {why}", None, None, "--ca")]) from None
    if settings.cert_file is not None:
        _load_certificate(context, settings.cert_file, settings.key_file)
    return context


def _load_certificate(context: ssl.SSLContext, certificate: Path, key: Path | None) -> None:
    """Load the client certificate into `context`. Raises ConfigError."""
    try:
        for path in (certificate, key or certificate):  # the errors of OpenSSL do not name the file
            path.open("rb").close()
        context.load_cert_chain(certificate, key, password=str)  # an empty password instead of a prompt
    except OSError as problem:
        found, at = key or certificate, "--cert" if key is None else "--cert-key"
        if not isinstance(problem, ssl.SSLError):
            text = f"{problem.filename} cannot be read: {problem.strerror}"
            at = "--cert" if problem.filename == str(certificate) else at
        elif problem.reason == "KEY_VALUES_MISMATCH":
            text = f"{found} does not have the key of {certificate}"
        else:
            text, at = (
                f"{certificate} and {found} are not a certificate and its unencrypted key in PEM format",
                "--cert",
            )
            if key is None:
                text = f"{certificate} has no certificate with its unencrypted key in PEM format; or name a --cert-key"
        raise ConfigError([Mistake(text, None, None, at)]) from None


@asynccontextmanager
async def open_client(settings: ClientSettings, credentials: Credentials) -> AsyncIterator[Client]:
    """Yield a client; it connects at the first request. Raises ConfigError."""
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
    """Run the work of a command with a client; return its exit code. Raises RunnerError and ConfigError."""

    async def connected() -> int:
        async with open_client(settings, credentials) as client:
            return await work(client)

    return trio.run(connected)
