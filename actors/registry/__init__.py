"""The face of the room."""

from actors.registry.catalog import FILE_NAME, Action, Catalog, Change, ChangesQuery
from actors.registry.publisher import Publisher
from actors.registry.registry import Added, Condition, Registry
from actors.registry.snapshot import Published, Registered, RegistrySnapshot, may_run_in_process

__all__ = [
    "FILE_NAME",
    "Action",
    "Added",
    "Catalog",
    "Change",
    "ChangesQuery",
    "Condition",
    "Published",
    "Publisher",
    "Registered",
    "Registry",
    "RegistrySnapshot",
    "may_run_in_process",
]
