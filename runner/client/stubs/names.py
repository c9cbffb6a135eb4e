"""Names and texts of other people as Python: identifiers that are free, docstrings that end where they should."""

from __future__ import annotations

import builtins
import keyword
import re
from typing import Final

_RESERVED: Final = frozenset({*keyword.kwlist, *keyword.softkwlist, *dir(builtins)})
_WORD: Final = re.compile(r"[A-Za-z0-9]+")
_MAX: Final = 80


class Names:
    """The names of one Python file. Each is given once."""

    def __init__(self) -> None:
        self._taken = set(_RESERVED)

    def function(self, name: str) -> str:
        """Return a free name for a function of this name, such that `NAME_async` is free too."""
        return self._free("_".join(_WORD.findall(name))[:_MAX] or "module", ("", "_async"), "module_")

    def type(self, *parts: str) -> str:
        """Return a free name for a type, from the words of some names."""
        words = [word for part in parts for word in _WORD.findall(part)]
        return self._free("".join(word[0].upper() + word[1:] for word in words)[:_MAX] or "Type", ("",), "Type")

    def _free(self, name: str, endings: tuple[str, ...], prefix: str) -> str:
        base = name if name[0].isalpha() else prefix + name
        found, number = base, 1
        while any(f"{found}{ending}" in self._taken for ending in endings):
            number += 1
            found = f"{base}_{number}"
        self._taken.update(f"{found}{ending}" for ending in endings)
        return found


def is_parameter(name: str) -> bool:
    """Return whether a key of an input can be a parameter: a plain name, not private."""
    return name.isascii() and name.isidentifier() and not keyword.iskeyword(name) and not name.startswith("_")


def docstring(text: str, indent: str) -> str:
    """Return a docstring, its first quotes without the indent. No character of the text can end it or hide code."""
    lines = [_escaped(line).rstrip() for line in text.strip().split("\n")]
    joined = "\n".join(indent + line if line and number else line for number, line in enumerate(lines))
    return f'"""{joined}"""' if len(lines) == 1 else f'"""{joined}\n{indent}"""'


def _escaped(text: str) -> str:
    return "".join(_character(each) for each in text.replace("\\", "\\\\").replace('"', '\\"'))


def _character(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode()
