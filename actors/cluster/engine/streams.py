"""Names and settings of the streams, and how they come to exist: missing ones are made, different ones are changed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import attrs

from actors.cluster.engine.messages import AwayError, RefusedError
from actors.cluster.engine.requests import Requests

LAYOUT: Final = 1
"""Grows with the settings below, so that an earlier release does not take back those of a later one."""
_LAYOUT: Final = "operato.layout"
_NO_STREAM: Final = 10059
_TAKEN: Final = 10058
"""Another runner made it a moment ago."""
_TOO_FEW_SERVERS: Final = frozenset({10005, 10023, 10074})
MAX_REPLICAS: Final = 3
_DUPLICATES_SECONDS: Final = 120
"""How long the engine knows the id of a message."""
KEPT_CHANGES: Final = 64
"""Changes of one subject of the feed, for runners that were away; those whose last is all replace the ones before."""
_SECOND: Final = 1_000_000_000


@attrs.frozen
class Names:
    """The names of a cluster in the engine: streams in upper case, subjects below its prefix."""

    prefix: str = "operato"

    @property
    def log(self) -> str:
        """The stream with the last letter of each execution."""
        return f"{self.prefix}_LOG".upper()

    @property
    def queue(self) -> str:
        """The stream with the jobs."""
        return f"{self.prefix}_QUEUE".upper()

    @property
    def feed(self) -> str:
        """The stream with modules, keys, schedules and audit notes."""
        return f"{self.prefix}_FEED".upper()

    @property
    def keys(self) -> str:
        """The stream with the idempotency keys."""
        return f"{self.prefix}_KEYS".upper()

    @property
    def nodes(self) -> str:
        """The stream with the presence of runners."""
        return f"{self.prefix}_NODES".upper()

    @property
    def files(self) -> str:
        """The bucket of the object store."""
        return f"{self.prefix}_FILES".upper()

    def state(self, execution: str) -> str:
        """Return the subject of an execution."""
        return f"{self.prefix}.x.{execution}"

    def job(self, lane: str, execution: str) -> str:
        """Return the subject of a job; `*` stands for any."""
        return f"{self.prefix}.q.{lane}.{execution}"

    def news(self, topic: str, key: str) -> str:
        """Return the subject of a change of `key`, such as the name of a module; `*` stands for any."""
        return f"{self.prefix}.f.{topic}.{key}"

    def claim(self, key: str) -> str:
        """Return the subject of an idempotency key, of which `key` is the hash."""
        return f"{self.prefix}.k.{key}"

    def presence(self, node: str) -> str:
        """Return the subject of the presence of a runner."""
        return f"{self.prefix}.n.{node}"

    def requests(self, node: str) -> str:
        """Return the subject of requests to a runner."""
        return f"{self.prefix}.r.{node}"

    def stream_of(self, subject: str) -> str:
        """Return the stream that holds a subject."""
        letter = subject[len(self.prefix) + 1 : len(self.prefix) + 2]
        return {"x": self.log, "q": self.queue, "f": self.feed, "k": self.keys, "n": self.nodes}[letter]


def stream_settings(names: Names) -> tuple[Mapping[str, Any], ...]:
    """Return the settings of all streams, without the number of replicas."""
    p = names.prefix
    last: Mapping[str, Any] = {"max_msgs_per_subject": 1, "allow_direct": True, "allow_msg_ttl": True}
    changes: Mapping[str, Any] = {"max_msgs_per_subject": KEPT_CHANGES, "allow_rollup_hdrs": True}
    bucket = names.files
    parts = [f"$O.{bucket}.C.>", f"$O.{bucket}.M.>"]
    return (
        _stream(names.log, [f"{p}.x.*"], **last),
        _stream(names.queue, [f"{p}.q.*.*"], retention="workqueue"),
        _stream(names.feed, [f"{p}.f.>"], **{**last, **changes}),
        _stream(names.keys, [f"{p}.k.*"], **last),
        _stream(names.nodes, [f"{p}.n.*"], storage="memory", subject_delete_marker_ttl=60 * _SECOND, **last),
        _stream(f"OBJ_{bucket}", parts, discard="new", allow_rollup_hdrs=True, allow_direct=True),
    )


def _stream(name: str, subjects: list[str], **settings: Any) -> Mapping[str, Any]:
    return {
        "name": name,
        "subjects": subjects,
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "duplicate_window": _DUPLICATES_SECONDS * _SECOND,
        "metadata": {_LAYOUT: str(LAYOUT)},
        **settings,
    }


async def ensure_streams(requests: Requests, names: Names, *, servers: int) -> None:
    """Make the streams that are missing, and change those that differ. Runners may do so at the same time.

    `servers` is the number of those in the settings: with three of them a stream is not made with fewer replicas. Then,
    and while there is no leader, it raises `AwayError`; it can be called again.
    """
    for settings in stream_settings(names):
        await _ensure(requests, settings, least=max(1, min(servers, MAX_REPLICAS)))


async def _ensure(requests: Requests, settings: Mapping[str, Any], *, least: int) -> None:
    name = settings["name"]
    while True:
        try:
            found = (await requests.call(f"$JS.API.STREAM.INFO.{name}"))["config"]
        except RefusedError as error:
            if error.code != _NO_STREAM:
                raise
        else:
            await _update(requests, found, settings)
            return
        try:
            if not await _replicated(requests, "CREATE", settings, range(MAX_REPLICAS, least - 1, -1)):
                raise AwayError(f"fewer than {least} of the servers run as one cluster with JetStream")
        except RefusedError as error:
            if error.code != _TAKEN:
                raise
        else:
            return


async def _update(requests: Requests, found: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Change what differs, and raise the number of replicas if there are servers for more."""
    metadata = found.get("metadata") or {}
    if int(metadata.get(_LAYOUT, 0)) > LAYOUT:
        return
    wanted = {**found, **settings, "metadata": {**metadata, **settings["metadata"]}}
    replicas = found["num_replicas"]
    if await _replicated(requests, "UPDATE", wanted, range(MAX_REPLICAS, replicas, -1)):
        return
    if any(found.get(key) != value for key, value in wanted.items()):
        await requests.call(f"$JS.API.STREAM.UPDATE.{wanted['name']}", wanted)


async def _replicated(requests: Requests, verb: str, settings: Mapping[str, Any], numbers: range) -> bool:
    """Use the largest number of replicas for which there are servers; returns False if there are too few."""
    for replicas in numbers:
        try:
            await requests.call(f"$JS.API.STREAM.{verb}.{settings['name']}", {**settings, "num_replicas": replicas})
        except RefusedError as error:
            if error.code not in _TOO_FEW_SERVERS:
                raise
        else:
            return True
    return False
