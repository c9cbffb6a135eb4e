"""The tables of the catalog, and what is stored in them as values."""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any, Final

import sqlalchemy as sa
from attrs import frozen

from protocol.views import DEFAULT_PAGE

metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("value", sa.BigInteger, nullable=False),
)
modules = sa.Table(
    "modules",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("active", sa.Text),
    sa.Column("revision", sa.BigInteger, nullable=False),
    sa.Column("updated_at", sa.Double, nullable=False),
    sa.Column("updated_by", sa.Text, nullable=False),
)
versions = sa.Table(
    "versions",
    metadata,
    sa.Column("module", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),  # the order of registration
    sa.Column("spec", sa.LargeBinary, nullable=False),  # JSON, without the path of the code
    sa.Column("digest", sa.Text, nullable=False),
    sa.Column("entry", sa.Text, nullable=False),
    sa.Column("package", sa.Boolean, nullable=False),
    sa.Column("folder", sa.Text, nullable=False),
    sa.Column("created_at", sa.Double, nullable=False),
    sa.Column("created_by", sa.Text, nullable=False),
)
code = sa.Table(
    "code",
    metadata,
    sa.Column("module", sa.Text, primary_key=True),
    sa.Column("version", sa.Text, primary_key=True),
    sa.Column("files", sa.LargeBinary, nullable=False),  # zlib of msgpack: name -> content
)
changes = sa.Table(
    "changes",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("at", sa.Double, nullable=False),
    sa.Column("subject", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("module", sa.Text, nullable=False),
    sa.Column("version", sa.Text),
    sa.Column("detail", sa.LargeBinary, nullable=False),  # JSON
    sa.Index("changes_by_module", "module", "id"),
    sa.Index("changes_by_subject", "subject", "id"),
    sqlite_autoincrement=True,  # a number is never reused
)


class Action(StrEnum):
    """The kinds of change."""

    REGISTER = "register"
    ACTIVATE = "activate"
    DELETE = "delete"
    DELETE_VERSION = "delete_version"
    PRUNE = "prune"
    """A version was deleted because there were too many."""
    FILE_ADD = "file_add"
    FILE_CHANGE = "file_change"
    FILE_REMOVE = "file_remove"
    KEY_CREATE = "key_create"
    """Of an API key, as the next; the field `module` is empty."""
    KEY_REVOKE = "key_revoke"
    SCHEDULE_CREATE = "schedule_create"
    """Of a schedule of the API; `detail` has its name. Those of a module change with it."""
    SCHEDULE_CHANGE = "schedule_change"
    SCHEDULE_DELETE = "schedule_delete"
    SCHEDULE_PAUSE = "schedule_pause"
    SCHEDULE_RESUME = "schedule_resume"
    EXECUTION_APPROVE = "execution_approve"
    """Of an execution that waited for a person, as the next; `detail` has its id and the reason."""
    EXECUTION_DENY = "execution_deny"


@frozen
class StoredVersion:
    """One stored version. `spec` is the module without its path, `folder` the name of its code folder."""

    module: str
    version: str
    spec: Mapping[str, Any]
    digest: str
    entry: str
    package: bool
    folder: str
    created_at: float
    created_by: str


@frozen
class StoredModule:
    """One stored module; its versions oldest first."""

    name: str
    active: str | None
    revision: int
    updated_at: float
    updated_by: str
    versions: tuple[StoredVersion, ...]


@frozen
class Change:
    """One entry of the audit log. `id` rises, `at` is in seconds since the epoch."""

    id: int
    at: float
    subject: str
    action: Action
    module: str
    version: str | None
    detail: Mapping[str, Any]


@frozen
class Note:
    """An entry to add to the audit log."""

    action: Action
    module: str
    version: str | None = None
    detail: Mapping[str, Any] = {}


ADOPTED_NOTES: Final = 1 << 20
"""Entries of the audit log that one change of a cluster may have: their ids follow from its number."""


@frozen
class Adopted:
    """A change of a cluster, with its number there. It is of no module if `name` is None."""

    number: int
    subject: str
    at: float
    notes: tuple[Note, ...] = ()
    name: str | None = None
    module: StoredModule | None = None
    """The module as it is after the change; None when it is deleted."""
    code: Mapping[str, Mapping[str, bytes]] = {}
    """The files of versions that this runner did not have, by version."""


@frozen
class ChangesQuery:
    """The filters of the audit log: newest first, entries before the id `before`; None is no filter.

    `modules` are globs of module names, () for all. Times are seconds since the epoch.
    """

    module: str | None = None
    subject: str | None = None
    action: Action | None = None
    since: float | None = None
    until: float | None = None
    before: int | None = None
    modules: tuple[str, ...] = ()
    limit: int = DEFAULT_PAGE
