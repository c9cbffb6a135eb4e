"""Several runners as one, over NATS JetStream: letters about executions, and the life of an execution over them.

Nothing here is imported by a runner without the setting `cluster`.
"""

from actors.cluster.cluster import Cluster, open_cluster
from actors.cluster.engine import Engine, EngineError, open_engine
from actors.cluster.letters import Author, Letter, UnreadableError
from actors.cluster.queue import lane_of, offered
from actors.node import NODE_FILE, find_node, node_name

__all__ = [
    "NODE_FILE",
    "Author",
    "Cluster",
    "Engine",
    "EngineError",
    "Letter",
    "UnreadableError",
    "find_node",
    "lane_of",
    "node_name",
    "offered",
    "open_cluster",
    "open_engine",
]
