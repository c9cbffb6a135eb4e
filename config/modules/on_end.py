"""The recipients of notices about ended executions: the field `on_end`, its rules, and loops between modules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final
from urllib.parse import urlsplit

from attrs import frozen
from cattrs import Converter
from cattrs.gen import make_dict_unstructure_fn

from config import units
from config.mistakes import Wrong, did_you_mean, structure_hook, unfold
from config.secrets import Secret
from config.shapes import accepting, list_shape, shaped
from config.units import show
from protocol.model import Recipient, Status, Telling

ENDS: Final = tuple(status for status in Status if status.final)
MAX_RECIPIENTS: Final = 4
"""Of one module. They are in the record of each of its executions, which has a place of a fixed size in the journal."""
MAX_URL: Final = 500
_VISIBLE: Final = re.compile(r"[!-~]+")
_URL: Final = "an address such as https://example.org/hooks/runner"
_FORM: Final = "{url: https://..., when: [failed]} or {module: NAME, when: [failed]}"


@frozen
class OnEnd:
    """One recipient of notices: a `url` or a `module`."""

    url: str | None = None
    module: str | None = None
    when: tuple[Status, ...] = ENDS
    """The ends that it hears of."""
    secret: str | None = None
    """The name of the secret of the module that signs notices to a `url`."""


def read(value: Any) -> tuple[OnEnd, ...]:
    """Read a list of recipients; None is the empty list."""
    if value is None:
        return ()
    if not isinstance(value, (list, tuple)):
        raise Wrong(f"{show(value)} is not a list of recipients; write `- {_FORM}`", allowed="a list")
    if len(value) > MAX_RECIPIENTS:
        text = f"has {len(value)} recipients; the limit is {MAX_RECIPIENTS}: let one of them tell the others"
        raise Wrong(text, allowed=f"at most {MAX_RECIPIENTS}")
    found: list[OnEnd] = []
    wrongs: list[Wrong] = []
    for place, written in enumerate(value):
        try:
            found.append(_CONVERTER.structure(written, OnEnd))
        except Exception as problem:  # noqa: BLE001 - cattrs wraps what readers raise in groups; unfold lets bugs through
            wrongs += [wrong.under((place,)) for wrong in unfold(problem)]
    if wrongs:
        raise ExceptionGroup("wrong recipients", wrongs)
    return tuple(found)


def rules(data: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check the written recipients of a module against each other, its name and its secrets."""
    written, secrets = data.get("on_end"), data.get("secrets")
    listed = secrets if isinstance(secrets, (Mapping, list, tuple)) else ()
    declared = [each for each in listed if isinstance(each, str)]
    seen: dict[tuple[str, str], int] = {}
    for place, recipient in enumerate(written if isinstance(written, (list, tuple)) else ()):
        if not isinstance(recipient, Mapping):
            continue
        wrongs = list(_form(recipient, data.get("name"), declared))
        for kind in ("url", "module"):
            if isinstance(name := recipient.get(kind), str):
                first = seen.setdefault((kind, name), place)
                if first != place:
                    wrongs.append(Wrong(f"is given in on_end[{first}] too; join their `when`", (kind,)))
        yield from (wrong.under(("on_end", place)) for wrong in wrongs)


def _form(recipient: Mapping[str, Any], name: Any, declared: list[str]) -> Iterator[Wrong]:
    url, module, secret = (recipient.get(each) for each in ("url", "module", "secret"))
    if (url is None) == (module is None):
        yield Wrong(
            f"{'names no recipient' if url is None else 'names a URL and a module'}; write {_FORM}", allowed=_FORM
        )
    if module is not None and module == name:
        text = "a module cannot tell itself: each notice would be the cause of the next one; name another module"
        yield Wrong(text, ("module",), allowed="another module")
    if secret is not None and url is None:
        yield Wrong("signs notices to a URL; a module needs none, remove it", ("secret",))
    elif isinstance(secret, str) and secret not in declared:
        near = difflib.get_close_matches(secret, declared, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else f"; add it: `secrets: [{secret}]`"
        yield Wrong(f"{show(secret)} is not in `secrets` of the module{hint}", ("secret",), allowed=", ".join(declared))


def loop_from(name: str, told: Callable[[str], Iterable[OnEnd]]) -> tuple[str, ...]:
    """Return a way from a module over the modules that its notices reach back to itself, () without one."""
    ways: list[tuple[str, ...]] = [(name,)]
    seen: set[str] = set()
    while ways:
        way = ways.pop()
        for each in told(way[-1]):
            if each.module == name:
                return (*way, name)
            if each.module is not None and each.module not in seen:
                seen.add(each.module)
                ways.append((*way, each.module))
    return ()


def loop_text(way: tuple[str, ...]) -> str:
    """Return the mistake that modules tell each other in a circle."""
    shown = " tells ".join(way if len(way) <= 8 else (*way[:6], "...", way[-1]))
    return f"is a loop: {shown}; each notice would be the cause of another one, remove one of these"


def telling(on_end: Iterable[OnEnd], secrets: Mapping[str, Secret]) -> Telling:
    """Return the recipients as the record of an execution has them: with the sources of secrets, not the values."""
    return Telling(
        tuple(
            Recipient(
                when=each.when,
                url=each.url,
                module=each.module,
                secret=None if each.secret is None else secrets[each.secret].mapping(),
            )
            for each in on_end
        )
    )


def origin_of(url: str) -> str:
    """Return where a URL leads, without path and query, which can be secrets."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.lower()}"


@accepting({"type": "string", "pattern": "^\\s*https?://"})
def _url(value: Any) -> str:
    url = units.filled(value).strip()
    if len(url) > MAX_URL:
        raise Wrong(f"has {len(url)} characters; the limit is {MAX_URL}", allowed=f"at most {MAX_URL} characters")
    try:
        parts = urlsplit(url)
        _ = parts.port
        whole = bool(_VISIBLE.fullmatch(url)) and parts.scheme in ("http", "https") and bool(parts.hostname)
    except ValueError:
        whole = False
    if not whole:
        raise Wrong(f"{show(value)} is not a URL of http or https: write {_URL}", allowed=_URL)
    if parts.username is not None or parts.password is not None:
        raise Wrong("has a user or a password; let the receiver check signatures instead: `secret`", allowed=_URL)
    if parts.fragment:
        raise Wrong("has a part after `#`, which is never sent; remove it", allowed=_URL)
    return url


@accepting({"anyOf": [{"enum": [*ENDS]}, {"type": "array", "items": {"enum": [*ENDS]}}]})
def _when(value: Any) -> tuple[Status, ...]:
    if isinstance(value, (list, tuple)) and len(value) > len(ENDS):
        raise Wrong(f"has {len(value)} entries; there are {len(ENDS)} ends", allowed=", ".join(ENDS))
    found = units.items(_end)([value] if isinstance(value, str) else value)
    if not found:
        raise Wrong(f"is empty; name ends: {', '.join(ENDS)}", allowed=", ".join(ENDS))
    return tuple(dict.fromkeys(found))


def _end(value: Any) -> Status:
    if value not in ENDS:
        hint = did_you_mean(value, ENDS)
        raise Wrong(f"{show(value)} is not an end of an execution{hint}", allowed=", ".join(ENDS))
    return Status(value)


def register(converter: Converter) -> None:
    """Let a converter write recipients as `read` reads them."""
    converter.register_unstructure_hook(OnEnd, make_dict_unstructure_fn(OnEnd, converter, _cattrs_omit_if_default=True))


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "url": units.optional(_url),
    "module": units.optional(units.module_name),
    "when": _when,
    "secret": units.optional(units.variable_name),
}


def _converter() -> Converter:
    converter = Converter()
    converter.register_structure_hook(OnEnd, structure_hook(converter, OnEnd, _READERS))
    return converter


_CONVERTER: Final = _converter()
shaped(read, lambda: list_shape(OnEnd, {OnEnd: _READERS}, MAX_RECIPIENTS))
