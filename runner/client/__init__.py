"""The face of the room."""

from runner.client.connection import MAX_ANSWER_BYTES, run
from runner.client.local_token import credentials
from runner.client.module_files import make_starter, read_module_files

__all__ = ["MAX_ANSWER_BYTES", "credentials", "make_starter", "read_module_files", "run"]
