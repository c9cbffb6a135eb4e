"""Acceptance: `operato-runner mcp`, with the official client: against a server, and with the modules file alone."""

from __future__ import annotations

import asyncio
import json
import os
import sys

import httpx2
import mcp
import pytest
from mcp.client.stdio import StdioServerParameters
from mcp.client.streamable_http import streamable_http_client

from tests.server_process import ROOT, Commands, ended, running, url_of

MODULES = """
modules:
  - name: add
    env: inline
    description: Adds two numbers.
    code: |
      def handler(a: int, b: int = 1, context=None) -> int:
          print("adding", flush=True)
          context.progress(1, 2, "half")
          return a + b
  - name: raw
    env: inline
    isolation: none
    code: |
      def handler(input):
          print("in the process of the runner", flush=True)
          return input
  - name: hidden
    env: inline
    tool: false
    code: "def handler(input): return 1"
"""


async def use(target, mode):
    heard = []

    async def on_progress(progress, total, message):
        heard.append((progress, total, message))

    async def on_log(params):
        heard.append(params.data)

    async with mcp.Client(
        target, mode=mode, read_timeout_seconds=60, logging_callback=on_log, log_level="info"
    ) as client:
        names = [tool.name for tool in (await client.list_tools()).tools]
        added = await client.call_tool("add", {"a": 2}, progress_callback=on_progress)
        raw = await client.call_tool("raw", {"x": 1})
        return client.protocol_version, names, added.content[0].text, raw.structured_content, heard


def environ_of(home, **more):
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OPERATO_")}
    return StdioServerParameters(
        command=sys.executable,
        args=[str(ROOT / "main.py"), "mcp", *more.pop("args", ())],
        cwd=home,
        env={**clean, **more},
    )


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("mcp"), MODULES) as found:
        yield found


@pytest.mark.parametrize("mode", ["2026-07-28", "legacy"])
def test_a_desktop_client_calls_a_running_server(server, mode):
    target = environ_of(server.home, OPERATO_URL=url_of(server))
    version, names, added, raw, heard = asyncio.run(use(target, mode))
    found = server.client.get("/executions?module=add&limit=1").json()["items"][0]

    assert version == ("2025-11-25" if mode == "legacy" else mode)
    assert (names, added, raw) == (["add", "raw"], "3", {"x": 1})
    assert (1, 2, "half") in heard
    assert ("adding\n" in heard) is (mode != "legacy")
    assert found["via"].startswith("mcp ")
    assert found["subject"] == "local"


def test_a_client_over_http_calls_the_same(server):
    async def main():
        headers = {"authorization": f"Bearer {server.token}"}
        async with httpx2.AsyncClient(headers=headers, timeout=60, trust_env=False) as http:
            return await use(streamable_http_client(f"{url_of(server)}/mcp", http_client=http), "auto")

    version, names, added, _, heard = asyncio.run(main())
    assert (version, names, added) == ("2026-07-28", ["add", "raw"], "3")
    assert "adding\n" in heard


@pytest.mark.parametrize("mode", ["auto", "legacy"])
def test_a_desktop_client_calls_the_modules_file(tmp_path, mode):
    (tmp_path / "modules.yaml").write_text(MODULES)
    version, names, added, raw, heard = asyncio.run(use(environ_of(tmp_path, args=["--local"]), mode))

    assert version == ("2025-11-25" if mode == "legacy" else "2026-07-28")
    assert (names, added, raw) == (["add", "raw"], "3", {"x": 1})
    assert (1, 2, "half") in heard
    assert not (tmp_path / "operato-data" / "history.db").exists()


def lines(*messages):
    return b"".join(json.dumps(each).encode() + b"\n" for each in messages)


META = {"io.modelcontextprotocol/protocolVersion": "2026-07-28", "io.modelcontextprotocol/clientCapabilities": {}}


@pytest.mark.parametrize("local", [True, False])
def test_mistakes_on_standard_input_are_answered(server, local):
    commands = Commands(server.home, url_of(server), server.token)
    process = commands.start("mcp", *(["--local"] if local else []), stdin=-1)
    good = {"jsonrpc": "2.0", "id": 7, "method": "server/discover", "params": {"_meta": META}}
    asked = b"nonsense\n[1]\n\n" + lines(
        {"jsonrpc": "2.0", "id": "a", "method": "nothing", "params": {"_meta": META}}, good
    )
    process.stdin.write(asked)
    process.stdin.flush()
    answers = [json.loads(process.stdout.readline()) for _ in range(4 if local else 2)]
    code, out, _ = ended(process)

    by_id = {each.get("id"): each for each in answers}
    assert by_id["a"]["error"]["code"] == -32601
    assert "tools" in by_id[7]["result"]["capabilities"]
    if local:
        assert by_id[None]["error"]["code"] in (-32700, -32600)
    assert (code, out) == (0, "")


def test_a_wrong_token_is_told_to_the_agent(server):
    commands = Commands(server.home, url_of(server), "x.y.z")
    process = commands.start("mcp", stdin=-1)
    asked = lines({"jsonrpc": "2.0", "id": 1, "method": "tools/list", "params": {"_meta": META}})
    process.stdin.write(asked)
    process.stdin.flush()
    answer = json.loads(process.stdout.readline())
    code, _, _ = ended(process)

    assert (answer["id"], answer["error"]["code"], code) == (1, 401, 0)


def test_a_named_server_that_does_not_answer_is_an_error(tmp_path):
    (tmp_path / "modules.yaml").write_text(MODULES)
    code, out, err = Commands(tmp_path, "http://127.0.0.1:9", None)("mcp")

    assert (code, out) == (9, "")
    assert "127.0.0.1:9" in err
