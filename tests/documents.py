"""The documents of the repository, read for tests; run as a program it prints the stamps of the Korean pages."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
KOREAN = DOCS / "ko"
PAGES = sorted(path for path in DOCS.rglob("*.md") if not path.is_relative_to(KOREAN))
KOREAN_PAGES = sorted(KOREAN.rglob("*.md"))
GUIDES = [ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING", "AGENTS", "SECURITY")]
"""Documents for contributors: what they name is in the repository."""
DOCUMENTS = [ROOT / "README.md", ROOT / "README.ko.md", ROOT / "DECISIONS.md", *GUIDES, *PAGES, *KOREAN_PAGES]

_HEADING = re.compile(r"(#{1,6}) +(.*)")
_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_TICKS = re.compile(r"`([^`\n]+)`")


class Document(NamedTuple):
    """The parts of a Markdown document that tests look at."""

    headings: list[tuple[int, str]]
    blocks: list[str]
    prose: str
    """Everything outside of code blocks."""

    @property
    def links(self) -> list[str]:
        """Targets of its links."""
        return _LINK.findall(self.prose)

    @property
    def names(self) -> list[str]:
        """What stands in backquotes; a name may be wrapped over lines of prose."""
        return _TICKS.findall(re.sub(r"(`[^`\n]*)\n([^`\n]*`)", r"\1 \2", self.prose))

    @property
    def anchors(self) -> set[str]:
        """Anchors of its headings, as the forge and the site make them."""
        return {slug(text) for _, text in self.headings}


def slug(heading: str) -> str:
    """Return the anchor of a heading."""
    return re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading.lower()).strip())


def read(path: Path) -> Document:
    """Read a document. Raises ValueError when a code block does not end."""
    headings: list[tuple[int, str]] = []
    blocks: list[str] = []
    prose: list[str] = []
    fence: list[str] | None = None
    for line in path.read_text().splitlines():
        if line.startswith("```"):
            if fence is None:
                fence = [line]
            else:
                blocks.append("\n".join(fence))
                fence = None
        elif fence is not None:
            fence.append(line)
        else:
            prose.append(line)
            if heading := _HEADING.fullmatch(line):
                headings.append((len(heading[1]), heading[2]))
    if fence is not None:
        message = f"a code block of {path.name} does not end"
        raise ValueError(message)
    return Document(headings, blocks, "\n".join(prose))


def source_of(page: Path) -> Path:
    """Return the English page of a Korean one."""
    return DOCS / page.relative_to(KOREAN)


def stamp(source: Path) -> str:
    """Return the first line of a Korean page that is made of this state of its English source."""
    return f"<!-- source: {hashlib.sha256(source.read_bytes()).hexdigest()[:16]} -->"


if __name__ == "__main__":
    for english in PAGES:
        print(KOREAN.relative_to(ROOT) / english.relative_to(DOCS), stamp(english))
