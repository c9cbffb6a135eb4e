"""The runners of a cluster as callers see them."""

from __future__ import annotations

from typing import Annotated, TypedDict

from msgspec import Meta

from protocol.nodes import ClusterState, Presence


class ShownLoad(TypedDict):
    """The work of one kind of environment."""

    places: Annotated[int, Meta(description="Workers that may run at a time.")]
    busy: Annotated[int, Meta(description="Workers that run a call, or start.")]
    waiting: Annotated[int, Meta(description="Callers without a worker.")]


class ShownNode(TypedDict):
    """One runner of a cluster, as it told the others within the last ten seconds."""

    node: Annotated[str, Meta(description="Its name.")]
    this: Annotated[bool, Meta(description="It is the runner that answers.")]
    release: str
    letters: Annotated[int, Meta(description="The version of the messages that it writes and reads.")]
    started_at: Annotated[float, Meta(description="Seconds since 1970.")]
    labels: Annotated[list[str], Meta(description="What modules may need.")]
    kinds: Annotated[dict[str, ShownLoad], Meta(description="The kinds of environment that it can use.")]
    places: Annotated[int, Meta(description="Workers that may run at a time, of all kinds.")]
    busy: Annotated[int, Meta(description="Workers that run a call, or start.")]
    running: Annotated[int, Meta(description="Executions that it runs.")]
    queued: Annotated[int, Meta(description="Executions that wait on it for a place or a person.")]
    awaiting: Annotated[int, Meta(description="Those of them that wait for a person.")]
    draining: Annotated[bool, Meta(description="It takes no more work.")]
    lag: Annotated[int, Meta(description="States of executions that its history does not have yet.")]


class ShownCluster(TypedDict):
    """The cluster as the answering runner sees it."""

    node: Annotated[str | None, Meta(description="The answering runner; null outside of a cluster.")]
    connected: Annotated[
        bool | None, Meta(description="Whether it reaches the NATS servers; null outside of a cluster.")
    ]
    lag: Annotated[int, Meta(description="States of executions that its history does not have yet.")]
    unsent: Annotated[int, Meta(description="Executions of it whose state the cluster does not have yet.")]
    unreadable: Annotated[int, Meta(description="Messages that its release could not read, since its start.")]
    forwarded: Annotated[int, Meta(description="Calls that other runners took for its callers, since its start.")]
    items: Annotated[list[ShownNode], Meta(description="The runners that are there, by name.")]


def shown_cluster(state: ClusterState | None) -> ShownCluster:
    """Return a cluster, or what stands for a single machine."""
    if state is None:
        return {
            "node": None,
            "connected": None,
            "lag": 0,
            "unsent": 0,
            "unreadable": 0,
            "forwarded": 0,
            "items": [],
        }
    return {
        "node": state.node,
        "connected": state.connected,
        "lag": state.lag,
        "unsent": state.unsent,
        "unreadable": state.unreadable,
        "forwarded": state.forwarded,
        "items": [_node(each, state.node) for each in state.nodes],
    }


def _node(node: Presence, this: str) -> ShownNode:
    kinds: dict[str, ShownLoad] = {
        name: {"places": load.places, "busy": load.busy, "waiting": load.waiting} for name, load in node.kinds.items()
    }
    return {
        "node": node.node,
        "this": node.node == this,
        "release": node.release,
        "letters": node.letters,
        "started_at": round(node.started_at, 3),
        "labels": list(node.labels),
        "kinds": kinds,
        "places": node.places,
        "busy": node.busy,
        "running": node.running,
        "queued": node.queued,
        "awaiting": node.awaiting,
        "draining": node.draining,
        "lag": node.lag,
    }
