"""Signatures of requests to endpoints, as their senders document them. Pure, except that long bodies take time.

Comparisons take the same time for each wrong signature. A signature by any of several secrets is right.
"""

from __future__ import annotations

import base64
import binascii
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from enum import StrEnum
from typing import Final

import msgspec
from attrs import frozen

from config.modules import TOLERANCE_SECONDS, Algorithm, Encoding, Scheme, Signature
from config.units import decimal
from protocol.errors import ErrorKind, error

Fields = Mapping[bytes, bytes]


class Refusal(StrEnum):
    """Why a request is refused."""

    MISSING = "missing"
    WRONG = "wrong"
    OLD = "old"
    """The time that is signed is too far from now."""


@frozen
class Checked:
    """The outcome of a check: the refusal, or None and the id of the message, if its sender gives one."""

    refusal: Refusal | None = None
    delivery: str | None = None


@frozen
class _Signed:
    """What a request shows: the signatures, and the bytes that were signed."""

    given: Sequence[bytes]
    """Digests."""
    content: bytes
    time: int | None = None
    """Seconds since the epoch."""


def check(signature: Signature, secrets: Iterable[str], fields: Fields, body: bytes, now: float) -> Checked:
    """Return whether a request has a right signature, by headers and the body as it was sent.

    Raises RunnerError `unavailable` for a secret that cannot be used.
    """
    read = _READERS.get(signature.scheme) if signature.scheme is not None else None
    signed = _header(signature, fields, body) if read is None else read(fields, body)
    if signed is None:
        return Checked(Refusal.MISSING)
    algorithm = _DIGESTS[signature.algorithm or Algorithm.SHA256]
    read_key = _standard_key if signature.scheme is Scheme.STANDARD else _plain_key
    keys = [read_key(secret) for secret in secrets]
    right = [hmac.digest(key, signed.content, algorithm) for key in keys]
    if not _any_equal(signed.given, right):
        return Checked(Refusal.WRONG)
    tolerance = TOLERANCE_SECONDS if signature.tolerance is None else signature.tolerance
    if signed.time is not None and abs(now - signed.time) > tolerance:
        return Checked(Refusal.OLD)
    find = _DELIVERIES.get(signature.scheme) if signature.scheme is not None else None
    return Checked(delivery=None if find is None else find(fields, body))


def _any_equal(given: Sequence[bytes], right: Sequence[bytes]) -> bool:
    """Compare all, so that the time tells nothing about which one is equal."""
    found = [hmac.compare_digest(one, other) for one in given for other in right]
    return any(found)


# What is signed


def _github(fields: Fields, body: bytes) -> _Signed | None:
    return _plain(fields.get(b"x-hub-signature-256"), b"sha256=", _hex, body)


def _header(signature: Signature, fields: Fields, body: bytes) -> _Signed | None:
    given = fields.get((signature.header or "").lower().encode())
    decode = _hex if signature.encoding is Encoding.HEX else _base64
    return _plain(given, signature.prefix.encode(), decode, body)


def _plain(given: bytes | None, prefix: bytes, decode: Callable[[bytes], bytes], body: bytes) -> _Signed | None:
    if given is None:
        return None
    given = given.strip()
    return _Signed([decode(given.removeprefix(prefix))] if given.startswith(prefix) else [], body)


def _stripe(fields: Fields, body: bytes) -> _Signed | None:
    given = fields.get(b"stripe-signature")
    if given is None:
        return None
    parts = [part.strip().partition(b"=") for part in given.split(b",", _MAX_PARTS)]
    times = [value for name, _, value in parts if name == b"t"]
    time = _time(times[0]) if len(times) == 1 else None
    if time is None:
        return _Signed([], b"")
    return _Signed([_hex(value) for name, _, value in parts if name == b"v1"], b"%b.%b" % (times[0], body), time)


def _slack(fields: Fields, body: bytes) -> _Signed | None:
    given, written = fields.get(b"x-slack-signature"), fields.get(b"x-slack-request-timestamp")
    if given is None or written is None:
        return None
    time = _time(written)
    if time is None or not given.startswith(b"v0="):
        return _Signed([], b"")
    return _Signed([_hex(given.removeprefix(b"v0="))], b"v0:%b:%b" % (written, body), time)


def _standard(fields: Fields, body: bytes) -> _Signed | None:
    name, written, given = (fields.get(b"webhook-" + each) for each in (b"id", b"timestamp", b"signature"))
    if name is None or written is None or given is None:
        return None
    time = _time(written)
    if time is None:
        return _Signed([], b"")
    parts = [part.partition(b",") for part in given.split(b" ", _MAX_PARTS)]
    signatures = [_base64(value) for version, _, value in parts if version == b"v1"]
    return _Signed(signatures, b"%b.%b.%b" % (name, written, body), time)


_MAX_PARTS: Final = 20
"""Signatures in a header that are read."""


def _hex(text: bytes) -> bytes:
    """Return the bytes of a digest; none for what is not one, which equals no digest."""
    try:
        return binascii.unhexlify(text)
    except ValueError:
        return b""


def _base64(text: bytes) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def _time(text: bytes) -> int | None:
    return decimal(text.decode("latin-1"))


def _plain_key(secret: str) -> bytes:
    """Return the key of a secret. Everybody could sign by an empty one, as a variable without a value gives it."""
    if not secret:
        raise error(ErrorKind.UNAVAILABLE, "a secret of this endpoint is empty; set its value", field="secrets")
    return secret.encode()


def _standard_key(secret: str) -> bytes:
    """Return the key that a secret of Standard Webhooks writes in base64."""
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not key:
        text = "a secret of this endpoint is not base64, after `whsec_`, as Standard Webhooks needs it"
        raise error(ErrorKind.UNAVAILABLE, text, field="secrets")
    return key


# Ids of messages


class _Message(msgspec.Struct):
    """The ids that senders write into their messages."""

    id: str | None = None
    event_id: str | None = None


_messages: Final = msgspec.json.Decoder(_Message)


def _message(body: bytes) -> _Message:
    try:
        return _messages.decode(body)
    except (msgspec.DecodeError, RecursionError):
        return _Message()


def _field(name: bytes) -> Callable[[Fields, bytes], str | None]:
    def find(fields: Fields, body: bytes) -> str | None:
        del body
        found = fields.get(name)
        return None if found is None else found.decode("latin-1")

    return find


_READERS: Final[Mapping[Scheme, Callable[[Fields, bytes], _Signed | None]]] = {
    Scheme.GITHUB: _github,
    Scheme.STRIPE: _stripe,
    Scheme.SLACK: _slack,
    Scheme.STANDARD: _standard,
}
_DELIVERIES: Final[Mapping[Scheme, Callable[[Fields, bytes], str | None]]] = {
    Scheme.GITHUB: _field(b"x-github-delivery"),
    Scheme.STRIPE: lambda _fields, body: _message(body).id,
    Scheme.SLACK: lambda _fields, body: _message(body).event_id,
    Scheme.STANDARD: _field(b"webhook-id"),
}
_DIGESTS: Final = {Algorithm.SHA256: "sha256", Algorithm.SHA1: "sha1", Algorithm.SHA512: "sha512"}
