"""`Elsewhere`: the other runners as the store of files sees them. A runner alone has none."""

from __future__ import annotations

from typing import Protocol

from actors.files.index import Viewer
from actors.files.model import StoredFile


class Elsewhere(Protocol):
    """Files of other runners. Methods are called on the event loop."""

    async def bring(self, name: str, viewer: Viewer | None) -> bool:
        """Store a file of others here, if the viewer sees it; return whether it is here now.

        Raises RunnerError: `unavailable` if others have it and cannot be asked, and as `Files.check_size`.
        """

    async def offer(self, stored: StoredFile, execution: str) -> None:
        """Take note of a file that was stored here.

        An upload, without `execution`, is at hand for others when this returns, if they can be asked. A file that an
        execution made is at hand before the end of the execution is.
        """
