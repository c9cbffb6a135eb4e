"""Unit: letters between runners, and a model of a cluster in which everything that can go wrong does.

Three runners follow the rules of `actors.cluster.life` over an engine with a log (compare-and-set) and a queue
(redelivery). They crash, stop and continue late, are cut off; messages are lost, late, repeated; reads are old; jobs
and states are lost by damage. Then the cluster is made whole. To look for longer:
`FUZZ_EXAMPLES=20000 pytest tests/unit/test_cluster_life.py`.
"""

from __future__ import annotations

import os
from collections import Counter
from functools import partial

import msgspec
import pytest
from attrs import define, field
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from actors.cluster import letters, life
from actors.cluster.letters import Author, Letter, UnreadableError
from actors.cluster.life import State
from actors.history import LOST
from config.modules import RetryPolicy
from protocol.errors import ErrorKind, Failure
from protocol.model import Attempt, Execution, Kind, ModuleRef, Status
from tests.records import full, make

NOW = 1_700_000_000.0
NODES = "abc"
ONCE, THRICE = RetryPolicy(), RetryPolicy(attempts=3)
BROKEN = Failure(ErrorKind.HANDLER_ERROR, "it failed")
STALE, AWAY = "stale", "away"


@define
class Job:
    """A message of the queue."""

    delivered: int = 0
    again: bool = False
    """It was put a second time, long after the first."""
    holder: str | None = None
    """The boot that got it last, until it gives it back or is too late."""


@define
class Engine:
    """A log of last letters with compare-and-set, and a queue that delivers again what is not dropped."""

    versions: dict[str, list[State]] = field(factory=dict)
    """All states of each execution; readers may get an old one."""
    jobs: dict[str, Job] = field(factory=dict)
    stored: list[Letter] = field(factory=list)
    sequence: int = 0

    def last(self, name, lag=0):
        versions = self.versions.get(name, [])
        return versions[-1 - lag] if lag < len(versions) else None

    def publish(self, letter, expect):
        name = letter.execution.id
        last = self.last(name)
        if (last.sequence if last else 0) != expect:
            return STALE
        self.sequence += 1
        sent = letters.pack(letter)
        self.versions.setdefault(name, []).append(State(letters.unpack(sent.data), self.sequence))
        self.stored.append(letter)
        return self.sequence

    def put(self, name, *, again=False):
        """Refused while it is there."""
        self.jobs.setdefault(name, Job(again=again))


@define
class Task:
    """An execution that a runner took."""

    execution: Execution
    expect: int
    number: int
    """Of the next event."""
    phase: str = "ready"
    letter: Letter | None = None
    """The letter without an answer yet."""


@define
class Wire:
    """A letter on its way to the engine, or its answer on the way back."""

    boot: str
    letter: Letter
    expect: int
    purpose: str
    answer: int | str | None = None


@define
class Runner:
    """A process and its disk. All methods need it up; those that read need a connection."""

    node: str
    world: World
    me: Author = field(init=False)
    up: bool = True
    stopped: bool = False
    connected: bool = True
    rows: dict[str, tuple[Execution, str]] = field(factory=dict)
    """The disk: executions, each with the node that accepted it, or runs it."""
    applied: dict[str, int] = field(factory=dict)
    """The disk: the position of the projection."""
    tasks: dict[str, Task] = field(factory=dict)

    def __attrs_post_init__(self):
        self.me = self.world.new_author(self.node)

    @property
    def works(self):
        return self.up and not self.stopped

    @property
    def reaches(self):
        return self.works and self.connected

    # -- its life

    def crash(self):
        self.up = False
        self.stopped = False
        self.tasks.clear()

    def start(self):
        if self.up:
            return
        self.up = True
        self.me = self.world.new_author(self.node)
        for name, (row, node) in self.rows.items():
            if node == self.node and not row.asynchronous and not row.status.final:  # its caller has gone
                self.rows[name] = life.lost(row, NOW), node

    # -- letters

    def send(self, letter, expect, purpose):
        self.world.wires.append(Wire(self.me.boot, letter, expect, purpose))

    def hear(self, wire, lag=0):
        """Get the answer to a letter."""
        name = wire.letter.execution.id
        task = self.tasks.get(name)
        if task is not None and task.letter is wire.letter and isinstance(wire.answer, str):
            task.phase = "unsure"
        elif task is not None and task.letter is wire.letter:
            self.continue_(task, wire.answer)
        elif wire.purpose == "accept":
            if isinstance(wire.answer, str):
                return  # the sweep offers it again
            # Not checked by a runner: when one stops just here, another puts the job, and damage takes it, then events
            # before a begin may repeat numbers.
            if self.connected and getattr(self.world.engine.last(name), "sequence", 0) == wire.answer:
                self.world.engine.put(name)
        elif wire.purpose in ("again", "lost", "drop"):
            job = self.world.engine.jobs.get(name)
            if self.connected and job is not None and job.holder == self.me.boot:
                if wire.purpose == "lost" and not isinstance(wire.answer, str):
                    del self.world.engine.jobs[name]
                else:
                    job.holder = None

    def adopt(self, state):
        execution = state.letter.execution
        self.rows[execution.id] = execution, state.letter.author.node
        self.applied[execution.id] = max(self.applied.get(execution.id, 0), state.sequence)

    def write(self, execution):
        self.rows[execution.id] = execution, self.node

    def resolve(self, letter, lag):
        """Read the log after a refusal or without an answer: return the sequence of the letter once it is there."""
        state = self.world.engine.last(letter.execution.id, lag)
        found = life.resolve(letter, state)
        if isinstance(found, life.Stored):
            return found.sequence
        if isinstance(found, life.Superseded):
            self.tasks.pop(letter.execution.id, None)
            self.adopt(state)
            return None
        return found

    # -- accepting and running

    def accept(self, name, asynchronous):
        module = ModuleRef("m", "1")
        execution = Execution(name, module, Kind.INLINE, Status.QUEUED, NOW, asynchronous=asynchronous)
        self.write(execution)
        self.world.accepted[name] = asynchronous
        self.send(Letter(self.me, execution), 0, "accept")

    def take(self, name, lag, alive):
        job, engine = self.world.engine.jobs[name], self.world.engine
        job.delivered += 1
        job.holder = self.me.boot
        if name in self.tasks:
            job.holder = None
            return
        known = self.rows.get(name, (None, ""))[0]
        state = engine.last(name, lag)
        policy = self.world.policy(name)
        decision = life.decide(state, known, self.me, alive, policy, delivered=job.delivered, now=NOW)
        match decision:
            case life.Run(expect, first):
                task = self.tasks[name] = Task(state.letter.execution, expect, first)
                self.emit(task)  # why it waits
            case life.Again(letter, expect):
                self.send(letter, expect, "again")
            case life.Lost(letter, expect):
                self.send(letter, expect, "lost")
            case life.Drop():
                del engine.jobs[name]
            case life.Wait():
                job.holder = None

    def emit(self, task, count=1):
        name, first, after = task.execution.id, task.number, task.number + count
        ranges = self.world.events.setdefault(name, [])
        taken = [each for each in ranges if each[0] < after and first < each[1]]
        assert not taken or name in self.world.damaged, f"events {first} to {after} of {name} come twice: {taken}"
        ranges.append((first, after))
        task.number = after

    def step(self, task, choice, lag):
        """Do the next thing for an execution."""
        name = task.execution.id
        if task.phase == "unsure":
            if not self.connected:
                return
            found = self.resolve(task.letter, lag)
            if isinstance(found, life.Publish):
                self.say(task, task.letter.execution, found.expect)
            elif found is not None:
                self.continue_(task, found)
        elif task.phase == "ready" and choice % 16 == 15:  # its environment cannot be built
            number = task.execution.attempts + 1
            failed = replace(task.execution, status=Status.FAILED, attempts=number, failure=BROKEN)
            self.say(task, failed, task.expect)
        elif task.phase == "ready":
            number = task.execution.attempts + 1
            execution = replace(task.execution, status=Status.RUNNING, attempts=number, events_count=task.number)
            self.say(task, execution, task.expect)
        elif task.phase == "running" and choice % 4 == 0:
            self.emit(task, life.STRIDE // 1000)
        elif task.phase == "running":
            done, attempts = task.execution, task.execution.attempts
            if choice % 4 == 1 and done.asynchronous and attempts < self.world.policy(name).attempts:
                failed = (*done.failed_attempts, Attempt(attempts, NOW, NOW, BROKEN))
                self.say(
                    task,
                    replace(done, status=Status.QUEUED, failed_attempts=failed, events_count=task.number),
                    task.expect,
                )
            else:
                self.say(
                    task, replace(done, status=Status.SUCCEEDED, result=b"1", events_count=task.number), task.expect
                )

    def say(self, task, execution, expect):
        """Record a state here first, then in the log."""
        self.write(execution)
        task.phase, task.letter = "sent", Letter(self.me, execution)
        self.send(task.letter, expect, "state")

    def continue_(self, task, sequence):
        """Continue an execution whose last letter is in the log."""
        task.execution, task.expect, task.letter = task.letter.execution, sequence, None
        name = task.execution.id
        if task.execution.status.final:
            del self.tasks[name]
            if self.connected:
                self.world.engine.jobs.pop(name, None)
        elif task.execution.status is Status.RUNNING:
            task.phase = "running"
            self.world.calls[name, task.execution.attempts] += 1
            self.emit(task)
        else:
            task.phase = "ready"

    def cancel(self, name, lag):
        """Cancel a queued execution through this runner."""
        state = self.world.engine.last(name, lag)
        if state is not None and state.letter.execution.status is Status.QUEUED and name not in self.tasks:
            ended = replace(state.letter.execution, status=Status.CANCELLED, exit_code=130, finished_at=NOW)
            self.send(Letter(self.me, ended), state.sequence, "cancel")

    # -- its copy of the log, and what it owes to others

    def project(self):
        for name in self.world.engine.versions:
            state = self.world.engine.last(name)
            if state is None or state.sequence <= self.applied.get(name, 0):
                continue
            self.applied[name] = state.sequence
            self.meet(name, state)

    def meet(self, name, state):
        """Take a state of the log, or offer the later one that this runner has."""
        row, found = self.rows.get(name, (None, ""))[0], state.letter.execution
        if row is None or found.status.final or life.rank(found) >= life.rank(row):
            self.adopt(state)
        elif name not in self.tasks:
            self.offer(name, state)

    def offer(self, name, state):
        """Offer a row that is later than the log, or take the state in the log."""
        row, node = self.rows[name]
        letter = life.owed(row, node, self.me, state)
        found = life.Superseded() if letter is None else life.resolve(letter, state)
        if isinstance(found, life.Publish):
            self.send(letter, found.expect, "offer")
        elif isinstance(found, life.Superseded):
            self.adopt(state)

    def sweep(self, alive):
        """Offer what the log lacks, and put the jobs that no other runner puts."""
        for name, (row, node) in list(self.rows.items()):
            state = self.world.engine.last(name)
            if name in self.tasks:
                continue
            if row.status.final:
                if node == self.node and (state is None or state.letter.execution != row):
                    self.offer(name, state)
            elif state is None:
                self.offer(name, None)
            elif state.letter.execution != row:
                self.meet(name, state)
            elif self.world.all_applied(name) and name not in self.world.engine.jobs:
                put = life.forsaken(state, self.me, alive)
                if put is not None and (
                    put.letter is None or self.world.engine.publish(put.letter, put.expect) != STALE
                ):
                    self.world.engine.put(name, again=True)


@define
class World:
    engine: Engine = field(factory=Engine)
    runners: list[Runner] = field(init=False)
    wires: list[Wire] = field(factory=list)
    answers: list[Wire] = field(factory=list)
    boots: list[str] = field(factory=list)
    accepted: dict[str, bool] = field(factory=dict)
    damaged: set[str] = field(factory=set)
    calls: Counter = field(factory=Counter)
    """How often the handler was called for an attempt."""
    events: dict[str, list[tuple[int, int]]] = field(factory=dict)
    """The numbers of the events of each execution, as ranges."""

    def __attrs_post_init__(self):
        self.runners = [Runner(node, self) for node in NODES]

    def new_author(self, node):
        boot = f"{node}{len(self.boots)}"
        self.boots.append(boot)
        return Author(node, boot, "1")

    def policy(self, name):
        return THRICE if int(name) % 2 else ONCE

    def all_applied(self, name):
        """Whether the runners that are there have seen the state: within one sweep they have."""
        sequence = self.engine.last(name).sequence
        return all(runner.applied.get(name, 0) >= sequence for runner in self.runners if runner.reaches)

    def may_vanish(self, name):
        """Whether damage of the log is survived: the runners know the state. One that is away would miss an end."""
        state = self.engine.last(name)
        if state is None or not state.letter.execution.status.final:
            return state is not None and self.all_applied(name)
        return all(runner.applied.get(name, 0) >= state.sequence for runner in self.runners)

    def alive(self):
        return {runner.me.boot for runner in self.runners if runner.reaches}

    # -- what happens

    def happen(self, what, i, j, lag):
        """Let one thing happen, if it can: to a runner, a letter or an execution that the numbers choose."""
        runner, names = self.runners[i % 3], sorted(self.accepted)
        name = names[j % len(names)] if names else None
        if what in FAULTS:
            FAULTS[what](runner)
        elif what in ("arrive", "lose") and self.wires:
            wire = self.wires.pop(j % len(self.wires))
            wire.answer = AWAY if what == "lose" else self.engine.publish(wire.letter, wire.expect)
            self.answers.append(wire)
        elif what in ("answer", "lose answer") and self.answers:
            self.answer(self.answers[j % len(self.answers)], lost=what == "lose answer")
        elif what in ("project", "sweep", "take", "cancel", "accept", "step") and runner.works:
            self.act(runner, what, name, i // 3, j, lag)
        elif what == "redeliver" and name in self.engine.jobs:
            self.engine.jobs[name].holder = None
        elif what == "lose job":
            self.engine.jobs.pop(name, None)
        elif what == "damage" and name is not None and self.may_vanish(name):
            self.damaged.add(name)
            del self.engine.versions[name]

    def act(self, runner, what, name, choice, j, lag):
        """Let a runner do one of the things it does. Reads of the log may be old."""
        tasks, job, old = list(runner.tasks.values()), self.engine.jobs.get(name), max(0, lag - 3)
        if what == "accept" and len(self.accepted) < 4:
            runner.accept(str(len(self.accepted)), asynchronous=j % 4 > 0)
        elif what == "step" and tasks:
            runner.step(tasks[j % len(tasks)], choice, old)
        elif not runner.connected:
            return
        elif what == "project":
            runner.project()
        elif what == "sweep":
            runner.sweep(self.alive() if lag else None)
        elif what == "cancel" and name is not None:
            runner.cancel(name, old)
        elif what == "take" and job is not None and job.holder is None:
            # The presence may be wrong in each way, and not be known.
            alive = None if lag == 3 else {boot for n, boot in enumerate(self.boots) if choice >> (n % 6) & 1}
            runner.take(name, 0 if job.again else old, alive)

    def answer(self, wire, *, lost):
        runner = next((each for each in self.runners if each.me.boot == wire.boot), None)
        if runner is not None and runner.stopped:
            return  # it waits until the runner continues
        self.answers.remove(wire)
        if runner is not None and runner.up:
            if lost:
                wire.answer = AWAY
            runner.hear(wire)

    def whole(self):
        """Mend everything, and let all runners do what they owe until nothing happens any more."""
        for i in range(3):
            for what in ("continue", "heal", "start"):
                self.happen(what, i, 0, 0)
        for _ in range(30):
            for runner in self.runners:
                runner.project()
                runner.sweep(self.alive())
                for name in list(self.engine.jobs):
                    job = self.engine.jobs[name]
                    if job.holder is None or not any(name in each.tasks for each in self.runners):
                        runner.take(name, 0, self.alive())
                for task in list(runner.tasks.values()):
                    runner.step(task, 2, 0)
            while self.wires or self.answers:
                self.happen("arrive", 0, 0, 0)
                self.happen("answer", 0, 0, 0)
            if all(self.ended_everywhere(name) for name in self.accepted) and not self.engine.jobs:
                return

    def ended_everywhere(self, name):
        ended = [runner.rows[name][0] for runner in self.runners if name in runner.rows]
        return len(ended) == 3 and all(each.status.final and each == ended[0] for each in ended)

    # -- what must be true

    def check_always(self):
        for (name, attempt), count in self.calls.items():
            assert count == 1 or name in self.damaged, f"attempt {attempt} of {name} began {count} times"
            assert attempt <= self.policy(name).attempts
        ends = Counter(letter.execution.id for letter in self.engine.stored if letter.execution.status.final)
        assert not [name for name, count in ends.items() if count > 1 and name not in self.damaged]

    def check_whole(self):
        for name in self.accepted:
            state = self.engine.last(name)
            assert state is not None, f"{name} is not in the log"
            ended = state.letter.execution
            assert ended.status.final, f"{name} has no end: {ended.status}"
            for runner in self.runners:
                assert runner.rows[name][0] == ended, f"the history of {runner.node} has another end of {name}"
            if ended.status is Status.SUCCEEDED:
                assert self.calls[name, ended.attempts] >= 1
            numbers = [attempt.number for attempt in ended.failed_attempts]
            assert numbers == list(range(1, len(numbers) + 1))
            assert ended.attempts - len(numbers) in (0, 1), ended
        assert not self.engine.jobs


# -- letters -----------------------------------------------------------------------------------------------------------

A, B, AGAIN = Author("a", "a1", "1.2"), Author("b", "b1", "1.2"), Author("a", "a2", "1.2")


@pytest.mark.parametrize("field_name", ["input", "result", "events", "failed_attempts"])
def test_a_letter_has_the_whole_state_and_large_parts_travel_beside_it(field_name):
    text = "x" * letters.PART_BYTES
    failed = (Attempt(1, NOW, NOW, Failure(ErrorKind.HANDLER_ERROR, text)),)
    large = failed if field_name == "failed_attempts" else f'["{text}"]'.encode()
    small, big = Letter(A, full()), Letter(A, replace(full(), **{field_name: large}))
    packed = letters.pack(big)

    assert letters.pack(small).parts == {}
    assert letters.unpack(letters.pack(small).data) == small
    assert len(packed.data) < 10_000
    assert letters.complete(letters.unpack(packed.data), packed.parts) == big
    with pytest.raises(UnreadableError, match=f"the part {field_name} of execution"):
        letters.complete(letters.unpack(packed.data), {})
    with pytest.raises(UnreadableError):
        letters.complete(letters.unpack(packed.data), dict.fromkeys(packed.parts, b"other"))


def test_a_letter_of_a_later_release_is_refused_with_the_remedy():
    fields = msgspec.msgpack.decode(letters.pack(Letter(A, full())).data)

    def read(**changes):
        return letters.unpack(msgspec.msgpack.encode(fields | changes))

    assert read(later_field=1).execution == full_of(fields)
    with pytest.raises(UnreadableError, match=r"the runner a of release 1\.2 writes letters of version 2.*upgrade"):
        read(version=2, execution="of another form")
    with pytest.raises(UnreadableError, match=r"status.*upgrade this runner"):
        read(execution=fields["execution"] | {"status": "asleep"})
    with pytest.raises(UnreadableError, match="no letter"):
        letters.unpack(b"{}")


def full_of(fields):
    return msgspec.msgpack.decode(msgspec.msgpack.encode(fields["execution"]), type=Execution)


# -- decisions ---------------------------------------------------------------------------------------------------------


def at(status, author=A, **fields):
    return State(Letter(author, make(status, **{"id": "1", "asynchronous": True, **fields})), 7)


def decide(state, alive=("a1", "b1"), policy=THRICE, *, known=None, me=B, delivered=1):
    return life.decide(state, known, me, alive, policy, delivered=delivered, now=NOW)


def test_decisions_on_a_job():
    queued, running = at(Status.QUEUED), at(Status.RUNNING, attempts=1, events_count=3)
    ended = at(Status.SUCCEEDED)

    assert decide(queued) == life.Run(7, 0)
    assert decide(queued, delivered=3) == life.Run(7, 2 * life.STRIDE)
    assert decide(at(Status.QUEUED, events_count=5), alive=None) == life.Run(7, life.LEAP)
    assert decide(ended) == life.Drop()
    assert decide(None, known=ended.letter.execution) == life.Drop()
    assert decide(None, known=queued.letter.execution) == life.Wait(life.STATE_SECONDS)
    assert decide(at(Status.SCHEDULED)) == life.Wait(life.STATE_SECONDS)
    assert decide(running, known=ended.letter.execution, alive=()) == life.Wait(life.STATE_SECONDS)
    assert decide(running) == life.Wait(life.OWNER_SECONDS), "its owner is there"
    assert decide(running, alive=None) == life.Wait(life.OWNER_SECONDS), "no runner knows which others are there"
    assert decide(running, me=A, alive=()) == life.Wait(life.OWNER_SECONDS), "it runs here"


def test_an_owner_that_is_gone_or_started_again_has_lost_its_execution():
    running = at(Status.RUNNING, attempts=1, events_count=3, started_at=NOW - 1)
    for me, alive in ((B, ("b1",)), (B, ("a2", "b1")), (AGAIN, ("a2", "b1"))):
        again, lost = decide(running, alive, me=me), decide(running, alive, ONCE, me=me)

        assert isinstance(again, life.Again)
        assert (again.expect, again.letter.author) == (7, me)
        assert again.letter.execution == replace(
            running.letter.execution,
            status=Status.QUEUED,
            failed_attempts=(Attempt(1, NOW - 1, NOW, LOST),),
            events_count=life.LEAP,
        )
        assert isinstance(lost, life.Lost)
        assert lost.letter.execution == life.lost(running.letter.execution, NOW)
        assert (lost.letter.execution.status, lost.letter.execution.failure) == (Status.FAILED, LOST)
        assert lost.letter.execution.events_count == life.LEAP
    assert isinstance(decide(running, ("b1",), None), life.Lost)
    assert isinstance(decide(at(Status.RUNNING, attempts=3), ("b1",)), life.Lost), "no attempt is left"
    assert isinstance(decide(at(Status.RUNNING, attempts=1, asynchronous=False), ("b1",)), life.Lost)


def test_a_summary_keeps_its_input_for_another_attempt_only():
    running = at(Status.RUNNING, attempts=1, summary=True, input=b"[1]")

    assert decide(running, ("b1",)).letter.execution.input == b"[1]"
    assert decide(running, ("b1",), ONCE).letter.execution.input == b"null"


def test_a_call_whose_caller_has_gone_is_not_begun():
    waits = at(Status.QUEUED, asynchronous=False)

    assert decide(waits) == life.Run(7, 0)
    assert decide(waits, None) == life.Wait(life.OWNER_SECONDS)
    assert isinstance(decide(waits, ("b1",)), life.Lost)


def test_what_becomes_of_a_letter():
    begin, queued = at(Status.RUNNING, attempts=1), at(Status.QUEUED)
    end = Letter(A, replace(begin.letter.execution, status=Status.SUCCEEDED, result=b"1"))
    again = Letter(B, decide(begin, ("b1",)).letter.execution)

    assert life.resolve(end, None) == life.Publish(0)
    assert life.resolve(end, begin) == life.Publish(7)
    assert life.resolve(end, State(end, 9)) == life.Stored(9)
    assert life.resolve(Letter(B, end.execution), State(end, 9)) == life.Stored(9), "another runner has offered it"
    assert life.resolve(begin.letter, queued) == life.Publish(7)
    assert life.resolve(begin.letter, begin) == life.Stored(7)
    assert life.resolve(Letter(B, begin.letter.execution), begin) == life.Superseded(), "two have begun"
    assert life.resolve(end, at(Status.RUNNING, B, attempts=1)) == life.Superseded()
    assert life.resolve(end, State(again, 8)) == life.Superseded()
    assert life.resolve(end, at(Status.RUNNING, B, attempts=2)) == life.Superseded()
    assert life.resolve(Letter(AGAIN, end.execution), begin) == life.Publish(7), "recorded before the runner died"


def test_what_a_runner_offers_of_its_history():
    begin, queued = at(Status.RUNNING, attempts=1), at(Status.QUEUED)
    row, ended = begin.letter.execution, at(Status.SUCCEEDED).letter.execution

    assert life.owed(ended, "a", AGAIN, begin) == Letter(AGAIN, ended)
    assert life.owed(row, "a", AGAIN, queued) is None, "its begin did not reach the log, so nothing has run"
    assert life.owed(row, "a", B, queued) == Letter(Author("a", "", "1.2"), row), "damage took it from the log"
    assert life.owed(row, "a", AGAIN, None) == Letter(Author("a", "", "1.2"), row)


def test_a_lost_job_is_put_again_by_one_that_may():
    queued, running = at(Status.QUEUED, events_count=5), at(Status.RUNNING, attempts=1)
    renumbered = replace(queued.letter.execution, events_count=life.LEAP)

    assert life.forsaken(queued, A, ("a1", "b1")) == life.Put(Letter(A, renumbered), 7)
    assert life.forsaken(queued, B, ("b1",)) == life.Put(Letter(B, renumbered), 7)
    assert life.forsaken(queued, B, ("a1", "b1")) is None, "its acceptor does it"
    assert life.forsaken(queued, B, None) is None
    nobodys = State(Letter(Author("a", "", "1.2"), queued.letter.execution), 7)
    assert life.forsaken(nobodys, B, None) == life.Put(Letter(B, renumbered), 7), "as at a join"
    assert life.forsaken(running, B, ("b1",)) == life.Put(None, 0)
    for state in (running, at(Status.SUCCEEDED), at(Status.SCHEDULED)):
        assert life.forsaken(state, A, ("a1", "b1")) is None


# -- all faults --------------------------------------------------------------------------------------------------------


def stop(runner, *, stopped):
    runner.stopped = stopped and runner.up


def connect(runner, *, connected):
    runner.connected = connected


FAULTS = {
    "crash": Runner.crash,
    "start": Runner.start,
    "stop": partial(stop, stopped=True),
    "continue": partial(stop, stopped=False),
    "cut off": partial(connect, connected=False),
    "heal": partial(connect, connected=True),
}
HAPPENINGS = (
    *("arrive", "answer", "step", "take") * 6,
    *("accept", "redeliver", "project", "sweep") * 2,
    *("lose", "lose answer", "crash", "start", "start", "stop", "continue", "continue"),
    *("cut off", "heal", "heal", "lose job", "damage", "cancel"),
)
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "200"))


@pytest.mark.timeout(EXAMPLES + 60)
@settings(max_examples=EXAMPLES, derandomize=True, deadline=None, database=None)
@given(st.binary(min_size=600, max_size=1600))
def test_each_execution_ends_once_over_all_faults(steps):
    world = World()
    for what, i, j, lag in zip(*[iter(steps)] * 4, strict=False):
        world.happen(HAPPENINGS[what % len(HAPPENINGS)], i, j % 13, lag % 6)
        world.check_always()
    world.whole()
    world.check_always()
    world.check_whole()
