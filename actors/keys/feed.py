"""`KeyFeed`: where changes of API keys are recorded, and in which order.

On one machine the file of keys does so (`OwnKeys`). In a cluster a change is one message for all runners.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from attrs import define

from actors.keys.stored import KeyFile, StoredKey
from actors.one_file import InTurn


class KeyFeed(Protocol):
    """Records changes of keys."""

    async def catch_up(self) -> None:
        """Have every change of keys here that was made before this call. Raises RunnerError `unavailable`."""

    async def put(self, key: StoredKey, forgotten: Sequence[str] = ()) -> None:
        """Add or change a key, and delete the `forgotten` ones; done when the file has it.

        Raises RunnerError `unavailable`, and `OvertakenError` when another runner changed keys first.
        """


@define
class OwnKeys:
    """The feed of a runner that is alone: the file itself."""

    _file: KeyFile
    _in_file: InTurn

    async def catch_up(self) -> None:
        """Do nothing: all changes are made here. Not a checkpoint."""

    async def put(self, key: StoredKey, forgotten: Sequence[str] = ()) -> None:
        """Write to the file."""
        await self._in_file(self._file.write, key, tuple(forgotten))
