"""Acceptance: the examples of the documentation, typed into a shell against a real server, print what they show."""

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

START = "docs/examples.md: Start"
PAGES = ("docs/examples.md", "docs/recipes.md", "docs/typed.md", "README.md")
HEADING = re.compile(r"^##+ (.*)\n", re.MULTILINE)
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
OUTPUTS = ("json", "text")


class Block(NamedTuple):
    language: str
    text: str


def sections() -> dict[str, tuple[str, list[Block]]]:
    """Return prose and blocks of each heading, by page and heading."""
    found = {}
    for page in PAGES:
        _, *parts = HEADING.split((ROOT / page).read_text())
        for heading, body in zip(parts[::2], parts[1::2], strict=True):
            found[f"{page}: {heading}"] = (body, [Block(*block) for block in FENCE.findall(body)])
    return found


def prints(blocks: list[Block]) -> bool:
    """Return whether commands are followed by their output: then the section is an example that is run."""
    languages = [block.language for block in blocks]
    return "sh" in languages and any(language in OUTPUTS for language in languages)


SECTIONS = sections()
EXAMPLES = [name for name, (_, blocks) in SECTIONS.items() if prints(blocks)]


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
    examples = [block for name in EXAMPLES for block in SECTIONS[name][1]]
    modules = "\n".join(block.text for block in examples if block.language == "yaml") + hello_world()
    with running(home, modules, environ=clean() | variables) as server:
        opened = Terminal(home, url_of(server))
        (opened.environ["TOKEN"],) = opened.type([token + 'printf %s "$TOKEN"\n'])
        yield opened


def hello_world() -> str:
    """Return the module that the README calls, as the modules file of the repository has it."""
    (entry,) = re.findall(
        r"^  - name: hello-world\n(?:(?:    .*)?\n)+", (ROOT / "modules.yaml").read_text(), re.MULTILINE
    )
    return entry


def pattern(expected: str) -> str:
    return ".*".join(re.escape(piece) for piece in expected.rstrip().split("..."))


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_prints_what_its_page_says(terminal: Terminal, name: str) -> None:
    body, blocks = SECTIONS[name]
    outputs = [block.text for block in blocks if block.language in OUTPUTS]
    commands = [block.text for block in blocks if block.language == "sh"]
    order = [block.language for block in blocks if block.language in ("sh", *OUTPUTS)]
    assert all(a == "sh" and b in OUTPUTS for a, b in zip(order[::2], order[1::2], strict=True))
    programs = [block for block in blocks if block.language == "python"]
    files = re.findall(r"`(\w+\.py)`", body) if programs else []
    for file, program in zip(files, programs, strict=True):
        (terminal.home / file).write_text(terminal.here(program.text))
    for command, expected, printed in zip(commands, outputs, terminal.type(commands), strict=True):
        same = re.fullmatch(pattern(expected), printed.rstrip(), re.DOTALL)
        assert same, f"{name}: {command}\nis to print\n{expected}\nand printed\n{printed}"


@pytest.mark.parametrize(
    ("name", "given"),
    [("README.md: Websocket", '{"name": "Ada"}'), ("docs/examples.md: Live output on a websocket", '"2"')],
)
def test_an_example_on_a_websocket_says_why_a_call_failed(terminal: Terminal, name: str, given: str) -> None:
    (program,) = [block.text for block in SECTIONS[name][1] if block.language == "python"]
    assert given in program
    wrong = '"[1]"' if given == '"2"' else "[1]"
    (terminal.home / "wrong.py").write_text(terminal.here(program.replace(given, wrong)))

    (printed,) = terminal.type(["python wrong.py\n"])
    assert "failed: handler_error " in printed


@pytest.mark.parametrize("page", PAGES)
def test_every_block_of_a_page_belongs_to_a_heading(page: str) -> None:
    blocks = [block for name, (_, blocks) in SECTIONS.items() if name.startswith(f"{page}: ") for block in blocks]
    assert (ROOT / page).read_text().count("\n```") == 2 * len(blocks)


def test_every_section_of_the_examples_is_run() -> None:
    assert [name for name in SECTIONS if name.startswith("docs/examples.md") and name not in EXAMPLES] == [START]
    assert sum(name.startswith("docs/recipes.md") for name in EXAMPLES) >= 5
    assert sum(name.startswith("README.md") for name in EXAMPLES) == 3
