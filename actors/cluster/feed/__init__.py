"""What runners of a cluster share besides executions: modules, API keys, schedules, audit notes, idempotency keys.

A change is a message, which each runner applies in order to files of its own; so each serves all of it alone.
"""

from actors.cluster.feed.claims import SharedClaims
from actors.cluster.feed.feeds import Feeds
from actors.cluster.feed.instants import SharedInstants

__all__ = ["Feeds", "SharedClaims", "SharedInstants"]
