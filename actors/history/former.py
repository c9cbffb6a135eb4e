"""What earlier versions of the runner wrote, as the values of this one."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from protocol.events import DroppedEvent, KeptEvent, OutputEvent, encode_all
from protocol.model import Stream


class Chunk(msgspec.Struct, frozen=True):
    """A piece of what user code printed, numbered from 0 over both streams."""

    seq: int
    stream: Stream
    text: str


def events_of(chunks: Sequence[Chunk], dropped: int, at: float) -> tuple[bytes, int]:
    """Return events as JSON, and how many, for output of which `dropped` bytes at the end were not kept.

    The times of the pieces are not known, so all have `at`; nor is in how many pieces the end came: it counts as one.
    """
    events: list[KeptEvent] = [OutputEvent(seq, at, chunk.stream, chunk.text) for seq, chunk in enumerate(chunks)]
    if dropped:
        events.append(DroppedEvent(len(events), at, events=1, bytes=dropped))
    return encode_all(events), len(events)
