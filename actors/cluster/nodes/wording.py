"""The questions that runners ask each other, and their answers, as bytes. Pure."""

from __future__ import annotations

from typing import Final

import msgspec
from msgspec import Struct

from protocol.errors import Failure
from protocol.model import Approval, Execution, Waiting

VERSION: Final = 1
"""Raised when a release asks what the one before would understand wrongly. Added questions and fields need no other."""


class Reach(Struct, frozen=True, tag="reach"):
    """Show an execution that has not ended, with its events."""

    id: str
    recorded: bool = False
    """The answer is `Taken` if this runner does not have it in hand, but its history has it."""


class Follow(Struct, frozen=True, tag="follow"):
    """Give the events from a number on, or wait for them for some seconds."""

    id: str
    start: int
    seconds: float


class Cancel(Struct, frozen=True, tag="cancel"):
    """End an execution. The answer is its end, or that it takes longer than some seconds."""

    id: str
    why: Failure
    seconds: float


class Decide(Struct, frozen=True, tag="decide"):
    """Approve or deny an execution."""

    id: str
    decision: Approval


class Awaiting(Struct, frozen=True, tag="awaiting"):
    """Name the executions that wait for a person."""


class Reasons(Struct, frozen=True, tag="reasons"):
    """Tell why executions wait."""

    ids: tuple[str, ...]


class Run(Struct, frozen=True, tag="run"):
    """Run a call of which another runner has the caller, if there is a free place."""

    execution: Execution
    digest: str
    """The digest of the content of the module version."""
    path: tuple[str, ...] = ()
    """The modules of the handlers that wait for it."""
    even_full: bool = False
    """It may wait for a place: no other runner can run it."""


class Withhold(Struct, frozen=True, tag="withhold"):
    """Never begin this call if it has not arrived yet; show it if it has."""

    id: str


class Piece(Struct, frozen=True, tag="piece"):
    """Give a piece of a message that is too large to send."""

    name: str
    offset: int


Question = Reach | Follow | Cancel | Decide | Awaiting | Reasons | Run | Withhold | Piece


class Found(Struct, frozen=True, tag="found"):
    """An execution as it is now."""

    execution: Execution


class Several(Struct, frozen=True, tag="several"):
    """Executions."""

    executions: tuple[Execution, ...]


class Absent(Struct, frozen=True, tag="absent"):
    """This runner does not have it."""


class Refused(Struct, frozen=True, tag="refused"):
    """Why not."""

    failure: Failure
    began: bool = False
    """Its handler was called all the same."""


class News(Struct, frozen=True, tag="news"):
    """What happened to an execution since."""

    events: bytes = b"[]"
    waiting: Waiting | None = None
    attempts: int = 0
    ended: Execution | None = None


class Waits(Struct, frozen=True, tag="waits"):
    """Why executions wait, by their ids."""

    reasons: dict[str, Waiting]


class Taken(Struct, frozen=True, tag="taken"):
    """The call is in hand, or the history has the execution."""


class Bytes(Struct, frozen=True, tag="bytes"):
    """A piece of a large message; empty behind its end."""

    data: bytes


class Large(Struct, frozen=True, tag="large"):
    """In place of a message that is too large: it can be asked for in pieces, for a while."""

    name: str
    size: int


class Broken(Struct, frozen=True, tag="broken"):
    """The question was not understood or could not be looked at: nothing is known about what it asks for."""

    why: str


Answer = Found | Several | Absent | Refused | News | Waits | Taken | Bytes | Large | Broken


class _Letter(Struct, frozen=True):
    node: str
    release: str
    body: msgspec.Raw
    version: int = VERSION


_encoder: Final = msgspec.msgpack.Encoder()
_letters: Final = msgspec.msgpack.Decoder(_Letter)
_questions: Final[msgspec.msgpack.Decoder[Question | Large]] = msgspec.msgpack.Decoder(Question | Large)
_answers: Final[msgspec.msgpack.Decoder[Answer]] = msgspec.msgpack.Decoder(Answer)


def write(node: str, release: str, body: Question | Answer) -> bytes:
    """Return a question or an answer of a runner as a message."""
    return _encoder.encode(_Letter(node, release, msgspec.Raw(_encoder.encode(body))))


def read_question(data: bytes) -> tuple[str, Question | Large | Broken]:
    """Return the runner that asks, and its question; `Broken` is the answer to one that cannot be read."""
    letter = _read(data)
    if isinstance(letter, Broken):
        return "", letter
    try:
        return letter.node, _questions.decode(letter.body)
    except msgspec.MsgspecError as problem:
        return letter.node, _unreadable(letter, str(problem))


def read_answer(data: bytes) -> Answer:
    """Return an answer; `Broken` in place of one that cannot be read."""
    letter = _read(data)
    if isinstance(letter, Broken):
        return letter
    try:
        return _answers.decode(letter.body)
    except msgspec.MsgspecError as problem:
        return _unreadable(letter, str(problem))


def _read(data: bytes) -> _Letter | Broken:
    try:
        letter = _letters.decode(data)
    except msgspec.MsgspecError as problem:
        return Broken(f"no message of a runner: {problem}")
    if letter.version > VERSION:
        return _unreadable(letter, f"it has version {letter.version}, known are {VERSION} and below")
    return letter


def _unreadable(letter: _Letter, why: str) -> Broken:
    text = (
        f"a message of the runner {letter.node}, release {letter.release}, cannot be read: {why}; upgrade all runners"
    )
    return Broken(text)
