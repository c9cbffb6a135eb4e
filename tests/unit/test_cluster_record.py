"""Unit: what a runner of a cluster records where, when the engine answers, does not answer, or refuses; positions."""

import sqlite3
from contextlib import closing

import msgspec
import pytest
import trio
from attrs import define, field
from msgspec.structs import replace

from actors.cluster.engine import AwayError, FullError, LeaderlessError, Names, RefusedError, StaleError
from actors.cluster.engine.messages import Message, read_answer
from actors.cluster.letters import Author, Letter
from actors.cluster.life import State
from actors.cluster.record import Position, Positions, SharedLog
from actors.cluster.record import mail as mails
from actors.executions import SupersededError
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from tests.records import NOW, make

ME, OTHER = Author("a", "1", "0.1"), Author("b", "2", "0.1")


@define
class History:
    """Notes what is recorded."""

    room: object = None
    waits_for_disk: bool = False
    records: list = field(factory=list)

    def admit(self):
        pass

    def begin(self, execution):
        self.records.append(execution)

    def release(self, name):
        pass

    async def submit(self, execution):
        self.records.append(execution)

    finish = submit


@define
class Engine:
    connected: bool = True


@define
class Mail:
    """A log of letters that may be away, or lose answers."""

    me: Author = ME
    engine: Engine = field(factory=Engine)
    letters: dict = field(factory=dict)
    """The last state of each execution."""
    sent: list = field(factory=list)
    problem: Exception | None = None
    stores: bool = False
    """A letter without an answer is stored all the same."""

    async def send(self, letter, expect):
        last = self.letters.get(letter.execution.id)
        if expect != (0 if last is None else last.sequence):
            raise StaleError("later")
        if self.problem is None or self.stores:
            self.sent.append(letter)
            self.letters[letter.execution.id] = State(letter, len(self.sent))
        if self.problem is not None:
            raise self.problem
        return len(self.sent)

    async def state(self, name, *, fresh=False):
        return self.letters.get(name)

    def put(self, execution, author=OTHER):
        self.sent.append(None)
        self.letters[execution.id] = State(Letter(author, execution), len(self.sent))


@pytest.fixture
def log():
    return SharedLog(Mail(), History())


def accepted(status=Status.QUEUED, **fields):
    return make(status, asynchronous=True, node="a", **fields)


def begun(execution, attempts=1):
    return replace(execution, status=Status.RUNNING, attempts=attempts)


def ended(execution):
    return replace(execution, status=Status.SUCCEEDED, attempts=1, finished_at=NOW, result=b"1")


async def test_a_plain_call_is_in_the_history_only_until_its_end_is_offered(log):
    call = make(Status.RUNNING)
    woken = []
    log.wake = lambda: woken.append(1)
    log.begin(call)
    await log.finish(ended(call))

    assert log.history.records == [call, ended(call)]
    assert (log.mail.sent, woken) == ([], [1])
    assert log.recent.take(call.id) == ended(call)
    assert log.recent.take(call.id) is None


async def test_the_states_of_an_accepted_execution_follow_each_other_in_the_log(log):
    execution = accepted()
    for state in (execution, begun(execution)):
        await log.submit(state)
    await log.finish(ended(execution))

    assert [letter.execution for letter in log.mail.sent] == log.history.records
    assert [record.status for record in log.history.records] == [Status.QUEUED, Status.RUNNING, Status.SUCCEEDED]
    assert log.settled(execution.id)


async def test_nothing_is_accepted_while_the_servers_are_away(log):
    log.mail.engine.connected = False

    with pytest.raises(RunnerError) as caught:
        await log.submit(accepted())

    assert (caught.value.failure.kind, caught.value.failure.retry_after) == (ErrorKind.UNAVAILABLE, 5)
    assert log.history.records == []


@pytest.mark.parametrize("stores", [False, True])
async def test_without_an_answer_a_new_execution_is_accepted_and_offered_again(log, stores):
    execution = accepted()
    log.mail.problem, log.mail.stores = AwayError("no answer"), stores

    await log.submit(execution)

    assert log.history.records == [execution]
    assert log.unsent == {execution.id}


@pytest.mark.parametrize("problem", [RefusedError("sealed"), FullError("sealed")])
async def test_a_new_execution_that_the_servers_refuse_is_not_accepted(log, problem):
    log.mail.problem = problem

    with pytest.raises(RunnerError, match="sealed"):
        await log.submit(accepted())

    assert [record.status for record in log.history.records] == [Status.QUEUED, Status.FAILED]
    assert log.unsent == set()


@pytest.mark.parametrize(("status", "number"), [(503, 10023), (400, 10002), (503, 10077)])
def test_servers_without_room_are_named_with_the_remedy(status, number):
    answer = {"error": {"code": status, "err_code": number, "description": "insufficient resources"}}

    with pytest.raises(FullError, match="insufficient resources; raise `max_file_store`"):
        read_answer(Message("x", msgspec.json.encode(answer)))


@pytest.mark.parametrize(("finished_at", "ttl"), [(None, None), (NOW - 40, 60), (NOW - 400, 1)])
async def test_the_log_keeps_an_end_as_long_as_the_history(finished_at, ttl, monkeypatch):
    monkeypatch.setattr(mails.time, "time", lambda: NOW)

    class Log:
        names = Names()

        async def publish(self, subject, data, *, expect, ttl):
            return ttl

    status = Status.RUNNING if finished_at is None else Status.SUCCEEDED
    execution = replace(make(status), finished_at=finished_at)
    mail = mails.Mail(Log(), ME, files=None, parts=None, retention_seconds=100)

    assert await mail.send(Letter(ME, execution), 0) == ttl


async def test_a_new_execution_waits_for_an_election(log, autojump_clock):
    log.mail.problem = LeaderlessError("no leader")
    execution = accepted()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(log.submit, execution)
        await trio.sleep(3)
        assert log.accepting == {execution.id}
        log.mail.problem = None

    assert [letter.execution for letter in log.mail.sent] == [execution]
    assert log.accepting == log.unsent == set()


async def test_a_new_execution_is_not_accepted_while_no_server_leads_the_log(log, autojump_clock):
    log.mail.problem = LeaderlessError("no leader")

    with pytest.raises(RunnerError) as caught:
        await log.submit(accepted())

    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.UNAVAILABLE, "cluster")
    assert [record.status for record in log.history.records] == [Status.QUEUED, Status.FAILED]
    assert log.accepting == log.unsent == set()


async def test_a_begin_without_an_answer_begins_nothing(log):
    execution = accepted()
    await log.submit(execution)
    log.mail.problem = AwayError("no answer")

    with pytest.raises(RunnerError, match="cannot be published"):
        await log.submit(begun(execution))

    assert log.history.records == [execution]


async def test_a_begin_whose_answer_was_lost_is_found_when_it_is_tried_again(log):
    execution = accepted()
    await log.submit(execution)
    log.mail.problem, log.mail.stores = AwayError("no answer"), True
    with pytest.raises(RunnerError):
        await log.submit(begun(execution))
    log.mail.problem = None

    await log.submit(begun(execution))

    assert log.history.records == [execution, begun(execution)]
    assert len(log.mail.sent) == 2


@pytest.mark.parametrize("other", [begun, ended])
async def test_of_two_runners_the_second_has_no_part_in_an_execution(log, other):
    execution = accepted()
    await log.submit(execution)
    log.mail.put(replace(other(execution), node="b"))

    with pytest.raises(SupersededError):
        await log.submit(begun(execution))

    assert log.history.records == [execution]


async def test_an_end_that_another_runner_has_decided_otherwise_is_not_recorded(log):
    execution = accepted()
    await log.submit(execution)
    await log.submit(begun(execution))
    log.mail.put(replace(ended(execution), status=Status.FAILED, node="b"))

    with pytest.raises(SupersededError):
        await log.finish(ended(execution))

    assert log.history.records[-1].status is Status.RUNNING
    assert log.unsent == set()


async def test_an_end_is_owed_even_if_the_outbox_offered_the_state_before_it_meanwhile(log, monkeypatch):
    execution, finish = accepted(), log.history.finish
    await log.submit(execution)
    log.mail.engine.connected = False

    async def offered(record):
        log.unsent.discard(record.id)
        await finish(record)

    monkeypatch.setattr(type(log.history), "finish", lambda _, record: offered(record))
    await log.finish(ended(execution))

    assert log.unsent == log.renewed == {execution.id}


async def test_an_end_does_not_wait_for_servers_that_are_away(log):
    execution = accepted()
    await log.submit(execution)
    await log.submit(begun(execution))
    log.mail.engine.connected = False

    await log.finish(ended(execution))

    assert log.history.records[-1] == ended(execution)
    assert log.unsent == {execution.id}
    assert not log.settled(execution.id)


async def test_a_pause_is_recorded_without_servers_and_the_next_begin_follows_the_last_one(log):
    execution = accepted()
    await log.submit(execution)
    await log.submit(begun(execution))
    log.mail.engine.connected = False
    await log.submit(replace(begun(execution), status=Status.QUEUED))
    log.mail.engine.connected = True

    await log.submit(begun(execution, 2))

    assert [letter.execution.attempts for letter in log.mail.sent] == [0, 1, 2]


async def test_an_execution_that_was_taken_over_follows_the_letter_of_the_other(log):
    execution = accepted()
    log.mail.put(execution)
    state = await log.state(execution.id)
    await log.take(state, execution)

    assert log.known(execution.id) == state.sequence
    await log.submit(begun(execution))
    log.release(execution.id)

    assert log.known(execution.id) == 0
    assert log.mail.letters[execution.id].letter.author == ME


async def test_a_scheduled_execution_is_queued_by_one_runner(log):
    scheduled = accepted(Status.SCHEDULED, run_at=NOW)
    await log.submit(scheduled)
    log.mail.put(replace(scheduled, status=Status.QUEUED, node="b"))

    with pytest.raises(SupersededError):
        await log.submit(replace(scheduled, status=Status.QUEUED))


async def test_letters_have_what_the_history_keeps(log):
    execution = accepted(summary=True, input=b"[1]")
    await log.submit(execution)
    await log.finish(replace(ended(execution), events=b"[{}]"))

    assert [letter.execution.input for letter in log.mail.sent] == [b"[1]", b"null"]
    assert log.mail.sent[-1].execution.result is None


async def test_positions_are_used_by_several_threads_at_a_time(tmp_path):
    positions = Positions.open(tmp_path / "cluster.db")
    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(trio.to_thread.run_sync, positions.put, str(number), Position(number))

    assert [positions.get(str(number)).number for number in range(20)] == list(range(20))
    positions.close()


def test_a_position_is_there_after_a_restart_and_the_begin_when_it_is_damaged(tmp_path):
    path = tmp_path / "cluster.db"
    positions = Positions.open(path)
    assert positions.get("log") == Position()
    positions.put("log", Position(5, "x"))
    positions.put("log", Position(7, "x"))
    positions.put("outbox", Position(3))
    positions.close()
    with closing(sqlite3.connect(path)) as link, link:
        link.execute("update positions set content = '{}' where id = 'outbox'")

    opened = Positions.open(path)
    assert opened.get("log") == Position(7, "x")
    assert opened.get("outbox") == Position()
    assert opened.damaged
    opened.close()
