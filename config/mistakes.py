"""Mistakes in configuration with their place, and YAML that knows the line of each value.

A reader raises or collects `Wrong` with the place of the value inside its input; the code that knows the file turns it
into a `Mistake`. All mistakes of one reading are raised together in one `ConfigError`.
"""

from __future__ import annotations

import difflib
import math
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

import attrs
import yaml
from attrs import field, frozen
from cattrs import Converter
from cattrs.errors import AttributeValidationNote, ForbiddenExtraKeysError
from cattrs.gen import make_dict_structure_fn, override

T = TypeVar("T")
Where: TypeAlias = tuple[str | int, ...]
"""The place of a value: keys and positions from the root, `("modules", 0, "timeout")`."""

ABSENT = "does not exist"
"""The message about a file that is not there."""
MAX_BYTES = 16 * 1024 * 1024
"""Size of one file."""
MAX_REPEATED = 100_000
"""Values that aliases may repeat in one file; aliases of aliases grow exponentially."""
MAX_DEPTH = 64
"""Levels of nesting in one file; an alias to its own parent is infinitely deep."""

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset(_TAG + name for name in ("str", "timestamp", "value", "merge"))
_PARSED_TAGS = frozenset(_TAG + name for name in ("int", "float", "bool", "null"))


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


class ConfigError(Exception):
    """All mistakes of one reading, in the order of the file."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


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
    converter: Converter, kind: type, readers: Mapping[str, Callable[[Any], Any]]
) -> Callable[[Any, Any], Any]:
    """Return a cattrs hook that makes a `kind` from a mapping, with a reader for each field; see `unfold`."""

    def hook(read: Callable[[Any], Any]) -> Any:
        return override(struct_hook=lambda value, _kind: read(value))

    overrides: dict[str, Any] = {name: hook(read) for name, read in readers.items()}
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


@frozen
class Document:
    """One YAML file as plain values, with the line of each value, counted from 1."""

    value: Any
    lines: Mapping[Where, int] = field(factory=dict)
    texts: Mapping[Where, str] = field(factory=dict)
    """Values that YAML parses as numbers, booleans or dates, as they were written: `3.10`, `yes`."""
    blocks: Mapping[Where, int] = field(factory=dict)
    """The first line of the content of each literal block (`|`)."""
    wrongs: tuple[Wrong, ...] = ()

    def written(self, where: Where, value: Any) -> Any:
        """Return the written text of a number or boolean: `python: 3.10` is not 3.1, `DEBUG: yes` is not True.

        Other values, NaN and infinities included, are returned unchanged.
        """
        finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        return self.texts.get(where, value) if finite else value

    def mistake(self, wrong: Wrong, file: str, labels: Mapping[Where, Where]) -> Mistake:
        """Return the mistake with file and line; `labels` are readable names for places two steps from the root."""
        place = labels.get(wrong.where[:2], wrong.where[:2]) + wrong.where[2:]
        return Mistake(wrong.message, wrong.file or file, self.line(wrong), dotted(place), wrong.allowed)

    def line(self, wrong: Wrong) -> int | None:
        """Return the line of the value; for a missing value, that of the nearest value around it."""
        if wrong.line is not None or wrong.file is not None:
            return wrong.line
        if wrong.offset is not None and wrong.where in self.blocks:
            return self.blocks[wrong.where] + wrong.offset
        around = (wrong.where[:length] for length in range(len(wrong.where), -1, -1))
        return next((self.lines[where] for where in around if where in self.lines), None)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises `Wrong` if it cannot be read."""
    if "\0" in str(path):
        raise Wrong("is not a file name: it contains a null character")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise Wrong("is not a regular file; devices and pipes cannot be reloaded")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise Wrong(ABSENT) from None
    except OSError as error:
        raise Wrong(f"cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise Wrong(f"is over {MAX_BYTES} bytes; keep code in separate files and name them with `path`")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Wrong(f"is not UTF-8 text: {error.reason} at byte {error.start}", line=line) from None


def parse_yaml(text: str) -> Document:
    """Return the only document of `text`, with its mistakes as far as reading can continue.

    Raises `Wrong` if the text is not one YAML document.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        if root is None:
            raise Wrong("is empty; write `modules: []` for a file without modules")
        reader = _Reader()
        value = reader.read(root, ())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        why = ": ".join(part for part in (error.context, error.problem) if part)
        column = "" if mark is None else f" (column {mark.column + 1})"
        raise Wrong(f"is not valid YAML: {why}{column}", line=None if mark is None else mark.line + 1) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - before.rfind("\n")
        message = f"is not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed (column {column})"
        raise Wrong(message, line=before.count("\n") + 1) from None
    except RecursionError:
        raise Wrong("is nested too deeply") from None
    return Document(value, reader.lines, reader.texts, reader.blocks, tuple(reader.wrongs))


class _Reader:
    """Turns YAML nodes into dicts with text keys, lists and scalars, and records the line of each."""

    def __init__(self) -> None:
        self.lines: dict[Where, int] = {}
        self.texts: dict[Where, str] = {}
        self.blocks: dict[Where, int] = {}
        self.wrongs: list[Wrong] = []
        self._scalars = yaml.constructor.SafeConstructor()
        self._met: set[int] = set()
        self._repeated = 0

    def read(self, node: yaml.Node, where: Where) -> Any:
        """Return the value of `node` at `where`. Raises `Wrong` if a limit is exceeded."""
        self._spend(node)
        if len(where) > MAX_DEPTH:
            raise Wrong(f"is nested more than {MAX_DEPTH} levels deep, or contains itself", line=_line(node))
        self.lines.setdefault(where, _line(node))
        if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
            value: dict[str, Any] = {}
            for key, (key_node, value_node) in self._entries(node, where).items():
                self.lines[(*where, key)] = _line(key_node)
                value[key] = self.read(value_node, (*where, key))
            return value
        if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
            return [self.read(item, (*where, index)) for index, item in enumerate(node.value)]
        if isinstance(node, yaml.ScalarNode):
            return self._scalar(node, where)
        return self._unknown(node, where)

    def _spend(self, node: yaml.Node) -> None:
        if id(node) not in self._met:
            self._met.add(id(node))
            return
        self._repeated += 1
        if self._repeated > MAX_REPEATED:
            raise Wrong(f"repeats more than {MAX_REPEATED} values through aliases", line=_line(node))

    def _scalar(self, node: yaml.ScalarNode, where: Where) -> Any:
        if node.style == "|":
            self.blocks[where] = _line(node) + 1
        if node.tag in _TEXT_TAGS:
            value: Any = node.value
        elif node.tag in _PARSED_TAGS:
            try:
                value = self._scalars.construct_object(node)
            except (ValueError, LookupError):
                self.wrongs.append(Wrong(f"{node.value[:60]!r} cannot be read as {node.tag[len(_TAG) :]}", where))
                return None
        else:
            return self._unknown(node, where)
        if value is not None and node.tag != _TAG + "str":
            self.texts[where] = node.value
        return value

    def _unknown(self, node: yaml.Node, where: Where) -> None:
        self.wrongs.append(Wrong(f"the YAML tag {node.tag!r} is not supported; remove it", where, line=_line(node)))

    def _entries(self, node: yaml.MappingNode, where: Where) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the entries of a mapping by the text of their keys; its own override merged ones (`<<`)."""
        own: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        merged: dict[str, tuple[yaml.Node, yaml.Node]] = {}
        for key, value in node.value:
            self._spend(key)
            if not isinstance(key, yaml.ScalarNode):
                self.wrongs.append(Wrong("a key must be text", where, line=_line(key)))
            elif key.tag == _TAG + "merge":
                for source in self._merged(value, where):
                    merged |= {
                        name: entry for name, entry in self._entries(source, where).items() if name not in merged
                    }
            elif key.value in own:
                first = _line(own[key.value][0])
                message = f"is given twice, first in line {first}"
                self.wrongs.append(Wrong(message, (*where, key.value), line=_line(key)))
            else:
                own[key.value] = (key, value)
        return merged | own

    def _merged(self, node: yaml.Node, where: Where) -> Iterator[yaml.MappingNode]:
        for source in node.value if isinstance(node, yaml.SequenceNode) else [node]:
            if isinstance(source, yaml.MappingNode):
                yield source
            else:
                self.wrongs.append(Wrong("`<<` accepts only mappings", where, line=_line(source)))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
