"""Accepted executions: the queue in which they wait for their turn, and how one runs when its turn has come."""

from actors.executions.queueing.accepted import Accepted
from actors.executions.queueing.calls import QueuedCalls
from actors.executions.queueing.queue import Queue

__all__ = ["Accepted", "Queue", "QueuedCalls"]
