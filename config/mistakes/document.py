"""Text files, TOML, and YAML that knows the line of each value."""

from __future__ import annotations

import contextlib
import math
import re
import stat
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from attrs import field, frozen

from config.mistakes.plain import explain, lost_code
from config.mistakes.wrong import Mistake, Where, Wrong, dotted

ABSENT = "does not exist"
"""The message about a file that is not there."""
MAX_BYTES = 16 * 1024 * 1024
"""Size of one file."""
MAX_UPLOADED_BYTES = 64 * 1024
"""Size of one YAML file of a caller; its parser takes some seconds for a megabyte."""
MAX_REPEATED = 100_000
"""Values that aliases may repeat in one file; aliases of aliases grow exponentially."""
MAX_DEPTH = 64
"""Levels of nesting in one file; an alias to its own parent is infinitely deep."""
MAX_LINE = 16 * 1024
"""Characters of a line of TOML."""
MAX_PARTS = 16
"""Parts of a key of TOML, with dots between them."""

_DOTTED = re.compile(
    r"(?:(?:[\w-]{1,200}|\"[^\"]{0,200}\"|'[^']{0,200}')[ \t]*\.[ \t]*){%d}" % MAX_PARTS  # noqa: UP031 (braces)
)
_TOML_PLACE = re.compile(r" \(at (?:line (\d+), column \d+|end of document)\)$")
_FAST: Any = getattr(yaml, "CSafeLoader", None)
_READ_OTHERWISE = re.compile(r"[\t\x85\u2028\u2029\ufeff]|[|>][-+0-9]*#|[?](?:[][{},\s]|$)")
"""Text of which the parsers in C and in Python make different things."""
_TAG = "tag:yaml.org,2002:"
_TEXT_TAGS = frozenset(_TAG + name for name in ("str", "timestamp", "value", "merge"))
_PARSED_TAGS = frozenset(_TAG + name for name in ("int", "float", "bool", "null"))
_DECIMAL = re.compile(r"[-+]?[0-9][0-9_]*")
_WORDS = {"yes": "true", "on": "true", "no": "false", "off": "false"}
_CHOICES = frozenset({"enum", "const", "default", "examples"})
"""Keys of a schema whose values callers send as they are."""


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


def read_text(path: Path, largest: int = MAX_BYTES) -> str:
    """Return the text of a UTF-8 file. Raises `Wrong` if it cannot be read."""
    if "\0" in str(path):
        raise Wrong("is not a file name: it contains a null character")
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise Wrong("is not a regular file; devices and pipes cannot be reloaded")
        with path.open("rb") as file:
            content = file.read(largest + 1)
    except FileNotFoundError:
        raise Wrong(ABSENT) from None
    except OSError as error:
        raise Wrong(f"cannot be read: {error.strerror or error}") from None
    if len(content) > largest:
        raise Wrong(f"is over {largest} bytes; keep code in separate files and name them with `path`")
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
        root = _composed(text)
        if root is None:
            raise Wrong("is empty; write `modules: []` for a file without modules")
        reader = _Reader()
        value = reader.read(root, ())
        for where, line in reader.empty.items():
            if lost_code(text, line):
                name = where[-1]
                raise Wrong(f"is not valid YAML: indent the lines below `{name}: |` more than `{name}`", line=line)
    except yaml.MarkedYAMLError as error:
        message, at = explain(text, error)
        raise Wrong(f"is not valid YAML: {message}", line=at) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        column = error.position - before.rfind("\n")
        message = f"is not valid YAML: the character U+{ord(text[error.position]):04X} is not allowed (column {column})"
        raise Wrong(message, line=before.count("\n") + 1) from None
    except RecursionError:
        raise Wrong("is nested too deeply") from None
    return Document(value, reader.lines, reader.texts, reader.blocks, tuple(reader.wrongs))


def parse_toml(text: str) -> dict[str, Any]:
    """Return the values of a TOML document. Raises `Wrong`, with the line where it is known.

    Keys of very many parts are refused before they are parsed, which would take memory by the square of their number.
    """
    for number, line in enumerate(text.split("\n"), start=1):
        if len(line) > MAX_LINE:
            raise Wrong(f"has a line of {len(line):,} characters; the limit is {MAX_LINE:,}", line=number)
        if line.count(".") > MAX_PARTS and _DOTTED.search(line):
            raise Wrong(f"has a key of more than {MAX_PARTS} parts", line=number)
    try:
        found = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        place = _TOML_PLACE.search(str(error))
        at = text.count("\n") + 1 if place is None or place[1] is None else int(place[1])
        raise Wrong(f"is not TOML: {_TOML_PLACE.sub('', str(error))}", line=at) from None
    except RecursionError:
        raise Wrong("is nested too deeply") from None
    level: list[Any] = [found]
    for _ in range(MAX_DEPTH):
        inner = (each.values() if isinstance(each, Mapping) else each for each in level)
        level = [value for values in inner for value in values if isinstance(value, (Mapping, list))]
        if not level:
            return found
    raise Wrong(f"is nested more than {MAX_DEPTH} levels deep")


def _composed(text: str) -> yaml.Node | None:
    """Return the root node: of the parser in C, which takes a tenth of the time, where it reads the same.

    What it refuses, the parser in Python reads again, whose errors tell more. Raises yaml.YAMLError and RecursionError.
    """
    with contextlib.suppress(yaml.YAMLError, UnicodeEncodeError):
        if _FAST is not None and not _READ_OTHERWISE.search(text):
            root = _composed_fast(text)
            if root is not None and root.start_mark.index < root.end_mark.index:
                return root
    loader = yaml.SafeLoader(text)
    try:
        return loader.get_single_node()
    finally:
        loader.dispose()


def _composed_fast(text: str) -> yaml.Node | None:
    """Return the root node by the parser in C. Raises yaml.YAMLError, for very deep nesting too."""
    depth = 0

    def descend(_parent: object, _index: object) -> None:
        nonlocal depth
        depth += 1
        if depth > 2 * MAX_DEPTH:  # it has no limit of its own, and would use up the stack
            raise yaml.YAMLError

    def ascend() -> None:
        nonlocal depth
        depth -= 1

    loader = _FAST(text)
    loader.descend_resolver, loader.ascend_resolver = descend, ascend
    root: yaml.Node | None = loader.get_single_node()
    return root


class _Reader:
    """Turns YAML nodes into dicts with text keys, lists and scalars, and records the line of each."""

    def __init__(self) -> None:
        self.lines: dict[Where, int] = {}
        self.texts: dict[Where, str] = {}
        self.blocks: dict[Where, int] = {}
        self.empty: dict[Where, int] = {}
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
            if not node.value.strip():
                self.empty[where] = _line(node) + 1
        if node.tag in _TEXT_TAGS:
            value: Any = node.value
        elif node.tag in _PARSED_TAGS:
            try:
                value = self._parsed(node, where)
            except (ValueError, LookupError):
                self.wrongs.append(Wrong(f"{node.value[:60]!r} cannot be read as {node.tag[len(_TAG) :]}", where))
                return None
        else:
            return self._unknown(node, where)
        if value is not None and node.tag != _TAG + "str":
            self.texts[where] = node.value
        return value

    def _parsed(self, node: yaml.ScalarNode, where: Where) -> Any:
        """Return a number, boolean or null. Raises ValueError, LookupError.

        Numbers are those of YAML 1.2: `010` is ten, and `1:30` is text.
        """
        if node.tag == _TAG + "int" and _DECIMAL.fullmatch(node.value):
            return int(node.value.replace("_", ""))
        if ":" in node.value and node.tag != _TAG + "bool":
            return node.value
        if node.tag == _TAG + "bool" and node.value.lower() in _WORDS and _CHOICES & {*where}:
            text = f"{node.value} means {_WORDS[node.value.lower()]} in YAML; put it in quotes if the text is meant"
            self.wrongs.append(Wrong(text, where, line=_line(node)))
        return self._scalars.construct_object(node)

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
            self._spend(source)
            if isinstance(source, yaml.MappingNode):
                yield source
            else:
                self.wrongs.append(Wrong("`<<` accepts only mappings", where, line=_line(source)))


def _line(node: yaml.Node) -> int:
    return int(node.start_mark.line) + 1
