"""Code as a page shows it: lines with colours by class, and what would deceive a reader made visible."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final

from attrs import frozen
from markupsafe import Markup, escape

from protocol.terminal import visible

if TYPE_CHECKING:
    from pygments.lexer import Lexer

COLOURED: Final = 64 * 1024
"""Characters of a file that gets colours; finding them takes about a second for each million."""
MAX_LINES: Final = 10_000
"""Lines of a file, and of all differences, that a page shows."""
_COMPARED: Final = 3000
"""Lines of a file that is compared."""
_CONTEXT: Final = 3


def lines_of(name: str, text: str) -> list[Markup]:
    """Return the lines of a file as markup. Blocks for at most some ten milliseconds."""
    text = visible(text)
    lexer = _lexer(name) if len(text) <= COLOURED else None
    if lexer is None:
        return [escape(line) for line in _split(text)]
    from pygments import highlight  # noqa: PLC0415  (30 ms, at the first page with code)
    from pygments.formatters import HtmlFormatter  # noqa: PLC0415

    made: str = highlight(text, lexer, HtmlFormatter(nowrap=True))
    return [Markup(line) for line in _split(made)]  # noqa: S704  (the formatter escapes, and closes its tags in each line)


def _lexer(name: str) -> Lexer | None:
    """Return the reader of a language: only of those whose time is in proportion to the text."""
    from pygments import lexers  # noqa: PLC0415

    known = {"py": "PythonLexer", "yaml": "YamlLexer", "yml": "YamlLexer", "json": "JsonLexer", "toml": "TOMLLexer"}
    found = known.get(name.rpartition(".")[2].lower())
    lexer: Lexer | None = None if found is None else getattr(lexers, found)(stripnl=False, ensurenl=False)
    return lexer


def _split(text: str) -> list[str]:
    """Return the lines; a newline at the end begins no other one."""
    found = text.split("\n")
    return found[:-1] if found[-1] == "" else found


# Differences


@frozen
class Line:
    """A line of a comparison."""

    kind: str
    """`same`, `added` or `removed`, or `gap` before a part that begins elsewhere."""
    old: int | None
    new: int | None
    text: str


@frozen
class Compared:
    """A file in two versions."""

    name: str
    lines: tuple[Line, ...]
    added: int
    removed: int
    note: str = ""
    """Why there are no lines: `binary` or `large`."""


def compare(old: Mapping[str, str | None], new: Mapping[str, str | None]) -> Iterator[Compared]:
    """Yield the files that differ, by name; a text of None is one that is not shown. Blocks."""
    left = MAX_LINES
    for name in sorted({*old, *new}):
        before, after = old.get(name, ""), new.get(name, "")
        if before is None or after is None:
            yield Compared(name, (), 0, 0, "binary")
        elif before != after or (name in old) != (name in new):
            found = _compared(name, _split(visible(before)), _split(visible(after)), left)
            left -= len(found.lines)
            yield found


def _compared(name: str, old: Sequence[str], new: Sequence[str], left: int) -> Compared:
    if max(len(old), len(new)) > min(_COMPARED, left):
        return Compared(name, (), len(new), len(old), "large")
    lines = tuple(_lines(old, new))
    kinds = [line.kind for line in lines]
    return Compared(name, lines, kinds.count("added"), kinds.count("removed"))


def _lines(old: Sequence[str], new: Sequence[str]) -> Iterator[Line]:
    matcher = difflib.SequenceMatcher(None, old, new)
    end = 0
    for group in matcher.get_grouped_opcodes(_CONTEXT):
        if group[0][1] > end:
            yield Line("gap", None, None, "")
        for tag, a, b, c, d in group:
            if tag == "equal":
                for at in range(b - a):
                    yield Line("same", a + at + 1, c + at + 1, old[a + at])
                continue
            for at in range(a, b):
                yield Line("removed", at + 1, None, old[at])
            for at in range(c, d):
                yield Line("added", None, at + 1, new[at])
        end = group[-1][2]
    if 0 < end < len(old):
        yield Line("gap", None, None, "")
