"""The runners of a cluster: their presence, requests between them, and executions that one has for doors of another."""

from actors.cluster.nodes.everywhere import Everywhere
from actors.cluster.nodes.forwarding import Forwarding
from actors.cluster.nodes.mirror import Mirror
from actors.cluster.nodes.nodes import Facts, Nodes
from actors.cluster.nodes.presence import RENEW_SECONDS, TTL_SECONDS, Neighbours

__all__ = ["RENEW_SECONDS", "TTL_SECONDS", "Everywhere", "Facts", "Forwarding", "Mirror", "Neighbours", "Nodes"]
