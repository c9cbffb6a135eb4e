"""What a module is, in pairs of a name and a text."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

from config.modules import ModuleSpec
from protocol.model import Isolation, Record
from runner.ui.looks import as_duration, as_size
from runner.ui.words import Words

Fact: TypeAlias = tuple[str, str | Sequence[str]]
_LINES = 30
"""Requirements that are shown."""


def settings_of(spec: ModuleSpec, t: Words) -> Iterator[Fact]:
    """Yield how a module runs."""
    yield t("Time limit"), as_duration(spec.timeout)
    yield t("Calls at a time"), f"{spec.concurrency:,}"
    yield (
        t("Isolation"),
        {
            Isolation.WARM: t("warm: a worker serves many calls"),
            Isolation.FORK: t("fork: a fresh copy for each call"),
            Isolation.FRESH: t("fresh: a new interpreter for each call"),
            Isolation.NONE: t("none: in the process of the runner"),
        }[spec.isolation],
    )
    if spec.memory is not None:
        yield t("Memory"), as_size(spec.memory)
    if spec.cpus is not None:
        yield t("Processors"), f"{spec.cpus:g}"
    yield t("Most output"), as_size(spec.output)
    if spec.retry.attempts > 1:
        yield t("Attempts"), t("{n}, after {kinds}", n=spec.retry.attempts, kinds=", ".join(spec.retry.on))
    if spec.rate:
        yield t("Rate"), spec.rate
    if spec.group is not None:
        yield t("Group"), f"{spec.group.key}: {spec.group.concurrency}"
    if spec.needs:
        yield t("Needs labels"), ", ".join(spec.needs)
    if spec.record is Record.SUMMARY:
        yield t("Record"), t("sizes only, no inputs, outputs and results")
    if spec.variables or spec.secrets:
        yield t("Variables"), ", ".join(sorted([*spec.variables, *spec.secrets]))


def made_of(spec: ModuleSpec, t: Words) -> Iterator[Fact]:
    """Yield what the environment of a module is made of."""
    if spec.python:
        yield "Python", spec.python
    if spec.image:
        yield t("Image"), spec.image
    for name, lines in (
        (t("Channels"), spec.channels),
        (t("Conda packages"), spec.dependencies),
        (t("Requirements"), _without_hashes(spec.requirements)),
        (t("Constraints"), spec.constraints),
    ):
        if lines:
            more = len(lines) - _LINES
            yield name, [*lines[:_LINES], *([t("and {n} more", n=more)] if more > 0 else [])]


def _without_hashes(lines: Sequence[str]) -> list[str]:
    return [line.partition(" --hash=")[0].rstrip(" \\") for line in lines if not line.strip().startswith("--hash=")]
