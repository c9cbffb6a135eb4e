"""The endpoints for what happens without a caller: notices."""

from runner.rest.starts.notices import ENDPOINTS

__all__ = ["ENDPOINTS"]
