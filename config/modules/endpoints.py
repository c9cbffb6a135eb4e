"""Endpoints of modules: their fields, the rules between these, and conflicts between their paths."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator, Mapping
from enum import StrEnum
from typing import Any, Final, TypeVar

from attrs import frozen
from cattrs import Converter
from cattrs.gen import make_dict_unstructure_fn, override

from config import units
from config.mistakes import Wrong, structure_hook, unfold
from config.paths import PathTree
from config.shapes import Values, accepting, list_shape, shaped
from config.units import Range, show

T = TypeVar("T")

PREFIX: Final = "/http"
"""The path of the server below which endpoints are served."""
MAX_ENDPOINTS: Final = 100
"""Endpoints of one module."""
_MAX_PATH: Final = 255
_MAX_SEGMENTS: Final = 16
_MAX_SECRETS: Final = 4
TOLERANCE_SECONDS: Final = 300.0
"""How far the time of a signature may be from now, in both directions, by default."""


class Auth(StrEnum):
    """How the caller of an endpoint shows that it may call."""

    TOKEN = "token"  # noqa: S105 - a word, not one
    """By a token, or a key, with the scope `executions:run`."""
    KEY = "key"
    """By a key only."""
    SIGNATURE = "signature"
    """By a signature of the body with a secret of the module."""
    NONE = "none"
    """Not at all: every client that reaches the server may call."""


class Method(StrEnum):
    """The methods of endpoints. HEAD is served with GET, OPTIONS always."""

    GET = "GET"
    POST = "POST"
    PUT = "PUT"
    PATCH = "PATCH"
    DELETE = "DELETE"


class Scheme(StrEnum):
    """Signatures as their senders document them."""

    GITHUB = "github"
    STRIPE = "stripe"
    SLACK = "slack"
    STANDARD = "standard"
    """Standard Webhooks."""


class Algorithm(StrEnum):
    """The algorithms of a signature in a header of any name."""

    SHA256 = "hmac-sha256"
    SHA1 = "hmac-sha1"
    SHA512 = "hmac-sha512"


class Encoding(StrEnum):
    """How the bytes of a signature are written."""

    HEX = "hex"
    BASE64 = "base64"


@frozen
class Signature:
    """How requests are signed: by a `scheme`, or in a `header` by an `algorithm` over the body."""

    secret: tuple[str, ...]
    """Names of secrets of the module; a signature by any of them is right, so that a secret can be replaced."""
    scheme: Scheme | None = None
    header: str | None = None
    algorithm: Algorithm | None = None
    encoding: Encoding = Encoding.HEX
    prefix: str = ""
    """The text before the signature in the header."""
    tolerance: float | None = None
    """Seconds between the time that is signed and now, of schemes that sign one; None means the default."""


@frozen
class EndpointSpec:
    """One route of a module, below `PREFIX`."""

    path: str
    """With names in braces, `/github/{event}`; the last one may stand for many segments, `{rest...}`."""
    methods: tuple[Method, ...] = (Method.POST,)
    auth: Auth = Auth.TOKEN
    signature: Signature | None = None
    wait: bool = True
    """False: the request is accepted and answered at once, and runs as an asynchronous execution."""


def read(value: Any) -> tuple[EndpointSpec, ...]:
    """Read a list of endpoints; None is the empty list."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise Wrong(f"{show(value)} is not a list of endpoints; write `- path: /NAME`", allowed="a list")
    found: list[EndpointSpec] = []
    wrongs: list[Wrong] = []
    for place, written in enumerate(value):
        try:
            found.append(_CONVERTER.structure(written, EndpointSpec))
        except Exception as problem:  # noqa: BLE001 - cattrs wraps what readers raise in groups; unfold lets bugs through
            wrongs += [wrong.under((place,)) for wrong in unfold(problem)]
    wrongs = wrongs or list(_repeated(found))
    if wrongs:
        raise ExceptionGroup("wrong endpoints", wrongs)
    return tuple(found)


def _repeated(endpoints: list[EndpointSpec]) -> Iterator[Wrong]:
    """Check the endpoints of one module against each other."""
    tree: PathTree[EndpointSpec] = PathTree()
    for place, endpoint in enumerate(endpoints):
        other = next(clashes(tree, endpoint, lambda each: each), None)
        if other is not None:
            text = f"{endpoint.path} conflicts with {other.path} above: a request could mean both"
            yield Wrong(f"{text}; change a path or a method", (place, "path"))
        tree.add(endpoint.path, endpoint)


def rules(data: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check the written endpoints of a module against each other, their signatures and the module's secrets."""
    written = data.get("endpoints")
    secrets = data.get("secrets")
    declared = list(secrets) if isinstance(secrets, (Mapping, list, tuple)) else []
    for place, endpoint in enumerate(written if isinstance(written, (list, tuple)) else ()):
        if isinstance(endpoint, Mapping):
            wrongs = list(_auth_rules(endpoint))
            if isinstance(signature := endpoint.get("signature"), Mapping):
                found = (*_form(signature), *_declared(signature, declared))
                wrongs += [wrong.under(("signature",)) for wrong in found]
            yield from (wrong.under(("endpoints", place)) for wrong in wrongs)


def _auth_rules(endpoint: Mapping[str, Any]) -> Iterator[Wrong]:
    signed, signature = endpoint.get("auth") == Auth.SIGNATURE, endpoint.get("signature")
    if signed and signature is None:
        allowed = "{scheme: github, secret: NAME}"
        yield Wrong(f"is missing; `auth: signature` needs one, such as {allowed}", ("signature",), allowed=allowed)
    elif signature is not None and not signed:
        yield Wrong("is checked only with `auth: signature`; write that, or remove it", ("signature",))


def _form(signature: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check that a signature has a scheme or a header, and nothing that its form does not have."""
    scheme = signature.get("scheme")
    if scheme is None:
        if signature.get("header") is None:
            names = ", ".join(Scheme)
            yield Wrong(f"needs `scheme` ({names}), or `header` and `algorithm`", allowed=f"scheme: {names}")
        elif signature.get("algorithm") is None:
            names = ", ".join(Algorithm)
            yield Wrong(f"is missing; with `header` it is one of {names}", ("algorithm",), allowed=names)
        if signature.get("tolerance") is not None:
            text = "a signature in a header has no time; remove it, or use a scheme that has one"
            yield Wrong(text, ("tolerance",), allowed="stripe, slack, standard")
        return
    for name in ("header", "algorithm", "encoding", "prefix"):
        if signature.get(name) is not None:
            yield Wrong(f"is fixed by `scheme: {scheme}`; remove one of the two", (name,))
    if scheme == Scheme.GITHUB and signature.get("tolerance") is not None:
        yield Wrong("signatures of github have no time; remove it", ("tolerance",), allowed="stripe, slack, standard")


def _declared(signature: Mapping[str, Any], declared: list[Any]) -> Iterator[Wrong]:
    written = signature.get("secret")
    names = enumerate(written) if isinstance(written, (list, tuple)) else ((None, written),)
    for place, name in names:
        if isinstance(name, str) and name not in declared:
            where = ("secret",) if place is None else ("secret", place)
            known = [each for each in declared if isinstance(each, str)]
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; add it: `secrets: [{name}]`"
            yield Wrong(f"{show(name)} is not in `secrets` of the module{hint}", where, allowed=", ".join(known))


def clashes(tree: PathTree[T], endpoint: EndpointSpec, of: Callable[[T], EndpointSpec]) -> Iterator[T]:
    """Yield the values of a tree whose endpoint, `of` it, conflicts with this one: one request could mean both.

    Such endpoints have a method in common, and each segment is equal in both, or a name in one of them.
    """
    methods = set(endpoint.methods)
    return (each for each in tree.overlapping(endpoint.path) if methods & set(of(each).methods))


def conflict_text(endpoint: EndpointSpec, module: str | None, other: EndpointSpec) -> str:
    """Return the mistake that an endpoint conflicts with one of another module, whose name may be left out."""
    ours, theirs = (f"{', '.join(each.methods)} {each.path}" for each in (endpoint, other))
    shown = "an endpoint of another module" if module is None else f"{theirs} of module {module!r}"
    return f"{ours} conflicts with {shown}: a request could mean both; change a path or a method"


@accepting({"type": "string", "pattern": "^/"})
def _path(value: Any) -> str:
    path = units.filled(value)
    if not path.startswith("/"):
        raise Wrong(f"{show(path)} does not begin with a slash; write {show('/' + path)}", allowed=_PATHS)
    segments = path.split("/")[1:]
    if len(path) > _MAX_PATH or len(segments) > _MAX_SEGMENTS:
        most = f"{_MAX_PATH} characters and {_MAX_SEGMENTS} segments"
        raise Wrong(f"{show(path)} is too long; a path has at most {most}", allowed=f"at most {most}")
    names = []
    for place, segment in enumerate(segments):
        if not _WORD.fullmatch(segment) or segment in (".", ".."):
            named = _NAME.fullmatch(segment)
            if named is None:
                why = "is empty" if not segment else f"{show(segment)} is not one"
                raise Wrong(f"a segment of {show(path)} {why}; a segment is {_SEGMENTS}", allowed=_PATHS)
            if named[2] and place < len(segments) - 1:
                raise Wrong(f"{segment} in {show(path)} stands for all that follows; write it last", allowed=_PATHS)
            names.append(named[1])
    if len(set(names)) < len(names):
        raise Wrong(f"{show(path)} has a name twice; give each segment its own", allowed=_PATHS)
    return path


@accepting({"anyOf": [{"enum": [*Method]}, {"type": "array", "items": {"enum": [*Method]}}, {"type": "null"}]})
def _methods(value: Any) -> tuple[Method, ...]:
    found = units.items(_method)([value] if isinstance(value, str) else value)
    if not found:
        raise Wrong("is empty; name a method", allowed=", ".join(Method))
    return tuple(dict.fromkeys(found))


def _method(value: Any) -> Method:
    return units.one_of(Method)(value.upper() if isinstance(value, str) else value)


@accepting({"anyOf": [Values.VARIABLE_NAME, {"type": "array", "items": Values.VARIABLE_NAME}]})
def _secret(value: Any) -> tuple[str, ...]:
    names = units.items(units.variable_name)([value] if isinstance(value, str) else value)
    if not 1 <= len(names) <= _MAX_SECRETS:
        allowed = f"the name of a secret of the module, or a list of at most {_MAX_SECRETS}"
        raise Wrong(f"names {len(names)} secrets; write {allowed}", allowed=allowed)
    return tuple(dict.fromkeys(names))


_WORD: Final = re.compile(r"[A-Za-z0-9._~-]+")
_NAME: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]{0,63})(\.\.\.)?\}")
_SEGMENTS: Final = "letters, digits, `.`, `_`, `~` and `-`, or one name in braces"
_PATHS: Final = "a path such as /github/{event} or /files/{rest...}"
_READERS: Final[Mapping[type, Mapping[str, Callable[[Any], Any]]]] = {
    Signature: {
        "secret": _secret,
        "scheme": units.optional(units.one_of(Scheme)),
        "header": units.optional(units.matching(r"[A-Za-z0-9-]{1,100}", "the name of a header")),
        "algorithm": units.optional(units.one_of(Algorithm)),
        "encoding": units.one_of(Encoding),
        "prefix": units.matching(r"[!-~]{0,32}", "up to 32 visible characters"),
        "tolerance": units.optional(units.seconds(Range(above=0, high=86400))),
    },
    EndpointSpec: {
        "path": _path,
        "methods": _methods,
        "auth": units.one_of(Auth),
        "wait": units.flag,
    },
}


def register(converter: Converter) -> None:
    """Let a converter write endpoints as `read` reads them: without fields that a form of signature does not have."""
    absent = override(omit_if_default=True)
    signature = make_dict_unstructure_fn(Signature, converter, _cattrs_omit_if_default=True)
    converter.register_unstructure_hook(Signature, signature)
    converter.register_unstructure_hook(
        EndpointSpec, make_dict_unstructure_fn(EndpointSpec, converter, signature=absent)
    )


def _converter() -> Converter:
    converter = Converter()
    for kind, readers in _READERS.items():
        converter.register_structure_hook(kind, structure_hook(converter, kind, readers))
    return converter


_CONVERTER: Final = _converter()
shaped(read, lambda: list_shape(EndpointSpec, _READERS, MAX_ENDPOINTS))
