"""The face of the room."""

from runner.rest.app import make_app
from runner.rest.render import module_json
from runner.rest.web import described

__all__ = ["described", "make_app", "module_json"]
