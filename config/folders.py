"""The folders of the runner's own files, and whether a start is about to make them in an unexpected place."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from attrs import evolve

from config.load import Loaded, load_settings
from config.mistakes import ConfigError
from config.modules import read_script

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


def load_script(options: Mapping[str, Any], file: Path) -> Loaded:
    """Return the settings for one Python file as the only module; a modules file is not needed.

    Without a modules file, the default folders are below the home of the user, and environments are shared by all such
    files. Raises ConfigError with the mistakes of settings and module.
    """
    loaded = load_settings(options, modules=False, needed=False)
    store, changed = loaded.settings.store, {}
    if not loaded.settings.config.exists():
        for name in ("data_dir", "venv_path", "conda_path"):
            if loaded.sources[f"store.{name}"] == "default":
                changed[name] = _cache() / getattr(store, name).name
    script, mistakes = read_script(file)
    if mistakes:
        raise ConfigError(mistakes)
    return evolve(loaded, settings=evolve(loaded.settings, store=evolve(store, **changed)), modules=script)


def _cache() -> Path:
    try:
        return Path.home() / ".cache" / "operato-runner"
    except RuntimeError:  # a user without a home
        return Path.cwd()
