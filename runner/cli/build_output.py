"""How builds are shown on a terminal: bars where there is one, plain lines where not."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

import click

from actors.workers import BuildLog

_PART = re.compile(r"(\d+(?:\.\d+)?) of (\d+(?:\.\d+)?)")
_SHOWN_CHARACTERS = 70


async def follow(said: BuildLog, show: Callable[[str], None]) -> None:
    """Hand on the lines of a build until it has ended; what was missed is said."""
    number = 0
    while True:
        await said.wait(number)
        found = said.read(number)
        number = found.next
        if found.dropped:
            show(f"({found.dropped} lines are left out)")
        for line in filter(str.strip, found.lines):
            show(line)
        if said.ended:
            return


class Display(Protocol):
    """Shows how far the builds of modules are."""

    def say(self, module: str, line: str) -> None:
        """Show a line of a build."""

    def end(self, module: str, how: str) -> None:
        """Show how a build has ended."""


class PlainDisplay:
    """Lines on standard error, each with its module."""

    def say(self, module: str, line: str) -> None:
        """Print a line."""
        click.echo(f"{module}: {line}", err=True)

    def end(self, module: str, how: str) -> None:
        """Print how it has ended."""
        click.echo(f"{module}: {how}", err=True)


def part_of(line: str) -> tuple[float, float] | None:
    """Return how much of how much a line says is done: `12.0 of 80.5 MB`."""
    found = _PART.search(line)
    if found is None or not float(found[2]) or float(found[1]) > float(found[2]):
        return None
    return float(found[1]), float(found[2])


@contextmanager
def display(modules: list[str]) -> Iterator[Display]:
    """Lend a display for these modules: bars when standard error is a terminal, else lines."""
    if not sys.stderr.isatty():
        yield PlainDisplay()
        return
    from rich.console import Console  # noqa: PLC0415  (0.1 s, and of use on terminals only)
    from rich.markup import escape  # noqa: PLC0415
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn  # noqa: PLC0415

    columns = (SpinnerColumn(), TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, TextColumn("{task.fields[line]}"), console=Console(stderr=True)) as progress:
        tasks = {name: progress.add_task(escape(name), total=None, line="") for name in modules}

        class Bars:
            """One bar for each module."""

            def say(self, module: str, line: str) -> None:
                done, total = part_of(line) or (0.0, None)
                shown = escape(line[:_SHOWN_CHARACTERS])
                progress.update(tasks[module], completed=done, total=total, line=shown)

            def end(self, module: str, how: str) -> None:
                progress.update(tasks[module], completed=1, total=1, line=escape(how.splitlines()[0][:200]))

        yield Bars()
