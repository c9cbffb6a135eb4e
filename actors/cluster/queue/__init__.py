"""The queue of a cluster: accepted executions wait in lanes of the engine, and run where a place is free.

`JobQueue` is the queue of this runner's `Dispatcher`; it puts jobs, and pulls those for which there are places here.
"""

from actors.cluster.queue.jobqueue import JobQueue
from actors.cluster.queue.lanes import GENERAL, Lane, lane_of, offered
from actors.cluster.queue.needed import Around, Presence, Record

__all__ = ["GENERAL", "Around", "JobQueue", "Lane", "Presence", "Record", "lane_of", "offered"]
