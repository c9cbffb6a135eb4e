"""The body of a call as the input of its handler: JSON, a form, or bytes where the handler takes them."""

from __future__ import annotations

import mimetypes
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Final, Protocol

import msgspec
import trio
from attrs import evolve, frozen

from actors.files import Writing
from actors.registry import Published
from protocol.errors import ErrorKind, Failure, RunnerError, error
from protocol.messages import InvalidJsonError, check_json
from runner.api import Service
from runner.auth import Principal
from runner.inputs.fields import Fields, Schema, Value
from runner.inputs.forms import Check, is_json, read_form, read_raw, read_urlencoded, text_in
from runner.inputs.part import FORM, Piece

JSON: Final = "application/json"
URLENCODED: Final = "application/x-www-form-urlencoded"
_TEXT: Final = "text/plain"
_UNKNOWN: Final = "application/octet-stream"
ANY: Final = "*/*"
_ANY_FIELDS: Final = Fields(None, lists=True)


class Body(Protocol):
    """The body of a request."""

    def stream_body(self) -> None:
        """Accept a body of any length."""

    async def body(self) -> bytes:
        """Return the whole body, of at most `max_frame` bytes."""

    async def piece(self) -> tuple[bytes, bool]:
        """Return the next bytes of a streamed body, and whether more follow."""


@frozen
class WholeBody:
    """A body that has arrived as a whole."""

    data: bytes

    def stream_body(self) -> None:
        """Do nothing: its length is known."""

    async def body(self) -> bytes:
        """Return the body."""
        return self.data

    async def piece(self) -> tuple[bytes, bool]:
        """Return the body, after which no more follows."""
        return self.data, False


@frozen
class UnsupportedType(Failure):
    """A body has a type that the handler does not take; answered 415."""

    types: tuple[str, ...] = ()
    """The types that it takes."""


def media_types(schema: Schema | None) -> tuple[str, ...]:
    """Return the types of bodies that an input of this schema may be sent as; `*/*` is any other type."""
    fields = Fields(schema)
    return (JSON, *((FORM, URLENCODED) if fields.taken else ()), *((ANY,) if fields.raw else ()))


async def read_input(body: Body, given: str, service: Service, principal: Principal, module: Published) -> bytes:
    """Return a body of the content type `given` as JSON; its files are in the store.

    The caller has the scope for executing the module. Raises RunnerError: `UnsupportedType`, `bad_input` with the field
    at fault, `too_large`, `out_of_storage`, `unavailable`; then nothing is stored.
    """
    kind = given.partition(";")[0].strip().lower()
    if kind in ("", JSON) or kind.endswith("+json"):
        return await body.body()
    return await _Reading(body, given, kind, service, principal, module).read()


@frozen
class _Reading:
    """One body that is no JSON."""

    body: Body
    given: str
    kind: str
    service: Service
    principal: Principal
    module: Published

    async def read(self) -> bytes:
        """Return the body as JSON."""
        fields = Fields(self.module.input_schema)
        if fields.request:
            return await self._request()
        if self.kind == FORM and fields.taken:
            return await self._form(fields)
        if self.kind == URLENCODED and fields.taken:
            return await self.service.checks.whole(partial(_urlencoded, fields=fields), await self.body.body())
        if self.kind == URLENCODED and fields.raw:  # as curl names the type of anything
            data = await self.body.body()
            return data if await self.service.checks.whole(_is_valid, data) else await self._whole(data).read()
        if fields.raw and self.kind != FORM:
            return await self._encoded(await self._raw(inline=not fields.root.file))
        if self.kind in (URLENCODED, _TEXT):  # as some clients send JSON
            return await self.body.body()
        types = media_types(self.module.input_schema)
        text = f"the module {self.module.ref.name} takes no {self.kind!r:.80}; send one of"
        shown = ", ".join("any other type as it is" if each == ANY else each for each in types)
        raise RunnerError(UnsupportedType(ErrorKind.BAD_INPUT, f"{text} {shown}", field="content-type", types=types))

    def _whole(self, data: bytes) -> _Reading:
        """Return the reading of a body of an unknown type that has arrived."""
        return evolve(self, body=WholeBody(data), given="", kind=_UNKNOWN)

    async def _form(self, fields: Fields) -> bytes:
        async def check(value: dict[str, Value]) -> None:
            await self.service.checks.input(self.module, await self._encoded(value))

        return await self._encoded(await self._parts(fields, check))

    async def _parts(self, fields: Fields, check: Check | None = None) -> dict[str, Value]:
        self.body.stream_body()
        service = self.service
        return await read_form(
            self.given,
            self._piece(),
            fields,
            self._store,
            budget=service.budget,
            limit=service.settings.server.max_frame_bytes,
            checks=service.checks,
            check=check,
        )

    async def _request(self) -> bytes:
        """Return the input of a handler that takes a request: its body, its type, and its fields if it is a form."""
        form: dict[str, Any] = {}
        if self.kind == FORM:
            body, form = None, {"form": await self._parts(_ANY_FIELDS)}
        elif self.kind == URLENCODED:
            data = await self.body.body()
            body = data.decode("utf-8", "replace")
            form = {"form": await self.service.checks.whole(partial(read_urlencoded, fields=_ANY_FIELDS), data)}
        else:
            body = await self._raw(inline=False)
        path = f"/modules/execute/{self.module.ref.name}"
        request = {"method": "POST", "path": path, "headers": [["content-type", self.given]], "body": body, **form}
        return await self._encoded({"$request": {"params": {}, "query": [], "client": "", **request}})

    async def _encoded(self, value: Value) -> bytes:
        return await self.service.checks.sized(_size_of(value), partial(_encoded, value))

    async def _raw(self, *, inline: bool) -> Value:
        """Return the body as a string or as a file: a short text, or with `inline` any text, is a string."""
        if inline:
            data = await self.body.body()
            text = await self.service.checks.whole(text_in, data)
            if text is None:
                raise error(ErrorKind.BAD_INPUT, "the body is not UTF-8, and the module takes text", field="$")
            return text
        self.body.stream_body()
        begin = partial(self._store, f"body{mimetypes.guess_extension(self.kind) or ''}", self.given)
        return await read_raw(self._piece(), begin, self.service.budget)

    def _store(self, name: str, media_type: str) -> AbstractAsyncContextManager[Writing]:
        return self.service.files.writing(name, media_type, subject=self.principal.subject)

    def _piece(self) -> Piece:
        """Return the reader of the body, which waits for `body_timeout` at most."""
        seconds = self.service.settings.server.body_timeout_seconds

        async def piece() -> tuple[bytes, bool]:
            with trio.move_on_after(seconds):
                return await self.body.piece()
            text = f"no part of the body arrived for {seconds:g} s; the limit is `body_timeout`"
            raise error(ErrorKind.BAD_INPUT, text, field="$")

        return piece


def _urlencoded(data: bytes, fields: Fields) -> bytes:
    if is_json(data):
        return data
    return _encoded(read_urlencoded(data, fields))


def _is_valid(data: bytes) -> bool:
    try:
        check_json(data or b"null")
    except InvalidJsonError:
        return False
    return True


def _size_of(value: Value) -> int:
    """Return about the bytes of the texts in an input."""
    if isinstance(value, dict):
        return sum(map(_size_of, value.values()))
    if isinstance(value, list):
        return sum(map(_size_of, value))
    return len(value) if isinstance(value, str) else memoryview(value).nbytes if isinstance(value, msgspec.Raw) else 0


def _encoded(value: Any) -> bytes:
    return msgspec.json.encode(value)
