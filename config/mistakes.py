"""What is wrong with what somebody wrote, and where: mistakes, and YAML that knows the line of each value.

A reader raises or collects `Wrong` with the place of the value inside what it was given; whoever knows the file turns
it into a `Mistake`. All mistakes of one reading leave together in one `ConfigError`.
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

MAX_BYTES = 16 * 1024 * 1024
"""Size of one file."""
MAX_REPEATED = 100_000
"""Values that the aliases of one file may repeat; aliases of aliases grow without end."""
MAX_DEPTH = 64
"""Levels of nesting of one file; an alias to its own parent has no last level."""

_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset(_TAG + name for name in ("str", "timestamp", "value", "merge"))
_PARSED_TAGS = frozenset(_TAG + name for name in ("int", "float", "bool", "null"))


@frozen
class Mistake:
    """One thing to correct. `field` is a path as people read it, `hello-world.timeout` or `modules[0].name`."""

    message: str
    file: str | None
    line: int | None
    """Counted from 1; None when there is no file or the mistake has no line."""
    field: str
    allowed: str = ""
    """What would have been right, alone; the message says it too."""

    def __str__(self) -> str:
        place = self.file if self.file is None or self.line is None else f"{self.file}:{self.line}"
        return ": ".join(part for part in (place, self.field, self.message) if part)


class ConfigError(Exception):
    """Carries all mistakes of one reading, in the order in which they stand in the file."""

    def __init__(self, mistakes: Iterable[Mistake]) -> None:
        self.mistakes = tuple(mistakes)
        super().__init__("\n".join(map(str, self.mistakes)))


class Wrong(ValueError):  # noqa: N818 - said about a value, it is not yet an error
    """One value is not right; `where` is its place inside what the raiser was given.

    `file` and `line` override the place when the mistake is in another file than the value; `offset` counts lines
    from the first line of a text that spans several.
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
        """Return the same, seen from the value that holds this one at `where`."""
        return Wrong(
            self.message, where + self.where, allowed=self.allowed, file=self.file, line=self.line, offset=self.offset
        )


def did_you_mean(word: object, options: Iterable[str]) -> str:
    """Return `; did you mean 'warm'?`, or nothing when no option is near."""
    near = difflib.get_close_matches(str(word).lower(), list(options), n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def read_or_none(read: Callable[[Any], T], value: Any) -> T | None:
    """Return what `read` makes of the value, or None where that is wrong."""
    try:
        return read(value)
    except Wrong:
        return None


def dotted(where: Where) -> str:
    """Return a place as people read it: `modules[0].retry.on[1]`."""
    return "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in where).removeprefix(".")


def structure_hook(
    converter: Converter, kind: type, readers: Mapping[str, Callable[[Any], Any]]
) -> Callable[[Any, Any], Any]:
    """Return how cattrs makes a `kind` from a mapping whose fields are read by `readers`; `unfold` takes its errors."""

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
    """Yield what is wrong from the groups that cattrs raises, each with its place; raise what is a bug."""
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
    """One YAML file as plain values, with the lines (from 1) that its values stand in."""

    value: Any
    lines: Mapping[Where, int] = field(factory=dict)
    texts: Mapping[Where, str] = field(factory=dict)
    """What YAML takes for a number, a truth or a date, as it was written: `3.10`, `yes`."""
    blocks: Mapping[Where, int] = field(factory=dict)
    """The first line of the content of each literal block (`|`)."""
    wrongs: tuple[Wrong, ...] = ()

    def written(self, where: Where, value: Any) -> Any:
        """Give text back what YAML took for a number: `python: 3.10` is not 3.1, `DEBUG: yes` is not True.

        What is no finite number or truth stays as it is.
        """
        finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
        return self.texts.get(where, value) if finite else value

    def mistake(self, wrong: Wrong, file: str, labels: Mapping[Where, Where]) -> Mistake:
        """Say where in the file something is wrong; `labels` are better names for places two steps from the root."""
        place = labels.get(wrong.where[:2], wrong.where[:2]) + wrong.where[2:]
        return Mistake(wrong.message, wrong.file or file, self.line(wrong), dotted(place), wrong.allowed)

    def line(self, wrong: Wrong) -> int | None:
        """Return the line to look at; for a value that is missing, that of the nearest one around it."""
        if wrong.line is not None or wrong.file is not None:
            return wrong.line
        if wrong.offset is not None and wrong.where in self.blocks:
            return self.blocks[wrong.where] + wrong.offset
        around = (wrong.where[:length] for length in range(len(wrong.where), -1, -1))
        return next((self.lines[where] for where in around if where in self.lines), None)


def read_text(path: Path) -> str:
    """Return the text of a UTF-8 file. Raises `Wrong` when there is none."""
    if "\0" in str(path):
        raise Wrong("is not the name of a file: it holds a null character")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise Wrong("is not a regular file; devices and pipes cannot be read again when they change")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise Wrong("there is no such file") from None
    except OSError as error:
        raise Wrong(f"cannot be read: {error.strerror or error}") from None
    if len(content) > MAX_BYTES:
        raise Wrong(f"is over {MAX_BYTES} bytes; keep code in files of its own and name them with `path`")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Wrong(f"is not UTF-8 text: {error.reason} at byte {error.start}", line=line) from None


def parse_yaml(text: str) -> Document:
    """Return the only document of `text`, with the mistakes that do not hinder reading on.

    Raises `Wrong` when nothing can be made of it.
    """
    try:
        loader = yaml.SafeLoader(text)
        try:
            root = loader.get_single_node()
        finally:
            loader.dispose()
        if root is None:
            raise Wrong("is empty; a file that serves nothing yet says `modules: []`")
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
    """Turns YAML nodes into dicts with text keys, lists and scalars, and notes where each was."""

    def __init__(self) -> None:
        self.lines: dict[Where, int] = {}
        self.texts: dict[Where, str] = {}
        self.blocks: dict[Where, int] = {}
        self.wrongs: list[Wrong] = []
        self._scalars = yaml.constructor.SafeConstructor()
        self._met: set[int] = set()
        self._repeated = 0

    def read(self, node: yaml.Node, where: Where) -> Any:
        """Return the value of `node`, which stands at `where`. Raises `Wrong` when a limit is passed."""
        self._spend(node)
        if len(where) > MAX_DEPTH:
            raise Wrong(f"is nested more than {MAX_DEPTH} levels deep, or holds itself", line=_line(node))
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
            raise Wrong(f"repeats more than {MAX_REPEATED} values by its aliases", line=_line(node))

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
        self.wrongs.append(Wrong(f"the YAML tag {node.tag!r} is not known here; leave it out", where, line=_line(node)))

    def _entries(self, node: yaml.MappingNode, where: Where) -> dict[str, tuple[yaml.Node, yaml.Node]]:
        """Return the entries of a mapping by the text of their keys: its own before those it merges in (`<<`)."""
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
                self.wrongs.append(Wrong("`<<` takes mappings only", where, line=_line(source)))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
