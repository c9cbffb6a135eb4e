"""What is registered in a data directory, read without a server: as far as it concerns environments."""

from __future__ import annotations

from actors.registry import FILE_NAME, Catalog
from config.load import Loaded
from config.mistakes import ConfigError
from config.modules import ModuleSpec, spec_from_mapping

_NO_CODE = {"code": "handler = print", "handler": "handler", "path": None}
"""What stands for code: it has no part in what an environment is made of."""


def served_specs(loaded: Loaded) -> tuple[dict[str, ModuleSpec], dict[str, str]]:
    """Return the modules of the file by name and registered ones as NAME@VERSION; and why some cannot be read.

    All versions are there, also those of modules that the file has too. Of registered ones code and path are left out.
    Blocks. Raises RunnerError `unavailable` when what is registered cannot be read.
    """
    named = {spec.name: spec for spec in loaded.modules.modules}
    unread: dict[str, str] = {}
    path = loaded.settings.store.data_dir / FILE_NAME
    if not path.exists():
        return named, unread
    catalog = Catalog.open(path)
    try:
        modules = catalog.load()
    finally:
        catalog.close()
    for version in (version for module in modules for version in module.versions):
        name = f"{version.module}@{version.version}"
        try:
            named[name] = spec_from_mapping({**version.spec, **_NO_CODE}, base=None, allow_path=False)
        except ConfigError as problem:
            unread[name] = str(problem)
    return named, unread
