"""A JSON value as a page shows it: a tree, a table, or text, of bounded size. Pure.

Everything that is left out is counted, so that no reader takes a part for the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

import msgspec
from attrs import define, field, frozen

from protocol.terminal import visible

MAX_PARSED: Final = 1024 * 1024
"""Bytes of JSON that are parsed for a page; of more only the beginning is shown."""
_MAX_NODES: Final = 300
_MAX_DEPTH: Final = 12
_MAX_ITEMS: Final = 50
_MAX_TEXT: Final = 600
_MAX_BEGINNING: Final = 2_000
_MAX_ALONE: Final = 8_000
"""Characters of a result that is one text."""
MAX_ROWS: Final = 50
MAX_COLUMNS: Final = 12
_MAX_FILES: Final = 50
_MAX_PICTURES: Final = 8
_PICTURES: Final = frozenset({"image/png", "image/jpeg", "image/gif", "image/webp"})


@frozen
class Node:
    """One value of a tree."""

    sort: str
    """`object`, `array`, `file`, `text`, `number`, `word` (true, false, null)."""
    text: str = ""
    """Of a value without others in it, ready to be shown."""
    key: str | None = None
    """Its key in an object."""
    items: tuple[Node, ...] = ()
    size: int = 0
    """The number of all items, of a text that of all characters."""
    left: int = 0
    """Items, or characters, that are left out."""


@frozen
class Table:
    """A list of flat objects."""

    columns: tuple[str, ...]
    numeric: tuple[bool, ...]
    """Of each column, whether its values are numbers."""
    rows: tuple[tuple[Node | None, ...], ...]
    """None where an object has no such key."""
    total: int
    """The number of all rows."""
    more_columns: int = 0


@frozen
class NamedFile:
    """A stored file that a value names."""

    id: str
    name: str
    type: str
    size: int | None
    picture: bool = False
    """Whether it claims to be a picture; only its content tells."""


@frozen
class Shown:
    """A value as a page shows it: `table`, `text` or `tree`; `beginning` when it is too large to be parsed."""

    bytes: int
    tree: Node | None = None
    table: Table | None = None
    text: Node | None = None
    beginning: str | None = None
    files: tuple[NamedFile, ...] = ()
    more_files: bool = False


def shown(data: bytes, most: int = MAX_PARSED) -> Shown:
    """Return a value in JSON as a page shows it."""
    if len(data) > most:
        return Shown(len(data), beginning=visible(data[:_MAX_BEGINNING].decode("utf-8", "ignore")))
    value = msgspec.json.decode(data)
    files = list(_files(value))
    tree, text, table = None, None, _table(value)
    if isinstance(value, str) and ("\n" in value or len(value) > _MAX_TEXT):
        text = _text(value, _MAX_ALONE, None)
    elif table is None:
        tree = _Tree().node(value, None, 0)
    some = _with_pictures(tuple(files[:_MAX_FILES]))
    return Shown(len(data), tree, table, text, files=some, more_files=len(files) > _MAX_FILES)


def pretty(data: bytes, most: int) -> str | None:
    """Return JSON with indents, for a reader who edits it; None when it has more than `most` bytes."""
    if len(data) > most:
        return None
    return msgspec.json.format(data, indent=2).decode()


@define
class _Tree:
    """Makes the nodes of one value, at most `_MAX_NODES`."""

    made: int = field(default=0, init=False)

    def node(self, value: Any, key: str | None, depth: int) -> Node:
        self.made += 1
        name = None if key is None else _short(key)
        match value:
            case {"$file": {"id": str()} as named} if len(value) == 1:
                return Node("file", _short(_file(named).name), name)
            case dict() | list():
                pairs = list(value.items()) if isinstance(value, dict) else [(None, item) for item in value]
                items = []
                for inner, item in pairs[: _MAX_ITEMS if depth < _MAX_DEPTH else 0]:
                    if self.made >= _MAX_NODES:
                        break
                    items.append(self.node(item, inner, depth + 1))
                sort = "object" if isinstance(value, dict) else "array"
                return Node(sort, "", name, tuple(items), len(pairs), len(pairs) - len(items))
            case _:
                return _plain(value, name)


def _plain(value: Any, key: str | None) -> Node:
    """Return the node of a value that has no others in it."""
    if isinstance(value, str):
        return _text(value, _MAX_TEXT, key)
    if value is None or isinstance(value, bool):
        return Node("word", {None: "null", True: "true", False: "false"}[value], key)
    return Node("number", _short(msgspec.json.encode(value).decode()), key)


def _text(value: str, most: int, key: str | None) -> Node:
    return Node("text", visible(value[:most]), key, size=len(value), left=max(0, len(value) - most))


def _short(text: str) -> str:
    return visible(text if len(text) <= 100 else f"{text[:100]}…")


def _table(value: Any) -> Table | None:
    """Return a list of two or more flat objects with few keys as a table."""
    if not isinstance(value, list) or len(value) < 2:
        return None
    columns: dict[str, None] = {}
    for row in value[:MAX_ROWS]:
        if not isinstance(row, dict) or not row or any(isinstance(item, dict | list) for item in row.values()):
            return None
        columns |= dict.fromkeys(row)
    names = list(columns)
    some = names[:MAX_COLUMNS]
    rows = tuple(tuple(_plain(row[name], None) if name in row else None for name in some) for row in value[:MAX_ROWS])
    numeric = tuple(all(cell is None or cell.sort == "number" for cell in column) for column in zip(*rows, strict=True))
    return Table(tuple(map(_short, some)), numeric, rows, len(value), len(names) - len(some))


def _files(value: Any) -> Iterator[NamedFile]:
    """Yield the files that a value names, each once, in its order."""
    seen = set[str]()
    left = [value]
    while left:
        each = left.pop()
        if isinstance(each, list):
            left += reversed(each)
        elif isinstance(each, dict):
            named = each.get("$file")
            if len(each) == 1 and isinstance(named, dict) and isinstance(named.get("id"), str):
                if named["id"] not in seen:
                    seen.add(named["id"])
                    yield _file(named)
            else:
                left += reversed(each.values())


def _file(named: dict[str, Any]) -> NamedFile:
    texts = {name: found if isinstance(found := named.get(name), str) else "" for name in ("id", "name", "type")}
    size = named.get("size")
    kind = texts["type"].partition(";")[0].strip().lower()
    whole = size if isinstance(size, int) and not isinstance(size, bool) else None
    return NamedFile(texts["id"], texts["name"] or "file", _short(kind), whole, kind in _PICTURES)


def _with_pictures(files: tuple[NamedFile, ...]) -> tuple[NamedFile, ...]:
    """Return files of which only the first pictures are shown as such."""
    pictures = [file.id for file in files if file.picture][:_MAX_PICTURES]
    return tuple(NamedFile(file.id, file.name, file.type, file.size, file.id in pictures) for file in files)


_SIGNATURES: Final = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)
SIGNATURE_BYTES: Final = 16


def picture_type(beginning: bytes) -> str | None:
    """Return the type of a picture by its first bytes; None for everything that a browser could run or misread."""
    if beginning[:4] == b"RIFF" and beginning[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for signature, kind in _SIGNATURES if beginning.startswith(signature)), None)
