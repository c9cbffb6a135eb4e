"""The block of a Python file that describes it (PEP 723, inline script metadata), read as fields of a module.

Text between `# /// script` and `# ///` is TOML: `requires-python`, `dependencies`, and below `[tool.operato]` the
fields of the module.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from datetime import date, time
from typing import Any, Final

from attrs import frozen

from config.mistakes import MAX_DEPTH, Document, Where, Wrong, parse_toml
from config.packages import read_python
from config.units import show

KIND: Final = "script"
MAX_BLOCK: Final = 64 * 1024
"""Characters of one block."""
TABLE: Final = "[tool.operato]"
ALLOWED: Final = "names of packages with their versions, such as requests>=2"
_OPENING = re.compile(r"^# /// ([a-zA-Z0-9-]+)$", re.MULTILINE)
_CLOSING = "# ///"
_ITEM_END = re.compile(r"[\"'}\]0-9a-z]\s?,")
_FOREIGN = ("code", "path")
NAMES: Final[Mapping[str, str]] = {"requirements": "dependencies", "python": "requires-python"}
"""The keys at the top of a block, by the fields of a module that they fill."""


@frozen
class Block:
    """The fields that a block gives its module, with the line of each."""

    fields: Mapping[str, Any]
    document: Document
    """The values and lines of the fields; lines are those of the Python file."""
    top: frozenset[str] = frozenset()
    """The fields that come from the top of the block, and not from `[tool.operato]`."""
    requires: str | None = None
    """`requires-python`, as `config.versions` reads it."""
    wrongs: tuple[Wrong, ...] = ()
    """Mistakes in the block itself, with lines of the file."""

    def placed(self, wrong: Wrong, file: str) -> Wrong:
        """Return a mistake in a field of the block, with the file, its line, and the name that the block has for it."""
        name = wrong.where[0]
        where = (NAMES.get(str(name), name), *wrong.where[1:]) if name in self.top else wrong.where
        line = self.document.line(Wrong("", wrong.where))
        return Wrong(wrong.message, where, allowed=wrong.allowed, file=file, line=line)


def blocks(text: str) -> Iterator[tuple[str, int, list[str]]]:
    """Yield type, line of the opening, and the lines inside of each block, as the specification finds them.

    A block ends at the last `# ///` of its comment; one without an end does not count.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    line, counted, at = 1, 0, 0
    while (opening := _OPENING.search(text, at)) is not None:
        line, counted = line + text.count("\n", counted, opening.start()), opening.start()
        first = at = opening.end() + 1
        last = None
        while at < len(text):
            end = found if (found := text.find("\n", at)) >= 0 else len(text)
            inside = text[at:end]
            if inside != "#" and not inside.startswith("# "):
                break
            last = at if inside == _CLOSING and at > first else last
            at = end + 1
        if last is not None:
            yield opening[1], line, [each[2:] for each in text[first : last - 1].split("\n")]
            at = last


def read_block(text: str) -> Block | None:
    """Return the block of a Python file with its mistakes; None if it has no `script` block."""
    found = [(line, inside) for kind, line, inside in blocks(text) if kind == KIND]
    if not found:
        return None
    first, inside = found[0]
    if len(found) > 1:
        remedy = f"has two `# /// {KIND}` blocks, the first in line {first}; keep one"
        return Block({}, Document({}), wrongs=(Wrong(remedy, line=found[1][0]),))
    content = "\n".join(inside)
    if len(content) > MAX_BLOCK:
        return Block({}, Document({}), wrongs=(Wrong(f"the block is over {MAX_BLOCK} characters", line=first),))
    try:
        data = parse_toml(content)
    except Wrong as wrong:
        line = first if wrong.line is None else first + wrong.line
        return Block({}, Document({}), wrongs=(Wrong(f"the block {wrong.message}", line=line),))
    lines = {where: first + line for where, line in lines_of(inside).items()}
    return _block(data, lines, first)


def _block(data: Mapping[str, Any], lines: Mapping[Where, int], first: int) -> Block:
    """Return the block of TOML values; `lines` are those of the keys."""
    fields, wrongs = _own_fields(data, lines, first)
    places: dict[Where, int] = {(): first}
    places |= {where[2:]: line for where, line in lines.items() if where[:2] == ("tool", "operato") and where[2:]}
    top = {name for name, key in NAMES.items() if key in data and name not in fields}
    for name in top:
        places |= {(name, *where[1:]): line for where, line in lines.items() if where[:1] == (NAMES[name],)}
    if "dependencies" in data:
        if "requirements" in fields:
            text = f"is given as `dependencies` at the top of the block too; keep it there, and remove it from {TABLE}"
            wrongs.append(Wrong(text, ("requirements",), line=places.get(("requirements",), first)))
        wrongs += (found := list(_dependency_wrongs(data["dependencies"], lines)))
        fields["requirements"] = [] if found else data["dependencies"]
    tool = data.get("tool")
    uv = tool.get("uv") if isinstance(tool, Mapping) else None
    if isinstance(uv, Mapping) and uv.get("sources"):
        where = ("tool", "uv", "sources")
        text = "is read by uv only; write the address in `dependencies`: NAME @ git+https://HOST/REPOSITORY"
        wrongs.append(Wrong(text, (".".join(where),), line=lines.get(where, first)))
    requires = None
    if "requires-python" in data:
        requires, found = _requires(data["requires-python"], lines.get(("requires-python",), first))
        wrongs += found
    return Block(fields, Document(fields, places), frozenset(top), requires, tuple(wrongs))


def _own_fields(data: Mapping[str, Any], lines: Mapping[Where, int], first: int) -> tuple[dict[str, Any], list[Wrong]]:
    """Return the fields of `[tool.operato]`, and the mistakes in them that every module would have."""
    at = lines.get(("tool", "operato"), first)
    tool = data.get("tool", {})
    own = tool.get("operato", {}) if isinstance(tool, Mapping) else {}
    if not isinstance(own, Mapping):
        text = f"is not a table; write {TABLE}, and the fields of the module below it"
        return {}, [Wrong(text, ("tool.operato",), line=at)]
    fields = _plain(own)
    text = f"is not for {TABLE}: the file itself is the code; remove it"
    wrongs = [
        Wrong(text, (name,), line=lines.get(("tool", "operato", name), at))
        for name in _FOREIGN
        if fields.pop(name, None) is not None
    ]
    return fields, wrongs


def _plain(value: Any) -> Any:
    """Return a value of TOML as JSON has it: dates and times are texts."""
    if isinstance(value, Mapping):
        return {name: _plain(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.isoformat() if isinstance(value, (date, time)) else value


def _requires(value: Any, line: int) -> tuple[str | None, list[Wrong]]:
    try:
        if not isinstance(value, str) or value[:1].isdigit():
            raise Wrong(f"{show(value)} is not a range of Pythons such as >=3.11", allowed=">=3.11")  # noqa: TRY301
        return read_python(value), []
    except Wrong as wrong:
        return None, [Wrong(wrong.message, ("requires-python",), allowed=wrong.allowed, line=line)]


def _dependency_wrongs(value: Any, lines: Mapping[Where, int]) -> Iterator[Wrong]:
    """Check `dependencies`: a list of texts, each one requirement of the index or with an address."""
    where: Where = ("dependencies",)
    first = lines.get(where)
    if not isinstance(value, list):
        yield Wrong(f'{show(value)} is not a list; write ["NAME"]', where, line=first)
        return
    for index, item in enumerate(value):
        line = lines.get((*where, index), first)
        if not isinstance(item, str):
            yield Wrong(f"{show(item)} is not text; write it in quotes", (*where, index), line=line)
        elif item.lstrip().startswith("-") or "\n" in item:
            text = f"{show(item)} is an option; this list has requirements only: {ALLOWED}"
            yield Wrong(text, (*where, index), allowed=ALLOWED, line=line)


def lines_of(text: list[str]) -> dict[Where, int]:
    """Return the line of each key of valid TOML, counted from 1, as far as it begins a line."""
    found: dict[Where, int] = {}
    counts: dict[Where, int] = {}
    table: Where = ()
    array: Where | None = None
    items = 0
    for number, line in enumerate(map(str.strip, text), start=1):
        key, equals, value = line.partition("=")
        if array is not None:
            if line.startswith("]"):
                array = None
            elif line and not line.startswith("#"):
                found.setdefault((*array, items), number)
                items += max(1, len(_ITEM_END.findall(line)))
        elif line.startswith("["):
            table = _inside(_keys(line.lstrip("[").partition("]")[0]), counts)
            if line.startswith("[["):
                found.setdefault(table, number)
                counts[table] = counts.get(table, -1) + 1
                table = (*table, counts[table])
            found.setdefault(table, number)
        elif equals and key and not key.startswith("#"):
            where = (*table, *_keys(key))[:MAX_DEPTH]
            for length in range(len(table) + 1, len(where) + 1):
                found.setdefault(where[:length], number)
            if value.lstrip().startswith("[") and _opens(value):
                array, items = where, 0
    return found


def _opens(value: str) -> bool:
    """Return whether an array that begins in a line continues in the next one."""
    bare = re.sub(r"\"(?:[^\"\\]|\\.)*\"|'[^']*'", "", value).partition("#")[0]
    return bare.count("[") > bare.count("]")


def _keys(dotted: str) -> Where:
    return tuple(part.strip().strip("\"'") for part in dotted.split("."))


def _inside(keys: Where, counts: Mapping[Where, int]) -> Where:
    """Return the place of a table; within arrays of tables it is in their last one."""
    found: Where = ()
    for key in keys[:-1]:
        found = (*found, key)
        found = (*found, counts[found]) if found in counts else found
    return (*found, *keys[-1:])
