"""Files of one call in the runner's own process: copies of those of the input, storing of those of the result."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import trio
from attrs import define, field

from environments.base import Store, storing
from environments.local.copies import Copies
from protocol import values

_pieces_of: Final[Callable[[Any, int], Iterator[bytes]]] = values.pieces_of
_PIECE_BYTES = 1 << 20


@define(eq=False)
class Exchange:
    """Its methods are called in the thread of the handler, or of its asyncio loop."""

    files: Mapping[str, tuple[Path, str]] = {}
    """The files of the input: id -> where they are, and their names."""
    store: Store | None = None
    folder: Path | None = None
    """Where the copies go; without one there can be no files."""
    token: trio.lowlevel.TrioToken = field(factory=trio.lowlevel.current_trio_token, init=False)
    stored: int = field(default=0, init=False)
    """Files of results that were stored."""
    _copies: Copies | None = field(default=None, init=False)

    def bring(self, check: Callable[[], None]) -> dict[str, str]:
        """Copy the files of the input; return their paths by id. `check` may end it. Raises OSError."""
        if not self.files or self.folder is None:
            return {}
        self._copies = Copies(self.folder)
        return {name: str(self._copies.add(path, shown, check)) for name, (path, shown) in self.files.items()}

    def clear(self) -> None:
        """Remove the copies."""
        if self._copies is not None:
            self._copies.remove()

    def keep(self, check: Callable[[], None]) -> Callable[[Any, str, str], dict[str, Any]]:
        """Return what stores a buffer or a binary file; `check` may end it between two pieces.

        It returns the object inside of `$file`. Raises RunnerError, and what reading the file raises.
        """

        def keep(source: Any, name: str, media_type: str) -> dict[str, Any]:
            kept = trio.from_thread.run(self._store, source, name, media_type, check, trio_token=self.token)
            self.stored += 1
            return kept

        return keep

    async def _store(self, source: Any, name: str, media_type: str, check: Callable[[], None]) -> dict[str, Any]:
        pieces = _pieces_of(source, _PIECE_BYTES)
        async with storing(self.store, name, media_type, self.stored) as writing:
            while piece := await trio.to_thread.run_sync(next, pieces, b""):
                check()
                await writing.write(piece)
            return (await writing.finish()).described
