"""The `docker` kind: containers as workers, images pulled or built, and the engine that runs them."""

from environments.docker.docker import DockerEnvironment

__all__ = ["DockerEnvironment"]
