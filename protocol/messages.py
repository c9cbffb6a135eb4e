"""The messages between host and guest, as tagged unions; SPEC.md has the table. JSON values pass through as `Raw`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Annotated, Final, TypeAlias

import msgspec

from protocol.scan import measure

PROTOCOL_VERSION = 1
MAX_DEPTH = 500
"""Levels of nesting of a value: the same on every Python, and well below the limits of all of them."""
MAX_CONTAINERS = 2_000_000
"""Arrays and objects of a value: their check is one call of C, which holds the lock of the interpreter."""
Bytes: TypeAlias = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
"""A number of bytes that fits a record: user code can write anything to the channel."""


class Hello(msgspec.Struct, tag="hello"):
    """Host: the module to serve. The first message, once."""

    entry: str
    """Absolute path of the file with the handler."""
    root: str
    """Folder put first on `sys.path`."""
    handler: str
    package: bool = False
    """The folder of `entry` below `root` is a package. It is put last on `sys.path` too."""
    isolation: str = "warm"
    variables: dict[str, str] = {}
    max_frame_bytes: int = 16 * 1024 * 1024
    calls: int = 1
    """How many executions the host may have running at a time."""
    protocol: int = PROTOCOL_VERSION


class Execute(msgspec.Struct, tag="execute", kw_only=True, omit_defaults=True):
    """Host: run the handler once. `deadline` is in seconds from now."""

    id: str
    attempt: int
    deadline: float
    files: dict[str, str] = {}
    """The files of the input: id -> path, as the guest sees it."""
    input: msgspec.Raw
    """The last field, so that its beginning can be found without a parser."""


class Cancel(msgspec.Struct, tag="cancel"):
    """Host: announces the SIGTERM that stops the execution softly. A relay passes it on and sends the SIGTERM."""

    id: str


class File(msgspec.Struct, tag="file"):
    """Host, to a relay: its byte frames follow. A file of the module before `hello`, later one of an execution."""

    path: str


class Stored(msgspec.Struct, tag="stored"):
    """Host: the answer to `store`; `file` is the object inside of `$file`."""

    id: str
    file: dict[str, str | int]


class Refused(msgspec.Struct, tag="refused"):
    """Host: the other answer to `store`. It is the failure of the execution, and may come before the last byte."""

    id: str
    kind: str
    message: str


class Called(msgspec.Struct, tag="called"):
    """Host: the answer to `call`: what the other handler returned; null if the guest did not want to wait for it."""

    id: str
    number: int
    child: str
    """The execution that was called."""
    value: msgspec.Raw
    """The last field, so that its beginning can be found without a parser."""


class CallFailed(msgspec.Struct, tag="call_failed"):
    """Host: the other answer to `call`: why the other execution failed, or why none began."""

    id: str
    number: int
    kind: str
    message: str
    child: str = ""
    """The execution that failed; empty if none began."""
    error_type: str | None = None
    traceback: str | None = None
    field: str | None = None


class Kill(msgspec.Struct, tag="kill"):
    """Host, to a relay: kill the worker and everything that it started, answer `ended`, and end."""


class Ping(msgspec.Struct, tag="ping"):
    """Host: answer `pong`."""


class Shutdown(msgspec.Struct, tag="shutdown"):
    """Host: end orderly; exit handlers run."""


class Ready(msgspec.Struct, tag="ready"):
    """Guest: the module is imported and `init()` has run."""

    python: str
    pid: int
    seconds: float
    children: bool = False
    subreaper: bool = False


class LoadFailed(msgspec.Struct, tag="load_failed"):
    """Guest: the module could not be imported; the worker ends."""

    error_type: str
    message: str
    traceback: str = ""


class Item(msgspec.Struct, tag="item"):
    """Guest: one item of a handler that is a generator."""

    id: str
    value: msgspec.Raw


class Store(msgspec.Struct, tag="store"):
    """Guest: bytes in a result or an item; its byte frames follow, and of other messages only `progress` among them.

    An `error` before the empty frame abandons the file.
    """

    id: str
    name: str
    media_type: str


class Part(msgspec.Struct, tag="part"):
    """Guest of many calls: the byte frame that follows directly continues the file of this execution."""

    id: str


class Printed(msgspec.Struct, tag="printed"):
    """Guest of many calls: output of one execution. The pipes have the output that belongs to no single one."""

    id: str
    stream: str
    text: str


class Progress(msgspec.Struct, tag="progress"):
    """Guest: progress as the handler reports it."""

    id: str
    done: float | None = None
    total: float | None = None
    text: str = ""


class Call(msgspec.Struct, tag="call"):
    """Guest: execute another module."""

    id: str
    number: int
    """Counts from 1 in each execution; the answer repeats it."""
    module: str
    input: msgspec.Raw
    waits: bool = True
    """False: `called` comes when the execution is accepted, which then depends on this one no more."""
    version: str | None = None
    key: str | None = None
    """An idempotency key."""
    priority: int | None = None


class Withdraw(msgspec.Struct, tag="withdraw"):
    """Guest: end a called execution that is not waited for any more. Its answer comes all the same."""

    id: str
    number: int


class Result(msgspec.Struct, tag="result"):
    """Guest: the handler returned. `children`: the execution left processes; a relay has `killed` them.

    `stays`: process ids of helpers, not to be ended.
    """

    id: str
    seconds: float
    value: msgspec.Raw
    children: bool = False
    stays: tuple[int, ...] = ()
    peak_memory: Bytes | None = None
    """The peak of the process's resident memory during the call, in bytes."""
    killed: tuple[str, ...] = ()


class Error(msgspec.Struct, tag="error"):
    """Guest: the handler did not return a value that JSON can represent."""

    id: str
    kind: str
    message: str
    seconds: float = 0.0
    error_type: str | None = None
    traceback: str | None = None
    field: str | None = None
    children: bool = False
    stays: tuple[int, ...] = ()
    peak_memory: Bytes | None = None
    killed: tuple[str, ...] = ()


class Output(msgspec.Struct, tag="output"):
    """Relay: output of user code, if a relay reads the streams instead of the host."""

    id: str
    stream: str
    text: str
    seq: int


class Limit(msgspec.Struct, tag="limit"):
    """Relay: the kernel killed a process over this limit since the execution began."""

    what: str = "memory"


class Ended(msgspec.Struct, tag="ended"):
    """Relay, the last message: the worker's exit code, negative for a signal, and the killed processes."""

    exit_code: int
    killed: tuple[str, ...] = ()


class Pong(msgspec.Struct, tag="pong"):
    """Guest: answer to `ping`."""


HostMessage = Hello | Execute | Cancel | File | Stored | Refused | Called | CallFailed | Kill | Ping | Shutdown
GuestMessage = (
    Ready
    | LoadFailed
    | Item
    | Store
    | Part
    | Printed
    | Progress
    | Call
    | Withdraw
    | Result
    | Error
    | Output
    | Limit
    | Ended
    | Pong
)

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[GuestMessage] = msgspec.json.Decoder(GuestMessage)


class ProtocolError(ValueError):
    """The guest sent something that is not a message; the worker cannot be trusted."""


def encode(message: HostMessage) -> bytes:
    """Return the JSON of a host message."""
    return _encoder.encode(message)


def decode(payload: bytes) -> GuestMessage:
    """Return the guest's message. Raises ProtocolError if the payload is not one."""
    try:
        _check_utf8(payload)
        if len(payload) > 2 * MAX_CONTAINERS:
            _check_width(payload)
        return _decoder.decode(payload)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ProtocolError(f"not a guest message: {problem}") from problem


def _check_width(payload: bytes) -> None:
    """Raise ProtocolError for more arrays and objects than a guest sends; those of the message itself are few."""
    most = MAX_CONTAINERS + 16
    if payload.count(b"[") + payload.count(b"{") > most and measure(payload, len(payload), most)[1] > most:
        raise ProtocolError(f"more than {MAX_CONTAINERS:,} arrays and objects in a value")


class InvalidJsonError(ValueError):
    """The bytes are not one strict JSON value; the message has the place, and `path` too if it is known."""

    def __init__(self, why: str, path: str = "$") -> None:
        super().__init__(why)
        self.path = path


def check_json(data: bytes) -> msgspec.Raw:
    """Return `data` as a value for a message, without building Python objects from it.

    Raises InvalidJsonError unless it is exactly one JSON value in UTF-8, nested at most MAX_DEPTH levels, with at most
    MAX_CONTAINERS arrays and objects. A larger text is to be checked in a thread.
    """
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH:
        depth, containers = measure(data, MAX_DEPTH, MAX_CONTAINERS)
        if depth > MAX_DEPTH:
            raise InvalidJsonError("nested too deeply")
        if containers > MAX_CONTAINERS:
            raise InvalidJsonError(f"more than {MAX_CONTAINERS:,} arrays and objects")
    try:
        _check_utf8(data)
        return msgspec.Raw(_raw_decoder.decode(data))
    except (UnicodeDecodeError, RecursionError, msgspec.DecodeError) as problem:
        raise _explained(data, problem) from problem


def _explained(data: bytes, problem: Exception) -> InvalidJsonError:
    """Return why the data is not strict JSON, with the path if that can be found."""
    if data.startswith(_BYTE_ORDER_MARKS):
        return InvalidJsonError("it begins with a byte order mark; send UTF-8 without one")
    if isinstance(problem, UnicodeDecodeError):
        return InvalidJsonError(f"not UTF-8 at byte {problem.start}")
    if isinstance(problem, RecursionError):
        return InvalidJsonError("nested too deeply")
    if len(data) <= _EXPLAINED_BYTES and (found := _only_lenient(data)) is not None:
        path, why = found
        return InvalidJsonError(f"{path}: {why}", path)
    return InvalidJsonError(str(problem))


def _only_lenient(data: bytes) -> tuple[str, str] | None:
    """Return path and reason of the first value that the standard library reads although it is not strict JSON."""
    try:
        value = json.loads(data, parse_constant=_Constant)
    except (ValueError, RecursionError):
        return None
    for path, text in _texts(value):
        if isinstance(text, _Constant):
            return path, f"{text} is not a JSON number; send null or text instead"
        try:
            text.encode()
        except UnicodeEncodeError as lone:
            return path, f"a lone surrogate, \\u{ord(text[lone.start]):x}, which is one half of a character"
    return None


class _Constant(str):
    """A word that is a number for lenient readers: NaN, Infinity or -Infinity."""

    __slots__ = ()


def _texts(value: object) -> Iterator[tuple[str, str]]:
    """Return the path and text of all text in a value; a key has the path of its object."""
    todo = [("$", value)]
    while todo:
        path, node = todo.pop()
        if isinstance(node, str):
            yield path, node
        elif isinstance(node, list):
            todo += [(f"{path}[{index}]"[:_MAX_PATH], item) for index, item in enumerate(node)][::-1]
        elif isinstance(node, dict):
            yield from ((path, key) for key in node)
            todo += [(f"{path}.{key:.{_MAX_PATH}}"[:_MAX_PATH], item) for key, item in node.items()][::-1]


def nesting(data: bytes) -> int:
    """Return the nesting of a JSON text: brackets outside of strings."""
    return measure(data, len(data), len(data))[0]


def _check_utf8(data: bytes) -> None:
    """Raise UnicodeDecodeError for invalid UTF-8; the skipping decoder ignores the bytes inside strings."""
    if not data.isascii():
        data.decode()


_BYTE_ORDER_MARKS: Final = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_MAX_PATH: Final = 200
_EXPLAINED_BYTES: Final = 64 * 1024
"""In larger texts, a fault has the number of its byte: to find its path would hold up the event loop."""
_raw_decoder = msgspec.json.Decoder(msgspec.Raw)
