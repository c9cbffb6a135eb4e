"""The endpoints about access: API keys."""

from runner.rest.access.keys import ENDPOINTS

__all__ = ["ENDPOINTS"]
