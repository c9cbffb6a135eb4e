"""Contract: handlers call modules: in every way, without deadlock at any limit, and nothing is left of those that end."""

from __future__ import annotations

import json

import trio
import trio.lowlevel

from tests.support import ANYBODY, inline, open_service

ADD = "def handler(input):\n    return input['a'] + input['b']\n"
CALLER = """
from operato import context

def handler(input):
    return context().call("add", {"a": input, "b": 1})
"""


async def test_a_handler_calls_a_module(tmp_path):
    async with open_service(
        tmp_path, [inline("add", ADD), inline("caller", CALLER, calls_modules=("add",))]
    ) as service:
        with trio.fail_after(20):
            ended = await service.execute(ANYBODY, "caller", b"41")
    print(ended.failure)
    assert json.loads(ended.result) == 42
    await trio.lowlevel.checkpoint()
