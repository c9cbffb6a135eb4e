"""Several runners as one, over NATS JetStream: letters about executions, and the life of an execution over them."""

from actors.cluster.letters import Author, Letter, UnreadableError

__all__ = ["Author", "Letter", "UnreadableError"]
