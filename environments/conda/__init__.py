"""The `conda` kind: environments of conda packages, solved, installed and activated."""

from environments.conda.conda import CondaEnvironment

__all__ = ["CondaEnvironment"]
