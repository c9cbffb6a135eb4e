"""The folders of the runner's own files, and whether a start is about to make them in an unexpected place."""

from __future__ import annotations

import os

from config.load import Loaded

_DATA = "data"


def new_data_elsewhere(loaded: Loaded) -> str | None:
    """Return a warning if the default data directory does not exist yet and the modules file is in another folder.

    The default is relative to the current folder. A start there with the modules file of another folder would begin
    with another secret and an empty record. Blocks.
    """
    data, home = loaded.settings.store.data_dir, loaded.settings.config.parent
    if loaded.sources["store.data_dir"] != "default" or os.path.realpath(home) == os.path.realpath(data.parent):
        return None
    if os.path.lexists(data):
        return None
    there = home / _DATA
    has = f", which has a data directory: {there}" if there.is_dir() else ""
    return (
        f"the data directory {data} is new, with a secret and a record of its own, as the default is relative to the "
        f"current folder; the modules file is in {home}{has}; to use one in any folder, set `data_dir` in the section "
        "`runner:` of the modules file, or give --data-dir"
    )
