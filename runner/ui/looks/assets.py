"""Static files: style sheet, scripts, icons. Their address has the digest of all of them, so browsers keep them."""

from __future__ import annotations

import gzip
from hashlib import sha256
from importlib.resources import files
from typing import Final

from attrs import define, field, frozen

_TYPES: Final = {
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".png": "image/png",
    ".ico": "image/x-icon",
}


@frozen
class Asset:
    """One file, also compressed where that makes it smaller."""

    content: bytes
    small: bytes | None
    type: str


@define(eq=False)
class Assets:
    """All files, in memory. Modules of scripts find each other by relative addresses, in the folder of one digest."""

    by_name: dict[str, Asset]
    digest: str = field(init=False)

    def __attrs_post_init__(self) -> None:
        whole = sha256()
        for name in sorted(self.by_name):
            whole.update(f"{name}\0{len(self.by_name[name].content)}\0".encode() + self.by_name[name].content)
        self.digest = whole.hexdigest()[:16]

    @classmethod
    def load(cls) -> Assets:
        """Read all files. Blocks."""
        found = {}
        for each in files("runner.ui").joinpath("static").iterdir():
            dot = each.name.rfind(".")
            kind = _TYPES.get(each.name[dot:])
            if kind is not None:
                content = each.read_bytes()
                small = gzip.compress(content, 9, mtime=0)
                found[each.name] = Asset(content, small if len(small) < len(content) else None, kind)
        return cls(found)

    def url(self, name: str) -> str:
        """Return the path of a file below the dashboard. Raises KeyError."""
        _ = self.by_name[name]
        return f"/static/{self.digest}/{name}"
