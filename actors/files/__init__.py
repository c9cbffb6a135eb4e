"""The store of files: content by its digest, which executions name it, quota, retention and damage."""

from actors.files.elsewhere import Elsewhere, Load, Shared, Sharing
from actors.files.files import Files, FilesStatistics
from actors.files.index import Collected, Viewer, usage
from actors.files.model import (
    FILE_ID,
    PLAIN_NAME,
    PLAIN_TYPE,
    StoredFile,
    checked_digest,
    checked_id,
    checked_name,
    checked_type,
    references,
)
from actors.files.writing import GATHERED_BYTES, Writing

__all__ = [
    "FILE_ID",
    "GATHERED_BYTES",
    "PLAIN_NAME",
    "PLAIN_TYPE",
    "Collected",
    "Elsewhere",
    "Files",
    "FilesStatistics",
    "Load",
    "Shared",
    "Sharing",
    "StoredFile",
    "Viewer",
    "Writing",
    "checked_digest",
    "checked_id",
    "checked_name",
    "checked_type",
    "references",
    "usage",
]
