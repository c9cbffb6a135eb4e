"""The cluster: this runner's part of it. Nothing here is imported by a runner without the setting `cluster`."""

from actors.cluster.node import NODE_FILE, find_node, node_name

__all__ = ["NODE_FILE", "find_node", "node_name"]
