"""Unit: a log that has lost states of executions gets them back from the histories of the runners."""

import time

import pytest
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine.messages import Extent, OversizeError, StaleError, Stored
from actors.cluster.engine.streams import Names
from actors.cluster.files import SharedFiles
from actors.cluster.letters import Author, Letter, pack, unpack
from actors.cluster.life import State
from actors.cluster.record import Outbox, Position, Positions, Projection, SharedLog
from actors.cluster.record.repair import Repair
from protocol.errors import ErrorKind
from protocol.model import Status
from tests.records import make, running

ME, OTHER, GONE = Author("a", "1", "0.1"), Author("b", "2", "0.1"), Author("c", "3", "0.1")


@define
class Engine:
    """One log, whose leader may change and lack what it had."""

    led: str = "n0 first"
    connected: bool = True
    names: Names = field(factory=Names)
    stored: dict = field(factory=dict)
    sequence: int = 0
    most: int = 1_000_000

    async def extent(self, stream):
        return Extent("now", self.sequence, self.led)

    async def last(self, subject, *, fresh=False):
        assert fresh or subject.startswith("operato.q")
        return self.stored.get(subject)

    async def publish(self, subject, data, *, expect):
        if len(data) > self.most:
            raise OversizeError("too large")
        last = self.stored.get(subject)
        if expect != (0 if last is None else last.sequence):
            raise StaleError("later")
        self.sequence += 1
        self.stored[subject] = Stored(subject, data, self.sequence, 0.0)
        return self.sequence


@define
class Mail:
    engine: Engine = field(factory=Engine)
    me: Author = ME
    files: SharedFiles | None = None
    retention_seconds: float = 86400.0

    async def send(self, letter, expect):
        return await self.engine.publish(self.engine.names.state(letter.execution.id), pack(letter).data, expect=expect)

    async def state(self, name, *, fresh=False):
        stored = await self.engine.last(self.engine.names.state(name), fresh=fresh)
        return None if stored is None else State(unpack(stored.data), stored.sequence)

    async def whole(self, letter):
        return letter

    def author(self, execution):
        """Return who wrote the last letter about an execution; None without one."""
        stored = self.engine.stored.get(self.engine.names.state(execution.id))
        return None if stored is None else unpack(stored.data).author.node


@pytest.fixture
def positions(tmp_path):
    opened = Positions.open(tmp_path / "cluster.db")
    yield opened
    opened.close()


@define(slots=False)
class Runner:
    """The parts that a runner has, its jobs, and how often it looked at everything."""

    history: object
    positions: Positions
    mail: Mail = field(factory=Mail)
    jobs: list = field(factory=list)
    live: set = field(factory=set)
    looks: list = field(factory=list)

    def __attrs_post_init__(self):
        self.shared = SharedLog(self.mail, self.history)
        is_live, alive = self.live.__contains__, lambda: {"1", "2"}
        self.outbox = Outbox(self.shared, self.history, self.positions, is_live, self._put, alive, self._nodes)
        parts = self.shared, self.history, self.positions, self.outbox._offer, self._nodes
        self.repair = Repair(*parts, lambda: self.looks.append(1))
        self.projection = Projection(self.mail, self.history, self.positions)
        self.projection.owe = self.shared.owe

    def _nodes(self):
        return ["a", "b"]

    async def _put(self, execution):
        self.jobs.append(execution.id)
        return True

    async def project(self, letter):
        await self.projection._store([Stored("x", pack(letter).data, 1, 0.0)])


@pytest.fixture
async def runner(tmp_path, positions):
    async with running(tmp_path / "a", node="a") as history:
        yield Runner(history, positions)


def queued():
    return make(Status.QUEUED, at=time.time(), node="a", asynchronous=True)


def ended(node, **fields):
    return make(at=time.time(), node=node, asynchronous=True, attempts=1, **fields)


async def test_a_server_that_leads_gets_the_ends_that_it_lacks(runner):
    kept, lost, call = ended("a"), ended("a"), replace(ended("a"), asynchronous=False)
    old = make(node="a", asynchronous=True)
    of_other, of_gone = ended("b"), ended("c")
    for execution in (old, kept, lost, call):
        await runner.history.finish(execution)
    await runner.history.adopt([of_other, of_gone])
    await runner.history.catch_up()
    await runner.mail.send(Letter(ME, kept), 0)

    done = await runner.repair.look("")

    found = {each: runner.mail.author(each) for each in (kept, lost, call, of_gone, of_other, old)}
    assert list(found.values()) == ["a", "a", "a", "c", None, None]
    assert (runner.repair.offered, runner.looks, runner.jobs) == (3, [1], [])

    runner.mail.engine.stored.clear()
    assert await runner.repair.look(done) == done
    assert runner.mail.author(lost) is None
    runner.mail.engine.led = "n1 later"
    assert await runner.repair.look(done) == "n1 later"
    assert runner.mail.author(lost) == "a"


async def test_an_end_that_the_log_has_let_go_is_not_offered_again(runner):
    recent, expired = ended("a"), make(at=time.time() - 60, node="a", asynchronous=True, attempts=1)
    for execution in (expired, recent):
        await runner.history.finish(execution)
    await runner.history.catch_up()
    runner.mail.retention_seconds = 30.0

    await runner.repair.look("")

    assert [runner.mail.author(each) for each in (recent, expired)] == ["a", None]


async def test_an_execution_that_may_have_ended_before_the_log_let_it_go_is_lost(runner):
    """A runner that was away for long must not have it run again."""
    old, recent = make(Status.QUEUED, at=time.time() - 60, node="a", asynchronous=True), queued()
    for execution in (old, recent):
        await runner.history.submit(execution)
    await runner.history.catch_up()
    runner.mail.retention_seconds = 30.0

    for execution in (old, recent):
        await runner.outbox._offer(await runner.history.get(execution.id))

    assert (await runner.history.get(old.id)).failure.kind is ErrorKind.LOST
    assert (await runner.mail.state(old.id, fresh=True)).letter.execution.status is Status.FAILED
    assert runner.jobs == [recent.id]


async def test_an_end_that_has_become_an_earlier_state_again_is_replaced(runner):
    end = ended("a")
    await runner.history.finish(end)
    await runner.history.catch_up()
    await runner.mail.send(Letter(OTHER, replace(end, status=Status.QUEUED, attempts=0, node="b")), 0)

    await runner.repair.look("")

    assert runner.mail.author(end) == "a"


async def test_an_end_is_told_when_another_runner_offers_what_was_before_it(runner):
    end = ended("c")
    await runner.history.adopt([end])
    before = replace(end, status=Status.QUEUED, attempts=0, result=None, finished_at=None, node="b")
    await runner.mail.send(Letter(Author("b", "", "0.1"), before), 0)

    await runner.project(Letter(OTHER, replace(before, id="x")))
    assert runner.shared.unsent == set()
    await runner.project(Letter(Author("b", "", "0.1"), before))
    assert runner.shared.unsent == {end.id}
    await runner.outbox._offer_unsent()

    assert runner.mail.author(end) == "c"
    assert (await runner.mail.state(end.id, fresh=True)).letter.execution.status is Status.SUCCEEDED


async def test_what_runs_here_is_told_when_another_runner_offers_what_was_before_it(runner):
    before = make(Status.QUEUED, asynchronous=True, node="b")
    runs = replace(before, status=Status.RUNNING, attempts=1, node="a")
    await runner.history.submit(runs)
    runner.live.add(runs.id)
    await runner.history.catch_up()
    await runner.mail.send(Letter(Author("b", "", "0.1"), before), 0)

    await runner.project(Letter(Author("b", "", "0.1"), before))
    await runner.outbox._offer_unsent()

    assert (await runner.mail.state(runs.id, fresh=True)).letter == Letter(ME, runs)
    assert runner.jobs == []


async def test_what_the_log_has_lost_is_offered_before_its_job(runner):
    accepted, elsewhere = queued(), queued()
    for execution in (accepted, elsewhere):
        await runner.history.submit(execution)
    await runner.history.catch_up()

    await runner.outbox._sweep_once(everything=True)
    assert (runner.mail.author(accepted), runner.mail.author(elsewhere), runner.jobs) == ("a", "a", [])
    end = replace(elsewhere, status=Status.SUCCEEDED, node="b", attempts=1, finished_at=1.0)
    await runner.mail.send(Letter(OTHER, end), (await runner.mail.state(elsewhere.id, fresh=True)).sequence)
    await runner.outbox._sweep_once(everything=True)

    assert runner.jobs == [accepted.id]
    assert (await runner.history.get(elsewhere.id)).status is Status.SUCCEEDED


async def test_an_end_that_is_too_large_for_the_servers_holds_up_no_other(runner):
    ends = [ended("a", result=result) for result in (b"1", b'"%s"' % (b"x" * 3000), b"2")]
    calls = [replace(ended("a", result=end.result), asynchronous=False) for end in ends]
    for execution in (*ends, *calls):
        await runner.history.finish(execution)
    await runner.history.catch_up()
    runner.shared.unsent |= {end.id for end in ends}
    runner.mail.engine.most = 2000

    await runner.outbox._offer_unsent()
    await runner.outbox._offer_after(Position(), runner.history.revision)

    for small, large, last in (ends, calls):
        assert [runner.mail.author(each) for each in (small, large, last)] == ["a", None, "a"]
