"""The code of modules, looked at without running it.

Which files are code and which one has the handler, what is wrong with its source, what its type hints say about the
input, and archives of code that are safe to unpack.
"""

from config.code.archive import TooLargeError, pack, read_folder, unpack, write_files
from config.code.entry import (
    ENTRIES,
    QUICK_BYTES,
    RUNNING,
    RUNNING_VERSION,
    Source,
    code_files,
    entry_of,
    find_entry,
    is_left_out,
    read_handler,
    source_in,
    source_wrongs,
    target_python,
)
from config.code.results import output_schema
from config.code.signatures import input_schema
from config.code.source import MAX_BYTES, Finding, Verdict

__all__ = [
    "ENTRIES",
    "MAX_BYTES",
    "QUICK_BYTES",
    "RUNNING",
    "RUNNING_VERSION",
    "Finding",
    "Source",
    "TooLargeError",
    "Verdict",
    "code_files",
    "entry_of",
    "find_entry",
    "input_schema",
    "is_left_out",
    "output_schema",
    "pack",
    "read_folder",
    "read_handler",
    "source_in",
    "source_wrongs",
    "target_python",
    "unpack",
    "write_files",
]
