"""Mistakes in configuration with their place.

A reader raises or collects `Wrong` with the place of the value inside its input; the code that knows the file turns it
into a `Mistake`. All mistakes of one reading are raised together in one `ConfigError`.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any, Final, TypeAlias, TypeVar

import attrs
from attrs import evolve, frozen
from cattrs import Converter
from cattrs.errors import AttributeValidationNote, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

T = TypeVar("T")
Where: TypeAlias = tuple[str | int, ...]
"""The place of a value: keys and positions from the root, `("modules", 0, "timeout")`."""


@frozen
class Mistake:
    """One mistake to correct. `field` is a readable path: `hello-world.timeout` or `modules[0].name`."""

    message: str
    file: str | None
    line: int | None
    """Counted from 1; None if there is no file or no line."""
    field: str
    allowed: str = ""
    """The allowed values alone; the message contains them too."""

    def __str__(self) -> str:
        place = self.file if self.file is None or self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.message) if part)


MOST_MISTAKES: Final = 100
MOST_TEXT: Final = 64 * 1024
"""Characters of all mistakes together."""


class ConfigError(Exception):
    """The mistakes of one reading, in the order of the file: the first ones, and the number of the others."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(_shown(mistakes))
        super().__init__("\n".join(map(str, self.mistakes)))


def _shown(mistakes: Iterable[Mistake]) -> Iterator[Mistake]:
    """Yield mistakes within a bound of lines and text, then one that counts the rest."""
    rest = iter(mistakes)
    room = MOST_TEXT
    for mistake in islice(rest, MOST_MISTAKES):
        text = str(mistake)
        if len(text) > room:
            yield evolve(mistake, message=mistake.message[:room], field=mistake.field[:room], allowed="")
            break
        room -= len(text)
        yield mistake
    if more := sum(1 for _ in rest):
        yield Mistake(f"{more} more mistakes are not shown", None, None, "")


class Wrong(ValueError):  # noqa: N818 - it describes a value; ConfigError is the error
    """One value is wrong; `where` is its place inside the input of the reader that raises this.

    `file` and `line` override the place if the mistake is in another file than the value; `offset` counts lines from
    the first line of a multi-line text.
    """

    def __init__(
        self,
        message: str,
        where: Where = (),
        *,
        allowed: str = "",
        file: str | None = None,
        line: int | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.where = where
        self.allowed = allowed
        self.file = file
        self.line = line
        self.offset = offset

    def under(self, where: Where) -> Wrong:
        """Return the same mistake with its place as seen from the value that contains this one at `where`."""
        return Wrong(
            self.message, where + self.where, allowed=self.allowed, file=self.file, line=self.line, offset=self.offset
        )


def did_you_mean(word: object, options: Iterable[str]) -> str:
    """Return `; did you mean 'warm'?`, or nothing if no option is similar."""
    near = difflib.get_close_matches(str(word).lower(), list(options), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_or_none(read: Callable[[Any], T], value: Any) -> T | None:
    """Return the value as `read` returns it, or None if it is wrong."""
    try:
        return read(value)
    except Wrong:
        return None


def dotted(where: Where) -> str:
    """Return a readable place: `modules[0].retry.on[1]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where).removeprefix(".")


def structure_hook(
    converter: Converter, kind: type, readers: Mapping[str, Callable[[Any], Any]], **special: Any
) -> Callable[[Any, Any], Any]:
    """Return a cattrs hook that makes a `kind` from a mapping, with a reader for each field; see `unfold`.

    `special` are overrides of cattrs for fields without a reader.
    """

    def hook(read: Callable[[Any], Any]) -> Any:
        return override(struct_hook=lambda value, _kind: read(value))

    overrides: dict[str, Any] = {name: hook(read) for name, read in readers.items()} | special
    structure: Callable[[Any, Any], Any] = make_dict_structure_fn(
        kind, converter, _cattrs_forbid_extra_keys=True, **overrides
    )

    def checked(value: Any, _kind: Any) -> Any:
        if not isinstance(value, Mapping):
            raise Wrong("is not a mapping", allowed="a mapping")
        return structure(value, kind)

    return checked


def unfold(error: BaseException, where: Where = ()) -> Iterator[Wrong]:
    """Yield the mistakes in the exception groups of cattrs, each with its place; raise exceptions that are bugs."""
    notes = (note for note in getattr(error, "__notes__", ()) if isinstance(note, AttributeValidationNote))
    where += tuple(note.name for note in notes)
    if isinstance(error, ExceptionGroup):
        for inner in error.exceptions:
            yield from unfold(inner, where)
    elif isinstance(error, ForbiddenExtraKeysError):
        names = [attribute.name for attribute in attrs.fields(error.cl)]
        for name in sorted(map(str, error.extra_fields)):
            yield Wrong(f"unknown field{did_you_mean(name, names)}", (*where, name), allowed=", ".join(names))
    elif isinstance(error, Wrong):
        yield error.under(where)
    elif isinstance(error, KeyError):
        yield Wrong("is missing", where)
    else:
        raise error
