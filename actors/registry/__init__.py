"""Modules and their versions: those of the operator's file, and those registered over the API.

`Registry` is the actor that changes them. Others read its `RegistrySnapshot`, an immutable value, without waiting.
`Publisher` keeps code by its content; `Catalog` is the SQLite file of registered versions and the audit log. `Feed`
gives changes their order.
"""

from actors.registry.catalog import FILE_NAME, Catalog, registered_names
from actors.registry.code_store import specs_digest
from actors.registry.feed import Audit, Feed
from actors.registry.published import Published, may_run_in_process
from actors.registry.publisher import Publisher
from actors.registry.registry import Added, Registry
from actors.registry.routes import Route, Routes
from actors.registry.snapshot import Condition, Registered, RegistrySnapshot
from actors.registry.stored import Action, Adopted, Change, ChangesQuery, Note, StoredModule, StoredVersion

__all__ = [
    "FILE_NAME",
    "Action",
    "Added",
    "Adopted",
    "Audit",
    "Catalog",
    "Change",
    "ChangesQuery",
    "Condition",
    "Feed",
    "Note",
    "Published",
    "Publisher",
    "Registered",
    "Registry",
    "RegistrySnapshot",
    "Route",
    "Routes",
    "StoredModule",
    "StoredVersion",
    "may_run_in_process",
    "registered_names",
    "specs_digest",
]
