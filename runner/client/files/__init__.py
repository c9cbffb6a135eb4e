"""The work of the commands `files`: transfers of any size, lists, deletion."""

from runner.client.files.contents import Form, Part, Raw
from runner.client.files.lists import collect_files, list_files, remove_files
from runner.client.files.results import get_result, save_result
from runner.client.files.transfers import get_file, put_file

__all__ = [
    "Form",
    "Part",
    "Raw",
    "collect_files",
    "get_file",
    "get_result",
    "list_files",
    "put_file",
    "remove_files",
    "save_result",
]
