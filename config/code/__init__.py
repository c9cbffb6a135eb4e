"""The face of the room."""

from config.code.archive import TooLargeError, pack, read_folder, unpack, write_files
from config.code.entry import ENTRIES, code_files, find_entry, is_left_out
from config.code.source import MAX_BYTES, Finding, Verdict

__all__ = [
    "ENTRIES",
    "MAX_BYTES",
    "Finding",
    "TooLargeError",
    "Verdict",
    "code_files",
    "find_entry",
    "is_left_out",
    "pack",
    "read_folder",
    "unpack",
    "write_files",
]
