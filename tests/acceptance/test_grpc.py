"""Acceptance: the real server over gRPC, called by real clients with stubs that grpcio-tools makes of the .proto."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
import random
import re
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpclib.health.v1 import health_pb2

from config.code.archive import pack
from tests.certificates import Authority
from tests.server_process import ROOT, Server, running, wait_for

MODULES = """
modules:
  - name: hello
    env: inline
    code: |
      def handler(input):
          print("greeting")
          return {"message": f"Hello, {input['name']}!"}
  - {name: hello-world, env: inline, code: "def handler(input): return 'Hello, ' + input['name']"}
  - name: slow
    env: inline
    timeout: 30s
    code: |
      import pathlib, time
      def handler(input):
          pathlib.Path(input).write_text("begun")
          time.sleep(60)
  - name: until
    env: inline
    code: |
      import os, pathlib, time
      def handler(input):
          pathlib.Path(input + "-begun").touch()
          while not os.path.exists(input):
              time.sleep(0.01)
          return "seen"
  - name: chatty
    env: inline
    output: 64MiB
    concurrency: 2
    code: |
      def handler(input, context):
          context.progress(1, 2, "half")
          for number in range(input):
              print(number, "x" * 100)
          return input
  - name: items
    env: inline
    code: |
      def handler(input):
          for number in range(input):
              yield number
  - name: brief
    env: inline
    concurrency: 8
    code: |
      import time
      def handler(input):
          time.sleep(input)
  - {name: large, env: inline, code: "def handler(input): return 'x' * input"}
  - {name: elsewhere, env: docker, image: "absent.invalid/none:1", code: "def handler(input): return 1"}
"""
PATIENCE = 30


@pytest.fixture(scope="module")
def stubs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """Generate messages and stubs as a user does."""
    folder = tmp_path_factory.mktemp("stubs")
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protocol"), "executor.proto"]
    subprocess.run([*command, f"--python_out={folder}", f"--grpc_python_out={folder}"], check=True)
    sys.path.insert(0, str(folder))
    yield importlib.import_module("executor_pb2"), importlib.import_module("executor_pb2_grpc")
    sys.path.remove(str(folder))


class Client:
    """Calls with a token, each limited to `PATIENCE` seconds."""

    def __init__(self, server: Server, stubs: tuple[Any, Any], *options: tuple[str, Any]) -> None:
        self.pb, made = stubs
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.ready['grpc'][0][1]}", options=options)
        self.metadata = (("authorization", f"Bearer {server.token}"),)
        self.executor, self.modules = made.ExecutorServiceStub(self.channel), made.ModuleServiceStub(self.channel)
        self.files = made.FileServiceStub(self.channel)
        # Without grpc_health, which cannot be imported beside grpclib: both define the same messages.
        self.watch_health = self.channel.unary_stream(
            "/grpc.health.v1.Health/Watch",
            request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
            response_deserializer=health_pb2.HealthCheckResponse.FromString,
        )

    def request(self, name: str, value: Any, **fields: Any) -> Any:
        return self.pb.ExecuteRequest(module_name=name, input_json=json.dumps(value), **fields)

    def execute(self, name: str, value: Any, *, timeout: float = PATIENCE, **fields: Any) -> Any:
        return self.executor.Execute(self.request(name, value, **fields), metadata=self.metadata, timeout=timeout)

    def batch(self, start: dict[str, Any], inputs: dict[str, str]) -> list[Any]:
        def messages() -> Iterator[Any]:
            yield self.pb.ExecuteBatchRequest(start=self.pb.BatchStart(**start))
            for name, value in inputs.items():
                yield self.pb.ExecuteBatchRequest(input=self.pb.BatchInput(id=name, input_json=value))

        return list(self.executor.ExecuteBatch(messages(), metadata=self.metadata, timeout=PATIENCE))


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with running(tmp_path_factory.mktemp("server"), MODULES, "--docker-host", "unix:///absent/docker.sock") as started:
        yield started
        assert started.stop() == 0


@pytest.fixture
def client(server: Server, stubs: tuple[Any, Any]) -> Iterator[Client]:
    made = Client(server, stubs)
    with made.channel:
        yield made


def refused(call: Any) -> grpc.RpcError:
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value


def trailers(problem: Any) -> dict[str, str]:
    return {item.key: item.value for item in problem.trailing_metadata()}


# Executions


def test_execute_answers_with_the_whole_execution(client: Client) -> None:
    answer = client.execute("hello", {"name": "you"})

    assert json.loads(answer.result_json) == {"message": "Hello, you!"}
    assert answer.stdout == "greeting\n"
    execution = answer.execution
    assert (execution.module_name, execution.subject, execution.attempts) == ("hello", "test", 1)
    assert execution.status == client.pb.EXECUTION_STATUS_SUCCEEDED
    assert execution.HasField("exit_code")
    assert not execution.HasField("error")
    assert 0 <= execution.finished_at - execution.created_at < 60_000
    assert abs(execution.finished_at / 1000 - time.time()) < 60


def test_an_execution_that_failed_is_an_answer(client: Client) -> None:
    answer = client.execute("hello", {})

    error = answer.execution.error
    assert answer.execution.status == client.pb.EXECUTION_STATUS_FAILED
    assert (error.kind, error.type) == (client.pb.ERROR_KIND_HANDLER_ERROR, "KeyError")
    assert "handler" in error.traceback
    assert answer.result_json == ""


def test_the_timeout_of_the_request_ends_the_handler(client: Client, server: Server) -> None:
    request = client.request("slow", str(server.home / "timeout"))
    request.timeout = 0.3
    answer = client.executor.Execute(request, metadata=client.metadata, timeout=PATIENCE)

    assert answer.execution.error.kind == client.pb.ERROR_KIND_TIMEOUT
    assert answer.execution.timings.run < 5


@pytest.mark.parametrize(
    ("name", "fields", "status", "kind", "field"),
    [
        ("helo", {}, grpc.StatusCode.NOT_FOUND, "not_found", "name"),
        ("hello", {"version": "9"}, grpc.StatusCode.NOT_FOUND, "not_found", "version"),
        ("hello", {"timeout": -1.0}, grpc.StatusCode.INVALID_ARGUMENT, "bad_input", "timeout"),
        ("elsewhere", {}, grpc.StatusCode.UNAVAILABLE, "unavailable", "env"),
    ],
)
def test_a_refused_execution_is_a_status(
    client: Client, name: str, fields: dict[str, Any], status: Any, kind: str, field: str
) -> None:
    request = client.request(name, {}, **fields)
    problem = refused(lambda: client.executor.Execute(request, metadata=client.metadata, timeout=PATIENCE))

    assert problem.code() == status
    assert trailers(problem)["operato-kind"] == kind
    assert trailers(problem)["operato-field"] == field


def test_input_that_is_not_json(client: Client) -> None:
    request = client.pb.ExecuteRequest(module_name="hello", input_json="{NaN}")
    problem = refused(lambda: client.executor.Execute(request, metadata=client.metadata))

    assert (problem.code(), trailers(problem)["operato-field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "$")


@pytest.mark.parametrize("token", [None, "Bearer nonsense", "Basic abc"])
def test_a_token_is_required(client: Client, token: str | None) -> None:
    metadata = () if token is None else (("authorization", token),)
    problem = refused(lambda: client.executor.Execute(client.request("hello", {}), metadata=metadata))

    assert problem.code() == grpc.StatusCode.UNAUTHENTICATED
    assert trailers(problem)["operato-kind"] == "unauthenticated"


def test_scopes_and_modules_of_the_token_apply(server: Server, stubs: tuple[Any, Any]) -> None:
    command = [sys.executable, str(ROOT / "main.py"), "token", "--subject", "narrow", "--config", "modules.yaml"]
    scopes = ["--scope", "executions:run", "--module", "hel*"]
    token = subprocess.run([*command, *scopes], cwd=server.home, check=True, capture_output=True, text=True).stdout
    narrow = Client(server, stubs)
    narrow.metadata = (("authorization", f"Bearer {token.strip()}"),)
    with narrow.channel:
        assert narrow.execute("hello", {"name": "x"}).execution.subject == "narrow"
        events = list(narrow.executor.ExecuteStream(narrow.request("hello", {"name": "x"}), metadata=narrow.metadata))
        assert events[-1].execution.subject == "narrow"
        calls = [
            lambda: narrow.execute("items", 1),
            lambda: narrow.modules.ListModules(narrow.pb.ListModulesRequest(), metadata=narrow.metadata),
            lambda: narrow.executor.GetExecution(
                narrow.pb.GetExecutionRequest(id=events[-1].execution.id), metadata=narrow.metadata
            ),
        ]
        assert [refused(call).code().name for call in calls] == ["NOT_FOUND", "PERMISSION_DENIED", "PERMISSION_DENIED"]


def test_messages_over_the_limit_are_refused_and_large_ones_are_not(server: Server, stubs: tuple[Any, Any]) -> None:
    unlimited = (("grpc.max_receive_message_length", -1), ("grpc.max_send_message_length", -1))
    client = Client(server, stubs, *unlimited)
    with client.channel:
        answer = client.execute("large", 8_000_000)
        assert len(answer.result_json) == 8_000_002
        problem = refused(lambda: client.execute("hello", "x" * 17_000_000))
        assert problem.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert trailers(problem)["operato-kind"] == "too_large"
        assert client.execute("hello", {"name": "x" * 1_000_000}).result_json


def test_compressed_messages_are_refused_with_the_right_status(client: Client) -> None:
    call = client.executor.Execute
    request = client.request("hello", {"name": "x" * 10_000})
    problem = refused(lambda: call(request, metadata=client.metadata, compression=grpc.Compression.Gzip))

    assert problem.code() == grpc.StatusCode.UNIMPLEMENTED


# The end of a call


def pids(home: Path) -> list[str]:
    """Return the processes with a working directory below a folder."""
    found = []
    for process in Path("/proc").iterdir():
        if process.name.isdigit():
            try:
                if str(home / "data" / "work") in str((process / "cwd").readlink()):
                    found.append(process.name)
            except OSError:
                continue
    return found


def ended_kind(server: Server, identity: str | None = None) -> str | None:
    """Return the kind of the newest failed execution of `slow`, by REST."""
    items = server.client.get("/executions", params={"module": "slow", "limit": 1}).json()["items"]
    if not items or items[0]["status"] in ("queued", "running"):
        return None
    kind: str = items[0]["error"]["kind"]
    return kind


@pytest.mark.parametrize("how", ["cancel", "deadline", "close", "stream cancel", "stream deadline"])
def test_a_disconnect_ends_the_execution(server: Server, stubs: tuple[Any, Any], tmp_path: Path, how: str) -> None:
    client = Client(server, stubs)
    mark = tmp_path / "begun"
    request = client.request("slow", str(mark))
    seconds = 3.0 if "deadline" in how else PATIENCE
    if how.startswith("stream"):
        call: Any = client.executor.ExecuteStream(request, metadata=client.metadata, timeout=seconds)
        identity = dict(call.initial_metadata())["operato-execution-id"]
    else:
        call = client.executor.Execute.future(request, metadata=client.metadata, timeout=seconds)
        identity = None
    wait_for(mark.exists)
    before = len(pids(server.home))
    if "cancel" in how:
        call.cancel()
    elif how == "close":
        client.channel.close()

    wait_for(lambda: ended_kind(server) == "cancelled")
    assert before
    if identity is not None:
        assert server.client.get(f"/executions/{identity}").json()["status"] == "cancelled"
    if "deadline" in how:
        assert call.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    client.channel.close()


def test_an_execution_with_a_key_continues_for_a_client_that_calls_again(server: Server, client: Client) -> None:
    metadata = (*client.metadata, ("idempotency-key", "again"))
    request = client.request("hello", {"name": "x"})
    first, second = (client.executor.Execute(request, metadata=metadata, timeout=PATIENCE) for _ in range(2))
    other = refused(lambda: client.executor.Execute(client.request("hello", {"name": "y"}), metadata=metadata))

    assert first.execution.id == second.execution.id
    assert other.code() == grpc.StatusCode.ALREADY_EXISTS


# Streams


def test_a_stream_sends_events_as_they_happen(client: Client) -> None:
    events = list(client.executor.ExecuteStream(client.request("chatty", 3), metadata=client.metadata))
    kinds = [event.WhichOneof("event") for event in events]

    assert [event.seq for event in events] == list(range(len(events)))
    assert kinds[-1] == "result"
    assert {"status", "progress", "output"} <= set(kinds)
    text = "".join(event.output.text for event in events if event.WhichOneof("event") == "output")
    assert text == "".join(f"{n} {'x' * 100}\n" for n in range(3))
    assert events[-1].result.result_json == "3"
    assert events[-1].execution.status == client.pb.EXECUTION_STATUS_SUCCEEDED
    assert not any(event.HasField("execution") for event in events[:-1])


def test_items_of_a_generator_come_as_events(client: Client) -> None:
    events = list(client.executor.ExecuteStream(client.request("items", 3), metadata=client.metadata))

    items = [event.item.value_json for event in events if event.WhichOneof("event") == "item"]
    assert items == ["0", "1", "2"]
    assert events[-1].result.result_json == "[0,1,2]"


def test_a_stream_that_fails_ends_with_the_error(client: Client) -> None:
    events = list(client.executor.ExecuteStream(client.request("hello", {}), metadata=client.metadata))

    assert events[-1].error.type == "KeyError"
    assert events[-1].execution.error.type == "KeyError"


def test_a_slow_reader_does_not_delay_the_execution_and_learns_of_dropped_events(
    server: Server, stubs: tuple[Any, Any]
) -> None:
    client = Client(server, stubs, ("grpc.http2.lookahead_bytes", 1024))
    lines = 200_000  # of a hundred bytes: many times the kept output
    with client.channel:
        call = client.executor.ExecuteStream(client.request("chatty", lines), metadata=client.metadata)
        identity = dict(call.initial_metadata())["operato-execution-id"]
        wait_for(lambda: server.client.get(f"/executions/{identity}").json()["status"] == "succeeded")
        events = list(call)

    kinds = [event.WhichOneof("event") for event in events]
    assert "dropped" in kinds
    missed = sum(event.dropped.bytes for event in events if event.WhichOneof("event") == "dropped")
    read = sum(len(event.output.text) for event in events if event.WhichOneof("event") == "output")
    printed = sum(len(f"{n} {'x' * 100}\n") for n in range(lines))
    assert read < printed <= read + missed  # a partly read gap counts as a whole
    assert kinds[-1] == "result"


# Submitted executions


def test_submit_get_list_watch_cancel(server: Server, client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    submitted = client.executor.Submit(client.request("slow", str(mark)), metadata=client.metadata).execution
    assert submitted.asynchronous
    watch = client.executor.WatchExecution(
        client.pb.WatchExecutionRequest(id=submitted.id), metadata=client.metadata, timeout=PATIENCE
    )
    wait_for(mark.exists)
    running = client.executor.GetExecution(client.pb.GetExecutionRequest(id=submitted.id), metadata=client.metadata)
    cancelled = client.executor.CancelExecution(
        client.pb.CancelExecutionRequest(id=submitted.id), metadata=client.metadata
    ).execution
    events = list(watch)
    listed = client.executor.ListExecutions(
        client.pb.ListExecutionsRequest(
            module_name="slow",
            status=client.pb.EXECUTION_STATUS_CANCELLED,
            kind=client.pb.ERROR_KIND_CANCELLED,
            subject="test",
            since=submitted.created_at - 1000,
            until=submitted.created_at + 1000,
        ),
        metadata=client.metadata,
    )

    assert running.execution.status == client.pb.EXECUTION_STATUS_RUNNING
    assert json.loads(running.input_json) == str(mark)
    assert cancelled.status == client.pb.EXECUTION_STATUS_CANCELLED
    assert events[-1].WhichOneof("event") == "error"
    assert events[-1].execution.id == submitted.id
    assert submitted.id in [execution.id for execution in listed.executions]


def test_watching_begins_at_the_requested_event(client: Client) -> None:
    done = client.execute("chatty", 3).execution
    request = client.pb.WatchExecutionRequest(id=done.id)
    everything = list(client.executor.WatchExecution(request, metadata=client.metadata))
    request.from_seq = everything[-1].seq
    rest = list(client.executor.WatchExecution(request, metadata=client.metadata))

    assert [event.seq for event in rest] == [everything[-1].seq]
    assert rest[0].execution.id == done.id


def test_a_disconnected_watcher_does_not_end_the_execution(server: Server, client: Client, tmp_path: Path) -> None:
    mark = tmp_path / "begun"
    submitted = client.executor.Submit(client.request("slow", str(mark)), metadata=client.metadata).execution
    request = client.pb.WatchExecutionRequest(id=submitted.id)
    watch = client.executor.WatchExecution(request, metadata=client.metadata)
    next(watch)
    wait_for(mark.exists)
    watch.cancel()
    assert client.execute("hello", {"name": "x"}).result_json
    record = client.executor.GetExecution(client.pb.GetExecutionRequest(id=submitted.id), metadata=client.metadata)
    assert record.execution.status == client.pb.EXECUTION_STATUS_RUNNING
    cancel = client.pb.CancelExecutionRequest(id=submitted.id)
    client.executor.CancelExecution(cancel, metadata=client.metadata)


@pytest.mark.parametrize("verb", ["GetExecution", "CancelExecution", "WatchExecution"])
def test_unknown_executions(client: Client, verb: str) -> None:
    request = getattr(client.pb, f"{verb}Request")(id="01a20c8c-9cc5-7c7e-b28a-f7942321828e")

    def call() -> None:
        answer = getattr(client.executor, verb)(request, metadata=client.metadata)
        if verb == "WatchExecution":
            list(answer)

    assert refused(call).code() == grpc.StatusCode.NOT_FOUND


def test_lists_can_be_paged(client: Client) -> None:
    for _ in range(3):
        client.execute("items", 1)
    seen: list[str] = []
    request = client.pb.ListExecutionsRequest(module_name="items", limit=2)
    while True:
        page = client.executor.ListExecutions(request, metadata=client.metadata)
        seen += [execution.id for execution in page.executions]
        if not page.cursor:
            break
        request.cursor = page.cursor

    assert len(seen) == len(set(seen)) >= 3
    assert seen == sorted(seen, reverse=True)


@pytest.mark.parametrize(
    ("fields", "field"), [({"limit": -1}, "limit"), ({"limit": 501}, "limit"), ({"cursor": "?"}, "cursor")]
)
def test_lists_refuse_invalid_filters(client: Client, fields: dict[str, Any], field: str) -> None:
    request = client.pb.ListExecutionsRequest(**fields)
    problem = refused(lambda: client.executor.ListExecutions(request, metadata=client.metadata))

    assert (problem.code(), trailers(problem)["operato-field"]) == (grpc.StatusCode.INVALID_ARGUMENT, field)


# Batches


def test_a_batch_answers_every_input_by_its_id(client: Client) -> None:
    inputs = {str(n): json.dumps({"name": str(n)}) for n in range(60)} | {"bad": "{", "fails": "{}"}
    answers = {answer.id: answer for answer in client.batch({"module_name": "hello", "parallelism": 5}, inputs)}

    assert answers.keys() == inputs.keys()
    assert json.loads(answers["7"].response.result_json) == {"message": "Hello, 7!"}
    assert answers["bad"].refused.kind == client.pb.ERROR_KIND_BAD_INPUT
    assert answers["fails"].response.execution.error.type == "KeyError"


def test_a_batch_runs_in_parallel_up_to_its_limit(client: Client) -> None:
    answers = client.batch({"module_name": "brief", "parallelism": 2}, {str(n): "0.02" for n in range(20)})
    spans = [(a.response.execution.created_at, a.response.execution.finished_at) for a in answers]

    assert max(sum(begun <= moment < ended for begun, ended in spans) for moment, _ in spans) == 2


@pytest.mark.parametrize(
    ("start", "inputs", "status", "field"),
    [
        ({"module_name": "nothing"}, {}, grpc.StatusCode.NOT_FOUND, "name"),
        ({"module_name": "hello", "parallelism": 257}, {}, grpc.StatusCode.INVALID_ARGUMENT, "parallelism"),
        ({"module_name": "hello"}, {"x" * 257: "{}"}, grpc.StatusCode.INVALID_ARGUMENT, "input.id"),
    ],
)
def test_invalid_batches(
    client: Client, start: dict[str, Any], inputs: dict[str, str], status: Any, field: str
) -> None:
    problem = refused(lambda: client.batch(start, inputs))

    assert (problem.code(), trailers(problem)["operato-field"]) == (status, field)


def test_a_batch_begins_with_its_start(client: Client) -> None:
    pb = client.pb
    messages = [pb.ExecuteBatchRequest(input=pb.BatchInput(id="1")), pb.ExecuteBatchRequest()]
    problem = refused(lambda: list(client.executor.ExecuteBatch(iter(messages), metadata=client.metadata)))

    assert (problem.code(), trailers(problem)["operato-field"]) == (grpc.StatusCode.INVALID_ARGUMENT, "start")


# Modules, health, reflection


def test_modules_and_environments(client: Client) -> None:
    listed = client.modules.ListModules(client.pb.ListModulesRequest(limit=3), metadata=client.metadata)
    rest = client.modules.ListModules(
        client.pb.ListModulesRequest(cursor=listed.cursor, envs=[client.pb.ENVIRONMENT_KIND_INLINE]),
        metadata=client.metadata,
    )
    one = client.modules.GetModule(client.pb.GetModuleRequest(module_name="hello"), metadata=client.metadata).module
    kinds = client.modules.ListEnvironments(client.pb.ListEnvironmentsRequest(), metadata=client.metadata)
    stats = client.modules.GetModuleStats(
        client.pb.GetModuleStatsRequest(module_name="hello"), metadata=client.metadata
    )

    nodes = client.modules.ListNodes(client.pb.ListNodesRequest(), metadata=client.metadata)

    assert (nodes.node, nodes.connected, list(nodes.nodes)) == ("", False, [])
    assert [module.name for module in listed.modules] == ["brief", "chatty", "elsewhere"]
    assert [module.name for module in rest.modules] == ["hello", "hello-world", "items", "large", "slow", "until"]
    assert json.loads(one.spec_json)["isolation"] == "warm"
    assert (one.env, len(one.digest) > 20) == (client.pb.ENVIRONMENT_KIND_INLINE, True)
    assert (client.pb.ENVIRONMENT_KIND_INLINE, True) in [(e.kind, e.available) for e in kinds.environments]
    assert stats.module_name == "hello"
    assert stats.total == stats.succeeded + stats.failed + stats.cancelled


def test_modules_are_registered_versioned_and_deleted(client: Client) -> None:
    def described(result: int, **fields: Any) -> str:
        return json.dumps({"name": "made", "env": "inline", "code": f"def handler(input): return {result}", **fields})

    def ask(verb: str, **fields: Any) -> Any:
        kind = "PatchModuleRequest" if verb == "PatchModule" else f"{verb}Request"
        return getattr(client.modules, verb)(getattr(client.pb, kind)(**fields), metadata=client.metadata, timeout=30)

    def called(version: str = "") -> Any:
        return json.loads(client.execute("made", None, version=version).result_json)

    first = ask("RegisterModule", module_json=described(1, tags=["a"]), create=True, prepare=True)
    assert (first.created, first.active, called()) == (True, True, 1)
    second = ask("RegisterModule", module_json=described(2), inactive=True, revision=first.revision)
    assert (second.created, second.active, called(), called(second.module.version)) == (True, False, 1, 2)
    activated = ask("ActivateModule", module_name="made", version=second.module.version)
    assert (called(), activated.revision > second.revision) == (2, True)
    patched = ask("PatchModule", module_name="made", patch_json='{"description": "of note"}')
    assert (patched.module.description, called()) == ("of note", 2)

    listed = ask("ListModuleVersions", module_name="made")
    assert [each.version for each in listed.versions] == [
        patched.module.version,
        second.module.version,
        first.module.version,
    ]
    assert (listed.active, listed.revision) == (patched.module.version, patched.revision)

    for verb, fields, status, field in (
        ("RegisterModule", {"module_json": described(3), "create": True}, grpc.StatusCode.ALREADY_EXISTS, "name"),
        ("RegisterModule", {"module_json": described(3), "revision": 1}, grpc.StatusCode.ALREADY_EXISTS, "if-match"),
        ("RegisterModule", {"module_json": "[1]"}, grpc.StatusCode.INVALID_ARGUMENT, "module_json"),
        ("PatchModule", {"module_name": "hello", "patch_json": "{}"}, grpc.StatusCode.ALREADY_EXISTS, "name"),
        ("ActivateModule", {"module_name": "made", "version": "x"}, grpc.StatusCode.NOT_FOUND, "version"),
        ("DeleteModule", {"module_name": "nothing"}, grpc.StatusCode.NOT_FOUND, "name"),
    ):
        problem = refused(lambda verb=verb, fields=fields: ask(verb, **fields))
        assert (problem.code(), trailers(problem)["operato-field"]) == (status, field), verb

    ask("DeleteModule", module_name="made", version=first.module.version)
    ask("DeleteModule", module_name="made")
    assert refused(called).code() == grpc.StatusCode.NOT_FOUND


def test_the_block_of_a_file_describes_the_module(client: Client) -> None:
    code = '# /// script\n# dependencies = []\n# [tool.operato]\n# name = "blocked"\n# tags = ["block"]\n# ///\n'
    archive = pack({"job.py": (code + "def handler(input): return 3\n").encode()})
    made = client.modules.RegisterModule(
        client.pb.RegisterModuleRequest(archive=archive), metadata=client.metadata, timeout=30
    )
    fields = json.loads(made.module.spec_json)
    assert (made.module.name, list(made.module.tags), fields["packages_from"]) == ("blocked", ["block"], [])
    assert json.loads(client.execute("blocked", None).result_json) == 3
    client.modules.DeleteModule(
        client.pb.DeleteModuleRequest(module_name="blocked"), metadata=client.metadata, timeout=30
    )


# Other clients


def other_client(server: Server, stubs: tuple[Any, Any], kind: str) -> dict[str, Any]:
    folder = Path(stubs[0].__file__).parent
    (folder / "aio").unlink(missing_ok=True)
    command = [sys.executable, str(Path(__file__).with_name("grpc_clients.py")), kind, str(server.ready["grpc"][0][1])]
    out = subprocess.run([*command, server.token], cwd=folder, check=True, capture_output=True, text=True, timeout=60)
    answer: dict[str, Any] = json.loads(out.stdout)
    return answer


def test_grpc_aio(server: Server, stubs: tuple[Any, Any]) -> None:
    (Path(stubs[0].__file__).parent / "aio").unlink(missing_ok=True)
    answer = other_client(server, stubs, "aio")

    assert answer["result"] == {"message": "Hello, you!"}
    assert answer["events"][-1] == "result"
    assert answer["answers"] == list(range(20))
    assert answer["cancelled"] == "CancelledError"


def test_betterproto_on_grpclib(server: Server, stubs: tuple[Any, Any]) -> None:
    answer = other_client(server, stubs, "betterproto")

    assert answer["result"] == {"message": "Hello, you!"}
    assert answer["last"] == "SUCCEEDED"
    assert answer["modules"] == [
        "brief",
        "chatty",
        "elsewhere",
        "hello",
        "hello-world",
        "items",
        "large",
        "slow",
        "until",
    ]
    assert answer["status"] == "NOT_FOUND"


def test_a_file_goes_in_and_out_in_pieces(client: Client) -> None:
    data = random.Random(1).randbytes(5_000_000)
    wanted = f"sha256:{hashlib.sha256(data).hexdigest()}"

    def pieces() -> Iterator[Any]:
        yield client.pb.PutFileRequest(name="a.bin", digest=wanted, size=len(data))
        for at in range(0, len(data), 1_000_000):
            yield client.pb.PutFileRequest(data=data[at : at + 1_000_000])

    stored = client.files.PutFile(pieces(), metadata=client.metadata, timeout=PATIENCE).file
    request = client.pb.GetFileRequest(id=stored.id, offset=1_000_000)
    answers = list(client.files.GetFile(request, metadata=client.metadata, timeout=PATIENCE))

    assert (stored.id, stored.size) == (wanted, len(data))
    assert answers[0].file == stored
    assert b"".join(answer.data for answer in answers) == data[1_000_000:]
    with pytest.raises(grpc.RpcError) as refused:
        client.files.DeleteFile(client.pb.DeleteFileRequest(id="x"), metadata=client.metadata, timeout=PATIENCE)
    assert refused.value.code() is grpc.StatusCode.NOT_FOUND


def test_health_and_reflection_need_no_token(server: Server, stubs: tuple[Any, Any]) -> None:
    answer = other_client(server, stubs, "health")

    assert answer["status"] == "SERVING"
    assert answer["services"] == [
        "grpc.health.v1.Health",
        "operato.runner.v1.ExecutorService",
        "operato.runner.v1.FileService",
        "operato.runner.v1.KeyService",
        "operato.runner.v1.ModuleService",
        "operato.runner.v1.ScheduleService",
    ]
    assert {"Execute", "ExecuteBatch", "WatchExecution"} <= set(answer["methods"])


@pytest.mark.parametrize("page", ["README.md", "docs/calling/grpc.md"])
def test_the_examples_of_the_documentation(server: Server, stubs: tuple[Any, Any], page: str) -> None:
    (example,) = re.findall(
        r"```python\n(import os\n\nimport executor_pb2.*?)```", (ROOT / page).read_text(), re.DOTALL
    )
    host, port = server.ready["grpc"][0]
    out = subprocess.run(
        [sys.executable, "-c", example.replace("127.0.0.1:50051", f"{host}:{port}")],
        cwd=Path(stubs[0].__file__).parent,
        env={"TOKEN": server.token, "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout.splitlines()

    assert out[0].startswith('"Hello, Ada"')
    if page == "README.md":
        assert out[1:] == []
    else:
        assert out[1:3] == ["0 status", "1 result"]
        assert sorted(out[3:]) == sorted(f'{n} "Hello, {n}"' for n in range(100))


def test_the_example_of_the_readme_says_why_a_call_failed(server: Server, stubs: tuple[Any, Any]) -> None:
    (example,) = re.findall(
        r"```python\n(import os\n\nimport executor_pb2.*?)```", (ROOT / "README.md").read_text(), re.DOTALL
    )
    host, port = server.ready["grpc"][0]
    program = example.replace("127.0.0.1:50051", f"{host}:{port}").replace('{"name": "Ada"}', "{}")
    ran = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(stubs[0].__file__).parent,
        env={"TOKEN": server.token, "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert ran.stdout == "failed: 'name'\n"


# The end of the server


def test_sigterm_lets_calls_end_and_refuses_others(tmp_path: Path, stubs: tuple[Any, Any]) -> None:
    with running(tmp_path, MODULES, "--drain-timeout", "20") as server:
        client, watcher = Client(server, stubs), Client(server, stubs)
        with client.channel, watcher.channel:
            states = watcher.watch_health(health_pb2.HealthCheckRequest(), timeout=PATIENCE)
            assert next(states).status == health_pb2.HealthCheckResponse.SERVING
            mark = tmp_path / "mark"
            request = client.request("until", str(mark))
            call = client.executor.Execute.future(request, metadata=client.metadata, timeout=PATIENCE)
            wait_for((tmp_path / "mark-begun").exists)

            server.process.send_signal(signal.SIGTERM)
            assert next(states).status == health_pb2.HealthCheckResponse.NOT_SERVING
            problem = refused(lambda: watcher.execute("hello", {"name": "x"}))
            assert problem.code() == grpc.StatusCode.UNAVAILABLE
            mark.touch()
            assert call.result().result_json == '"seen"'
            assert server.stop(None) == 0


def test_sigterm_cancels_calls_that_do_not_end(tmp_path: Path, stubs: tuple[Any, Any]) -> None:
    with running(tmp_path, MODULES) as server:
        client = Client(server, stubs)
        with client.channel:
            mark = tmp_path / "begun"
            request = client.request("slow", str(mark))
            call = client.executor.Execute.future(request, metadata=client.metadata, timeout=PATIENCE)
            wait_for(mark.exists)

            assert server.stop() == 3
            assert call.result().execution.error.kind == client.pb.ERROR_KIND_SHUTDOWN
            wait_for(lambda: pids(tmp_path) == [])


def test_both_doors_with_tls(tmp_path: Path, stubs: tuple[Any, Any]) -> None:
    authority = Authority(tmp_path)
    signed = authority.sign("server")
    options = ["--tls-certificate-file", str(signed.certificate), "--tls-key-file", str(signed.key)]
    with running(tmp_path, MODULES, *options) as server:
        credentials = grpc.ssl_channel_credentials(authority.file.read_bytes())
        address = f"localhost:{server.ready['grpc'][0][1]}"
        pb, made = stubs
        with grpc.secure_channel(address, credentials) as channel:
            executor = made.ExecutorServiceStub(channel)
            request = pb.ExecuteRequest(module_name="hello", input_json='{"name": "x"}')
            metadata = (("authorization", f"Bearer {server.token}"),)
            assert executor.Execute(request, metadata=metadata, timeout=PATIENCE).result_json
        url = f"https://localhost:{server.ready['rest'][0][1]}/modules/execute/hello"
        context = ssl.create_default_context(cafile=authority.file)
        with httpx.Client(verify=context, trust_env=False, headers=dict(metadata)) as client:
            assert client.post(url, json={"name": "x"}).status_code == 200
        assert server.stop() == 0


def test_without_grpc_its_libraries_are_not_imported(tmp_path: Path) -> None:
    with running(tmp_path, MODULES, "--no-grpc") as server:
        maps = Path(f"/proc/{server.process.pid}/maps").read_text()

        assert server.ready["grpc"] == []
        assert "google/_upb" not in maps
        assert server.execute("hello", {"name": "x"}).status_code == 200
        assert server.stop() == 0


def test_without_rest_the_web_framework_is_not_imported(tmp_path: Path) -> None:
    """Importing it takes a quarter of a second."""
    program = (
        "import sys\nfrom runner.cli import main\ntry:\n    main()\nfinally:\n    print(*sys.modules, file=sys.stderr)"
    )
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    with running(tmp_path, MODULES, "--no-rest", program=(sys.executable, "-c", program), environ=environ) as server:
        assert server.ready["rest"] == []
        assert server.stop() == 0
    imported = set((tmp_path / "log").read_text().split())

    assert {"runner.serve", "runner.grpc"} <= imported
    assert not {"quart", "quart_trio", "werkzeug", "jinja2", "runner.rest"} & imported


def test_a_port_in_use_is_reported_in_one_line(server: Server, tmp_path: Path) -> None:
    (tmp_path / "modules.yaml").write_text(MODULES)
    port = str(server.ready["grpc"][0][1])
    command = [sys.executable, str(ROOT / "main.py"), "--config", "modules.yaml", "--rest-port", "0"]
    ended = subprocess.run(
        [*command, "--grpc-port", port], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )

    assert ended.returncode == 74
    assert "Traceback" not in ended.stderr
    assert f"port {port} of 127.0.0.1 is in use; choose another with --grpc-port" in ended.stderr.splitlines()[-1]
