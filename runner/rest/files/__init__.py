"""Files over REST: uploads to the store, and answers with a stored file or a part of it."""

from runner.rest.files.answers import file_answer
from runner.rest.files.endpoints import ENDPOINTS
from runner.rest.files.results import has_content, result_answer
from runner.rest.files.uploads import receive_file

__all__ = ["ENDPOINTS", "file_answer", "has_content", "receive_file", "result_answer"]
