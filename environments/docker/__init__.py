"""The face of the room."""

from environments.docker.docker import DockerEnvironment

__all__ = ["DockerEnvironment"]
