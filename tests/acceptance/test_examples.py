"""Acceptance: each example of EXAMPLES.md, typed into a shell against the real server, prints what the page says."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.server_process import ROOT, running, url_of

START = "Start"


class Block(NamedTuple):
    language: str
    text: str


def sections() -> dict[str, tuple[str, list[Block]]]:
    """Return prose and blocks of each heading."""
    found = {}
    for part in re.split(r"^## ", (ROOT / "EXAMPLES.md").read_text(), flags=re.MULTILINE)[1:]:
        heading, _, body = part.partition("\n")
        blocks = [Block(*block) for block in re.findall(r"^```(\w+)\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)]
        found[heading] = (body, blocks)
    return found


SECTIONS = sections()
EXAMPLES = [heading for heading in SECTIONS if heading != START]


class Terminal:
    """A shell in the folder of the runner, with the program on its PATH and another address than the page has."""

    def __init__(self, home: Path, url: str) -> None:
        self.home, self.url = home, url
        programs = home / "bin"
        programs.mkdir()
        for name, command in {
            "operato-runner": [sys.executable, str(ROOT / "main.py")],
            "python": [sys.executable],
        }.items():
            (programs / name).write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
            (programs / name).chmod(0o755)
        self.environ = clean() | {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(home),
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
            "OPERATO_URL": url,
        }

    def here(self, text: str) -> str:
        return text.replace("127.0.0.1:8000", self.url.removeprefix("http://"))

    def type(self, blocks: list[str]) -> list[str]:
        """Return what each block printed on standard output."""
        script = "".join(self.here(block) + "printf '\\0'\n" for block in blocks)
        command = ["bash", "-euo", "pipefail", "-c", script]
        done = subprocess.run(
            command,
            check=False,
            cwd=self.home,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, f"exit code {done.returncode}:\n{done.stdout}\n{done.stderr}"
        return done.stdout.split("\0")[:-1]


def clean() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("OPERATO_")}


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Terminal]:
    home = tmp_path_factory.mktemp("examples")
    serve, token = [block.text for block in SECTIONS[START][1]]
    assert serve.endswith("operato-runner serve\n")
    variables = dict(re.findall(r"^export (\w+)=(\S+)$", serve, re.MULTILINE))
    modules = "\n".join(block.text for _, blocks in SECTIONS.values() for block in blocks if block.language == "yaml")
    with running(home, modules, environ=clean() | variables) as server:
        opened = Terminal(home, url_of(server))
        (opened.environ["TOKEN"],) = opened.type([token + 'printf %s "$TOKEN"\n'])
        yield opened


def pattern(expected: str) -> str:
    return ".*".join(re.escape(piece) for piece in expected.rstrip().split("..."))


@pytest.mark.parametrize("heading", EXAMPLES)
def test_an_example_prints_what_the_page_says(terminal: Terminal, heading: str) -> None:
    body, blocks = SECTIONS[heading]
    languages = [block.language for block in blocks]
    outputs = [block.text for block in blocks if block.language in ("json", "text")]
    commands = [block.text for block in blocks if block.language == "sh"]
    order = [language for language in languages if language not in ("yaml", "python")]
    assert order
    assert all(a == "sh" and b in ("json", "text") for a, b in zip(order[::2], order[1::2], strict=True))
    for name, block in zip(
        re.findall(r"`(\w+\.py)`", body), [b for b in blocks if b.language == "python"], strict=True
    ):
        (terminal.home / name).write_text(terminal.here(block.text))
    for command, expected, printed in zip(commands, outputs, terminal.type(commands), strict=True):
        same = re.fullmatch(pattern(expected), printed.rstrip(), re.DOTALL)
        assert same, f"{heading}: {command}\nis to print\n{expected}\nand printed\n{printed}"


def test_every_block_of_the_page_belongs_to_an_example() -> None:
    page = (ROOT / "EXAMPLES.md").read_text()
    assert page.count("\n```") == 2 * sum(len(blocks) for _, blocks in SECTIONS.values())
    assert len(EXAMPLES) >= 8
