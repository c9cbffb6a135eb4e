"""Unit: views, messages and tables have the same fields of an execution; clients read views leniently."""

from __future__ import annotations

import json
from typing import get_type_hints

import msgspec
import pytest
from msgspec.structs import fields, replace

from actors.history import tables
from protocol import events, views
from protocol.errors import ErrorKind, Failure
from protocol.model import Attempt, Execution, Kind, ModuleRef, Status, Timings, Waiting
from protocol.rpc.operato.runner import v1

EXECUTION = Execution(
    id="e",
    module=ModuleRef("m", "1"),
    env=Kind.VENV,
    status=Status.FAILED,
    created_at=1.12345678,
    input=b'{"a":1}',
    failure=Failure(ErrorKind.TIMEOUT, "too slow"),
    events=events.encode_all([events.OutputEvent(0, 1.0, events.Stream.STDERR, "out")]),
    failed_attempts=(Attempt(1, 1.0, 2.0, Failure(ErrorKind.LOST, "gone"), 1, 0.5, ("12 sh",)),),
    waiting=Waiting("busy", 1.0),
    timings=Timings(load=0.25),
)
PARTS = {
    "module": {"module", "version"},
    "failure": {"error"},
    "finished_at": {"finished_at", "duration"},
    "events": {"stdout", "stderr"},
    "summary": {"record"},
}
"""Fields of the model that are shown under other names."""
NOT_SHOWN = {"events_count", "input_hash", "on_end", "reach"}
"""The first numbers events: every reader of events sees the numbers themselves. The second is for comparing keys, the
third has addresses, which can be secrets; the fourth belongs to the token of the caller."""
IN_MESSAGES = {"module": "module_name"}
NOT_IN_MESSAGES = {"result", "stdout", "stderr", "input"}
"""Payloads: fields of the responses around an `Execution` message."""
NOT_IN_TABLES = {"waiting", "reruns", "children"}
"""True of the moment only."""
IN_TABLES = {
    "module": {"executions.module", "executions.version"},
    "env": {"executions.env"},
    "status": {"executions.status"},
    "failure": {"executions.failure_kind", "executions.failure", "payloads.traceback"},
    "timings": {f"executions.{phase.name}_seconds" for phase in fields(Timings)},
    "input": {"payloads.input"},
    "result": {"payloads.result"},
    "failed_attempts": {"payloads.failed_attempts"},
    "killed": {"payloads.killed"},
    "events": {"events.events", "events.first_seq", "events.last_seq", "events.id"},
}
BESIDES = {"executions.revision", "payloads.id"}


def names_in(message):
    return set(message._betterproto.meta_by_field_name)


def test_every_field_of_an_execution_is_shown():
    model = {field.name for field in fields(Execution)} - NOT_SHOWN
    expected = set().union(*(PARTS.get(name, {name}) for name in model))

    assert set(get_type_hints(views.RecordedExecution)) == expected


def test_every_field_that_is_shown_is_in_the_messages():
    shown = set(get_type_hints(views.RecordedExecution)) - NOT_IN_MESSAGES

    assert names_in(v1.Execution) == {IN_MESSAGES.get(name, name) for name in shown}
    assert names_in(v1.GetExecutionResponse) == {"execution", "input_json", "result_json", "stdout", "stderr"}
    assert names_in(v1.Attempt) == {"number" if n == "attempt" else n for n in get_type_hints(views.FailedAttempt)}
    assert names_in(v1.Timings) == {"importing" if name == "import" else name for name in get_type_hints(views.Timings)}
    assert names_in(v1.Waiting) == set(get_type_hints(views.Waiting))
    assert names_in(v1.Error) == {*get_type_hints(views.Error), "retry_after"}


def test_every_field_of_an_execution_is_stored():
    model = {field.name for field in fields(Execution)} - NOT_IN_TABLES
    expected = set().union(*(IN_TABLES.get(name, {f"executions.{name}"}) for name in model))
    columns = {
        f"{table.name}.{column.name}"
        for table in (tables.executions, tables.payloads, tables.events)
        for column in table.columns
    }

    assert columns == expected | BESIDES


@pytest.mark.parametrize(
    ("fill", "view"),
    [
        (views.answered, views.Execution),
        (views.listed, views.ListedExecution),
        (views.recorded, views.RecordedExecution),
    ],
)
def test_a_view_has_all_keys_of_its_type(fill, view):
    shown = msgspec.json.encode(fill(EXECUTION))

    assert json.loads(shown).keys() == get_type_hints(view).keys()
    assert msgspec.json.decode(shown, type=view)["status"] is Status.FAILED


def test_times_are_rounded_and_absent_values_are_null():
    shown = views.recorded(EXECUTION)

    assert (shown["created_at"], shown["started_at"], shown["duration"]) == (1.123457, None, None)
    assert shown["timings"]["import"] == 0.25
    assert (shown["stdout"], shown["stderr"]) == ("", "out")
    assert views.recorded(replace(EXECUTION, finished_at=2.0))["duration"] == 0.876543


def test_an_end_by_a_clock_that_is_behind_took_no_time():
    assert replace(EXECUTION, finished_at=EXECUTION.created_at + 2).duration == pytest.approx(2)
    assert replace(EXECUTION, finished_at=EXECUTION.created_at - 3600).duration == 0.0


def test_clients_read_what_later_and_earlier_runners_send():
    later = {"id": "e", "status": "paused", "error": {"kind": "cosmic_ray", "message": "m"}, "shadow": 1}
    read = msgspec.json.decode(json.dumps(later), type=views.lenient(views.RecordedExecution))

    assert (read["status"], read["error"]["kind"], read.get("killed")) == ("paused", "cosmic_ray", None)
    assert "shadow" not in read
    whole = msgspec.json.decode(
        msgspec.json.encode(views.recorded(EXECUTION)), type=views.lenient(views.RecordedExecution)
    )
    assert whole.keys() == get_type_hints(views.RecordedExecution).keys()
    assert bytes(whole["input"]) == b'{"a":1}'


def test_clients_refuse_what_is_not_an_execution():
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(b'{"id": 5}', type=views.lenient(views.ListedExecution))
