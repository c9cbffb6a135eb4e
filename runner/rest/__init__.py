"""The face of the room."""

from runner.rest.app import make_app

__all__ = ["make_app"]
