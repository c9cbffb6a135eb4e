"""The descriptions of parameters in a docstring: as Google, Sphinx or numpy write them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

_SECTION: Final = re.compile(r"(args|arguments|parameters|params):\s*", re.IGNORECASE)
_NAMED: Final = re.compile(r"(?P<indent>\s+)\*{0,2}(?P<name>\w+)(\s*\([^)]*\))?\s*:\s*(?P<text>\S.*)")
_FIELD: Final = re.compile(r"\s*:param\s([^:]*\s)?\*{0,2}(?P<name>\w+)\s*:\s*(?P<text>\S.*)")
_UNDERLINED: Final = re.compile(r"\*{0,2}(?P<name>\w+)\s*(:.*)?")


def descriptions(text: str) -> dict[str, str]:
    """Return the descriptions of parameters by name, each of one line."""
    lines = text.encode("utf-8", "replace").decode().splitlines()
    return {**dict(_numpy(lines)), **dict(_google(lines)), **dict(_sphinx(lines))}


def _sphinx(lines: list[str]) -> Iterator[tuple[str, str]]:
    for line in lines:
        if found := _FIELD.fullmatch(line):
            yield found["name"], found["text"].strip()


def _google(lines: list[str]) -> Iterator[tuple[str, str]]:
    within, indent = False, ""
    for line in lines:
        if _SECTION.fullmatch(line):
            within, indent = True, ""
        elif line.strip() and not line[0].isspace():
            within = False
        elif within and (found := _NAMED.fullmatch(line)):
            indent = indent or found["indent"]
            if found["indent"] == indent:  # deeper ones are text
                yield found["name"], found["text"].strip()


def _numpy(lines: list[str]) -> Iterator[tuple[str, str]]:
    within, name = False, ""
    for line, below in zip(lines, [*lines[1:], ""], strict=False):
        if below.startswith("---"):
            within, name = line.strip().lower() == "parameters", ""
        elif within and line[:1].isspace() and name:
            yield name, line.strip()
            name = ""
        elif within and (found := _UNDERLINED.fullmatch(line)):
            name = found["name"]
