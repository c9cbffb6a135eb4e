"""The life of an execution in a cluster, as pure functions over the last letter about it.

    accept (queued or scheduled) -> begin of attempt 1 (running) [-> again (queued) -> begin of attempt 2 ...] -> end

Rules:
* Each step is a letter, published with the sequence of the letter on which the decision was based. The engine refuses
  it when there is a later one: so of two runners that decide at a time, one wins.
* The begin of an attempt is in the log before its handler is called. Its owner is the process that wrote it.
* The owner alone ends an attempt, or another one once the owner is gone: as `lost`, or with another attempt. An owner
  that was only cut off for a while finds its end refused, and drops what it did.
* The log is right. A runner that knows a later state than the log, which was damaged, offers it again.
"""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Final

from attrs import frozen
from msgspec.structs import replace

from actors.cluster.letters import Author, Letter
from actors.history import LOST, summary_of
from config.modules import RetryPolicy
from protocol.events import decode_all, last_begin
from protocol.model import Attempt, Execution, Status

LEAP: Final = 10**12
"""No attempt has as many events. The next one, elsewhere, numbers its events from the next multiple."""
STRIDE: Final = 10**8
"""Runners that get the same job after each other number their events this far apart; only one of them begins."""
OWNER_SECONDS: Final = 5.0
"""Pause before a job is looked at again whose owner runs it, or may."""
STATE_SECONDS: Final = 2.0
"""Pause before a job is looked at again whose state is not in the log yet."""


@frozen
class State:
    """The last letter about an execution, and its sequence in the log."""

    letter: Letter
    sequence: int


@frozen
class Run:
    """Run it: publish its begin with `expect`, and number its events from `first_event`."""

    expect: int
    first_event: int


@frozen
class Again:
    """Its owner is gone, and its policy allows another attempt: publish `letter` with `expect`, then decide anew."""

    letter: Letter
    expect: int


@frozen
class Lost:
    """Its owner, or the caller that waited for it, is gone: publish `letter` with `expect`, and drop the job."""

    letter: Letter
    expect: int


@frozen
class Drop:
    """It has ended: drop the job."""


@frozen
class Wait:
    """Give the job back for these seconds."""

    seconds: float


Decision = Run | Again | Lost | Drop | Wait


def decide(
    state: State | None,
    known: Execution | None,
    me: Author,
    alive: Collection[str] | None,
    policy: RetryPolicy | None,
    *,
    delivered: int,
    now: float,
) -> Decision:
    """Return what a runner that got the job of an execution does with it.

    `known` is the execution in the local history, `alive` the boots of the runners that are there (None: not known
    yet, as after a start or while the engine was away), `policy` that of the module (None: no runner serves it),
    `delivered` how often the job was delivered, this time included.
    """
    ended = known is not None and known.status.final
    if state is None:  # lost by damage, or not in the answering server yet; a runner that knows it offers it again
        return Drop() if ended else Wait(STATE_SECONDS)
    execution, boot = state.letter.execution, state.letter.author.boot
    if execution.status.final:
        return Drop()
    if ended or execution.status is Status.SCHEDULED:  # the end is on its way to the log, or was refused
        return Wait(STATE_SECONDS)
    there = boot == me.boot or (None if alive is None else boot in alive)
    if execution.status is Status.QUEUED and (execution.asynchronous or there):
        return Run(state.sequence, _first_event(execution, delivered))
    if there is not False:
        return Wait(OWNER_SECONDS)
    again = _again(execution, policy, now)
    end: type[Again | Lost] = Lost if again is None else Again
    return end(Letter(me, again or lost(execution, now)), state.sequence)


def lost(execution: Execution, now: float) -> Execution:
    """Return the end of an execution whose owner, or caller, is gone."""
    number = _next_leap(execution)
    ended = replace(execution, status=Status.FAILED, failure=LOST, finished_at=now, events_count=number, waiting=None)
    return summary_of(ended) if ended.summary else ended


def is_expired(execution: Execution, retention_seconds: float, now: float) -> bool:
    """Return whether an execution that the log lacks may have ended there, so long ago that the log has let it go."""
    if execution.status.final or execution.status is Status.SCHEDULED:
        return False
    return max(execution.created_at, execution.run_at or 0.0) + retention_seconds < now


def _again(execution: Execution, policy: RetryPolicy | None, now: float) -> Execution | None:
    """Return an execution whose owner is gone as it is queued again; None when its policy has no more attempts."""
    begun = execution.status is Status.RUNNING and execution.asynchronous
    if not begun or policy is None or not policy.allows(LOST.kind, execution.attempts):
        return None
    began = last_begin(decode_all(execution.events)) or execution.started_at or execution.created_at
    attempt = Attempt(execution.attempts, began, now, LOST)
    failed = (*execution.failed_attempts, attempt)
    return replace(execution, status=Status.QUEUED, failed_attempts=failed, events_count=_next_leap(execution))


def _next_leap(execution: Execution) -> int:
    """Return a number above those of all events that the owner may have sent since its last letter."""
    return (execution.events_count // LEAP + 1) * LEAP


def _first_event(execution: Execution, delivered: int) -> int:
    """Return the number of the first event of a run. A runner that got the job before may have sent some already."""
    return -(-execution.events_count // LEAP) * LEAP + min(delivered - 1, LEAP // STRIDE - 1) * STRIDE


# -- what an author does without an answer, or after a refusal ---------------------------------------------------------


@frozen
class Stored:
    """The letter is in the log."""

    sequence: int


@frozen
class Publish:
    """The letter is not in the log: publish it with `expect`."""

    expect: int


@frozen
class Superseded:
    """Another runner decided otherwise, or later: the log is right."""


def resolve(letter: Letter, state: State | None) -> Stored | Publish | Superseded:
    """Return what becomes of a letter, given the last one in the log: it was refused, had no answer, or is offered."""
    if state is None:
        return Publish(0)
    found, sent = state.letter.execution, letter.execution
    if state.letter == letter or (found.status.final and found == sent):
        return Stored(state.sequence)
    if rank(found) >= rank(sent):
        return Superseded()
    # Another runner that queued it again has counted an attempt that the author has not.
    follows = len(found.failed_attempts) <= len(sent.failed_attempts) and found.attempts <= sent.attempts
    if found.status is Status.RUNNING:  # the author, or the process of its name before it, wrote this begin
        follows = follows and state.letter.author.node == letter.author.node
    return Publish(state.sequence) if follows else Superseded()


def owed(row: Execution, node: str, me: Author, state: State | None) -> Letter | None:
    """Return the letter by which a runner offers what its history has and the log lacks; `resolve` it before.

    `node` accepted the execution, or runs it. None: the log is right. This runner must not run the execution now.
    """
    if row.status.final:
        return Letter(Author(node, me.boot, me.release), row)
    # A state of this runner that did not reach the log has not happened: its handler was not called.
    return None if state is not None and node == me.node else Letter(Author(node, "", me.release), row)


def rank(execution: Execution) -> float:
    """Return how far an execution has come. Of two states of it the one with the higher rank is the later one."""
    if execution.status.final:
        return math.inf
    if execution.status is Status.SCHEDULED:
        return -1.0
    if execution.status is Status.RUNNING:
        return 2.0 * execution.attempts - 1
    return 2.0 * execution.attempts + (0.5 if execution.approval is not None else 0.0)


@frozen
class Put:
    """Put the job of the execution into the queue; before that publish `letter` with `expect`, if there is one."""

    letter: Letter | None
    expect: int


def forsaken(state: State, me: Author, alive: Collection[str] | None) -> Put | None:
    """Return what this runner does for an execution that it does not run, and whose job is not in the queue.

    None: it is not in need of a job, or another runner takes care of it. A letter without a boot has no such runner.
    """
    execution, boot = state.letter.execution, state.letter.author.boot
    if execution.status.final or execution.status is Status.SCHEDULED:
        return None
    gone = not boot or (alive is not None and boot not in alive and boot != me.boot)
    if execution.status is Status.RUNNING:
        return Put(None, 0) if gone else None
    if not gone and boot != me.boot:
        return None
    # Those that got the lost job may have sent events.
    author = me if execution.asynchronous else state.letter.author
    return Put(Letter(author, replace(execution, events_count=_next_leap(execution))), state.sequence)
