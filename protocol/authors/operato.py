"""What a module can import from its runner: `from operato import File, Request, Response, context`.

Standard library only, Python 3.8 and later. Every worker finds this module, without installing anything, unless the
module has an `operato` of its own. Outside of a worker it works too, except for `context()`: tests make a `Context`,
a `Request` and a `File` themselves.
"""

from __future__ import annotations

import io
import os
import sys

TYPE_CHECKING = False  # as in `typing`, which takes longer to import than this module
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
    from typing import IO, Any

    _PathLike = os.PathLike[str]
else:
    _PathLike = os.PathLike

__all__ = ["CallError", "Context", "File", "Headers", "Pairs", "Request", "Response", "context"]

_DEFAULT_TYPE = "application/octet-stream"
_MAX_NAME = 200


class CallError(Exception):
    """A module that a handler called has failed, or was not called. The attributes say why."""

    kind: str
    """The error kind, such as `handler_error`, `timeout`, `bad_input`, `forbidden` or `cancelled`."""
    message: str
    """The message of the failure."""
    module: str
    """The name of the module."""
    error_type: str | None
    """The class of the exception in the other handler, if it raised one."""
    traceback: str | None
    """Where the other handler raised it."""
    field: str | None
    """The path of the value at fault."""
    execution_id: str | None
    """The execution that failed; None if none began."""

    def __init__(
        self,
        kind: str,
        message: str,
        module: str = "",
        error_type: str | None = None,
        traceback: str | None = None,
        field: str | None = None,
        execution_id: str | None = None,
    ) -> None:
        where = f" (execution {execution_id})" if execution_id else ""
        raised = f"{error_type}: " if error_type else ""
        super().__init__(f"{module}: {kind}: {raised}{message}{where}")
        self.kind, self.message, self.module, self.error_type = kind, message, module, error_type
        self.traceback, self.field, self.execution_id = traceback, field, execution_id

    def __reduce__(self) -> tuple[Any, ...]:
        given = (self.kind, self.message, self.module, self.error_type, self.traceback, self.field, self.execution_id)
        return type(self), given


class Context:
    """Information about the execution that runs: what a handler gets as `context`.

    A worker has one of its own with the same attributes. To call a handler in a test, make one.
    """

    execution_id: str
    """The id of the execution, a UUID."""
    attempt: int
    """The number of the attempt, from 1."""
    deadline: float
    """When the runner ends the execution, in seconds since the epoch."""

    def __init__(
        self,
        execution_id: str = "",
        attempt: int = 1,
        deadline: float = float("inf"),
        modules: Mapping[str, Callable[[Any], Any]] | None = None,
    ) -> None:
        """Make a context for a test. `modules` stand for the modules that the handler calls: functions of the input."""
        self.execution_id = execution_id
        self.attempt = attempt
        self.deadline = deadline
        self._modules = modules or {}

    @property
    def remaining(self) -> float:
        """Seconds until the runner ends the execution."""
        import time

        return max(0.0, self.deadline - time.time())

    def progress(self, done: float | None = None, total: float | None = None, text: str = "") -> None:
        """Report progress to the watchers of the execution; without a runner there are none."""

    def call(self, module: str, input: Any = None, *, version: str | None = None, key: str | None = None) -> Any:
        """Execute another module and return its result. Raises CallError if it fails.

        `version` is a version other than the active one. Calls with the same `key` execute it once.
        """
        try:
            function = self._modules[module]
        except KeyError:
            text = f"no runner is here; to test the handler, make `Context(modules={{{module!r}: function}})`"
            raise CallError("unavailable", text, module) from None
        return function(input)

    def map(self, module: str, inputs: Iterable[Any], *, parallel: int = 8, version: str | None = None) -> list[Any]:
        """Execute another module for each input, up to `parallel` at a time; return the results in order.

        The first failure is raised, and ends the others.
        """
        return [self.call(module, each, version=version) for each in inputs]

    def submit(
        self,
        module: str,
        input: Any = None,
        *,
        version: str | None = None,
        key: str | None = None,
        priority: int | None = None,
    ) -> str:
        """Have another module executed, also after the end of this execution; return the id of its execution."""
        self.call(module, input, version=version, key=key)
        return ""

    async def call_async(
        self, module: str, input: Any = None, *, version: str | None = None, key: str | None = None
    ) -> Any:
        """Do what `call` does, in an async handler."""
        result = self.call(module, input, version=version, key=key)
        return await result if hasattr(result, "__await__") else result

    async def map_async(
        self, module: str, inputs: Iterable[Any], *, parallel: int = 8, version: str | None = None
    ) -> list[Any]:
        """Do what `map` does, in an async handler."""
        return [await self.call_async(module, each, version=version) for each in inputs]

    async def submit_async(
        self,
        module: str,
        input: Any = None,
        *,
        version: str | None = None,
        key: str | None = None,
        priority: int | None = None,
    ) -> str:
        """Do what `submit` does, in an async handler."""
        await self.call_async(module, input, version=version, key=key)
        return ""


def context() -> Context:
    """Return the context of the running call, in any thread of it. Raises RuntimeError outside of a call."""
    found: Context | None = getattr(_running(), "context", None)
    if found is None:
        raise RuntimeError("no call is running: `context()` works in a handler, and in threads that it starts")
    return found


def _running() -> Any:
    """Return the object with `context` and `files` of the running call; None outside of a worker.

    It is the finder of this module in a worker. So it is found by each copy of this module, also an installed one.
    """
    if _call is not None:
        return _call
    return next((each for each in sys.meta_path if getattr(each, "operato_call", False)), None)


_call: Any = None  # set by programs other than workers


class File(_PathLike):
    """A file that a handler takes or returns: `File("report.pdf")`, `File(data, name="plot.png")`.

    As a parameter it is a copy of the caller's file, which the handler may change. As a result, or within one, its
    content goes to the caller as a file.
    """

    operato_kind = "File"

    name: str
    """The name, without folders; where a caller gave none, `file`."""
    id: str | None
    """The id of the content, as `sha256:...`, if the file came with the input; else None."""

    def __init__(
        self,
        source: str | os.PathLike[str] | bytes | bytearray | memoryview | Mapping[str, Any],
        name: str | None = None,
        type: str | None = None,
    ) -> None:
        """Take a path, bytes, or the JSON object of a file in the input: `{"$file": {"id": ...}}`.

        Raises OSError for a path that cannot be read, ValueError for the object of a file that is not in this call.
        """
        self.id = None
        self._data: bytes | None = None
        self._path: str | None = None
        if isinstance(source, (bytes, bytearray, memoryview)):
            self._data = bytes(source)
        elif hasattr(source, "get"):
            described = source.get("$file", source)
            self.id, self._path = _found(described)
            name = name or described.get("name")
            type = type or described.get("type")
        else:
            self._path = os.path.abspath(source)
            with open(self._path, "rb"):  # the error of a wrong path belongs here, not to where it is read
                pass
        self.name = os.path.basename(name or self._path or "") or "file"
        self._type = type

    @property
    def path(self) -> str:
        """The absolute path. Bytes are written to a folder that is removed with this object."""
        if self._path is None:
            self._path = self._write()
        return self._path

    @property
    def type(self) -> str:
        """The media type: the given one, else that of the name's suffix."""
        if self._type is None:
            import mimetypes

            self._type = mimetypes.guess_type(self.name)[0] or _DEFAULT_TYPE
        return self._type

    @property
    def size(self) -> int:
        """The number of bytes."""
        return len(self._data) if self._data is not None else os.stat(self.path).st_size

    def read_bytes(self) -> bytes:
        """Return the content."""
        with self.open() as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Return the content as text."""
        return self.read_bytes().decode(encoding, errors)

    def open(self, mode: str = "rb", encoding: str | None = None) -> IO[Any]:
        """Open the content for reading: `rb`, or `r` for text, which is UTF-8 unless `encoding` is given."""
        if mode not in ("rb", "r"):
            raise ValueError(f"a file is opened for reading, with mode 'rb' or 'r', not {mode!r}")
        file = open(self.path, "rb") if self._data is None else io.BytesIO(self._data)
        return file if mode == "rb" else io.TextIOWrapper(file, encoding or "utf-8")

    def __fspath__(self) -> str:
        return self.path

    def __repr__(self) -> str:
        return f"File(name={self.name!r}, type={self.type!r}, size={self.size})"

    def _write(self) -> str:
        import shutil
        import tempfile
        import weakref

        folder = tempfile.mkdtemp()
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        name = self.name.encode()[-_MAX_NAME:].decode(errors="ignore")
        path = os.path.join(folder, "file" if name in (".", "..") or "\0" in name else name)
        with open(path, "wb") as file:
            file.write(self._data or b"")
        self._data = None
        return path


def _found(described: Mapping[str, Any]) -> tuple[str, str]:
    """Return id and path of a file of the running call."""
    identity = described.get("id") if isinstance(described, dict) else None
    if not isinstance(identity, str):
        raise ValueError('a file is written as {"$file": {"id": "sha256:..."}}')
    path = (getattr(_running(), "files", None) or {}).get(identity)
    if path is None:
        raise ValueError(f"the file {identity[:100]} is not in this call")
    return identity, str(path)


if TYPE_CHECKING:
    _Texts = dict[str, str]
else:
    _Texts = dict


class Pairs(_Texts):
    """Names and values of a request. A name that came several times has its first value; `all` returns them all."""

    def __init__(self, pairs: Mapping[str, str] | Iterable[tuple[str, str]] = ()) -> None:
        self.pairs: list[tuple[str, str]] = [(self._name(name), value) for name, value in _pairs(pairs)]
        """All names and values in the order of the request."""
        super().__init__(reversed(self.pairs))

    def all(self, name: str) -> list[str]:
        """Return all values of a name."""
        return [value for key, value in self.pairs if key == self._name(name)]

    @staticmethod
    def _name(name: str) -> str:
        return name


class Headers(Pairs):
    """Header fields of a request; upper and lower case of a name are the same."""

    @staticmethod
    def _name(name: str) -> str:
        return name.lower()

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and super().__contains__(name.lower())

    def get(self, name: str, default: Any = None) -> Any:
        """Return the first value of a name, or the default."""
        return super().get(name.lower(), default)


def _pairs(source: Mapping[str, str] | Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    pairs = source.items() if hasattr(source, "items") else source
    return [(name, value) for name, value in pairs]


class Request:
    """A request to an endpoint of a module: the parameter of its handler, `def handler(request: Request)`."""

    operato_kind = "Request"

    method: str
    """`GET`, `POST` and so on."""
    path: str
    """The path, as `/github/push`."""
    params: dict[str, str]
    """The path parameters: `{"event": "push"}` for the endpoint `/github/{event}`."""
    query: Pairs
    """The parameters of the query."""
    headers: Headers
    """The header fields, without those that carry the runner's own credentials."""
    client: str
    """The address of the client."""
    form: dict[str, Any]
    """The fields of a form, without files: text, or a list of texts for a name that came several times."""
    files: dict[str, Any]
    """The files of a form: a `File`, or a list of them for a name that came several times."""

    def __init__(
        self,
        method: str = "GET",
        path: str = "/",
        *,
        params: Mapping[str, str] | None = None,
        query: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        headers: Mapping[str, str] | Iterable[tuple[str, str]] = (),
        client: str = "",
        body: bytes | str | File | None = None,
        form: Mapping[str, Any] | None = None,
    ) -> None:
        """Make a request; a worker makes it of what the caller sent. `form` has the fields and the files."""
        self.method = method
        self.path = path
        self.params = dict(params or {})
        self.query = Pairs(query)
        self.headers = Headers(headers)
        self.client = client
        self._body = body
        fields = dict(form or {})
        self.files = {name: value for name, value in fields.items() if _is_file(value)}
        self.form = {name: value for name, value in fields.items() if name not in self.files}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Request:
        """Make a request of the input of an endpoint: `{"$request": {...}}`. Raises ValueError."""
        data = value.get("$request") if isinstance(value, dict) else None
        if not isinstance(data, dict):
            raise ValueError('a request is written as {"$request": {"method": "GET", "path": "/", ...}}')
        known = {"method", "path", "params", "query", "headers", "client", "body", "form"}
        given = {name: part for name, part in data.items() if name in known and part is not None}
        if isinstance(given.get("body"), dict):
            given["body"] = File(given["body"])
        if "form" in given:
            given["form"] = {name: _with_files(part) for name, part in given["form"].items()}
        return cls(**given)

    @property
    def body(self) -> bytes:
        """The body; empty if the request has none, or a form."""
        if isinstance(self._body, File):
            self._body = self._body.read_bytes()
        return self._body.encode() if isinstance(self._body, str) else self._body or b""

    @property
    def text(self) -> str:
        """The body as text, in the character set that its type names, else UTF-8."""
        charset = self.headers.get("content-type", "").lower().partition("charset=")[2]
        return self.body.decode(charset.split(";")[0].strip("\"' ") or "utf-8")

    def json(self) -> Any:
        """Return the body as JSON. Raises ValueError."""
        import json

        return json.loads(self.body)


def _is_file(value: object) -> bool:
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, File) for each in value)
    return isinstance(value, File)


def _with_files(value: Any) -> Any:
    """Return a value of a form with its files as `File`."""
    if isinstance(value, list):
        return [_with_files(each) for each in value]
    return File(value) if isinstance(value, dict) and set(value) == {"$file"} else value


class Response:
    """What a handler returns to answer a request with status, header fields and a body of its choice.

    The body is nothing, text, bytes, a `File`, an open binary file, a value for JSON, or a generator, whose items are
    sent as they come: text and bytes as they are, other values as lines of JSON, or as events if the type is
    `text/event-stream`.
    """

    operato_kind = "Response"

    def __init__(
        self,
        body: Any = None,
        status: int = 200,
        headers: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
        type: str | None = None,
    ) -> None:
        """Take body, status, header fields and media type. Raises ValueError for what HTTP cannot carry."""
        if isinstance(status, bool) or not isinstance(status, int) or not 200 <= status <= 599:
            raise ValueError(f"the status of a response is a number from 200 to 599, not {status!r}")
        self.body = body
        self.status = int(status)
        self.headers = [(str(name), str(value)) for name, value in _pairs(headers or ())]
        if type is not None:
            self.headers = [pair for pair in self.headers if pair[0].lower() != "content-type"]
            self.headers.append(("content-type", type))
        for name, value in self.headers:
            if not name or not set(name) <= _TOKEN:
                raise ValueError(f"{name!r} is not the name of a header field")
            if any(mark in value for mark in "\r\n\0") or not value.isascii():
                raise ValueError(f"the header field {name!r} has a line break, or a character that is not ASCII")

    def operato_stream(self) -> Any:
        """Return the items to send if the body is a generator, the head first; else this response."""
        if hasattr(self.body, "__anext__"):
            return self._asynchronous(self.body)
        return self._synchronous(self.body) if hasattr(self.body, "__next__") and not _is_open(self.body) else self

    def operato_json(self) -> dict[str, Any]:
        """Return the response as the result of an execution; files in it are stored on the way."""
        head: dict[str, Any] = {"status": self.status, "headers": [list(pair) for pair in self.headers]}
        if isinstance(self.body, str):
            head["text"] = self.body
        elif isinstance(self.body, (bytes, bytearray, memoryview, File)) or _is_open(self.body):
            head["file"] = self.body
        elif self.body is not None:
            head["json"] = self.body
        return {"$response": head}

    def _synchronous(self, parts: Iterator[Any]) -> Iterator[Any]:
        try:
            yield Response(None, self.status, self.headers)
            yield from parts
        finally:
            getattr(parts, "close", lambda: None)()

    async def _asynchronous(self, parts: AsyncIterator[Any]) -> AsyncIterator[Any]:
        try:
            yield Response(None, self.status, self.headers)
            async for part in parts:
                yield part
        finally:
            if hasattr(parts, "aclose"):
                await parts.aclose()


_TOKEN = frozenset("!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")


def _is_open(value: object) -> bool:
    """Return whether a value is an open binary file."""
    return isinstance(value, io.IOBase) and not isinstance(value, io.TextIOBase)
