"""The face of the room."""

from environments.conda.conda import CondaEnvironment

__all__ = ["CondaEnvironment"]
