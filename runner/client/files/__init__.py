"""The work of the commands `files`: transfers of any size, lists, deletion."""

from runner.client.files.lists import collect_files, list_files, remove_files
from runner.client.files.transfers import get_file, put_file

__all__ = ["collect_files", "get_file", "list_files", "put_file", "remove_files"]
