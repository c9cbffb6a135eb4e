"""The results of the checks of `doctor`, and how they are shown."""

from __future__ import annotations

import json
from enum import StrEnum

from attrs import asdict, frozen

from runner.terminal import show_line, style_of
from runner.version import version_of_this


class State(StrEnum):
    """The result of a check."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing; the modules of the file work."""
    FAILED = "failed"
    """A module of the file, or the server, does not work."""


@frozen
class Finding:
    """The result of one check. `says` is the observation, `remedy` how to change it."""

    topic: str
    name: str
    state: State
    says: str
    remedy: str = ""


def works(findings: list[Finding]) -> bool:
    """Return whether no check failed."""
    return all(finding.state is not State.FAILED for finding in findings)


def document_of(findings: list[Finding]) -> str:
    """Return the findings as JSON."""
    document = {"ok": works(findings), "version": version_of_this(), "findings": [asdict(each) for each in findings]}
    return json.dumps(document, indent=1)


def print_findings(findings: list[Finding]) -> None:
    """Print the findings, grouped by topic."""
    width = max(len(finding.name) for finding in findings)
    show_line((f"operato-runner {version_of_this()}", ""))
    topic = ""
    for finding in findings:
        if finding.topic != topic:
            topic = finding.topic
            show_line(("", ""))
            show_line((topic, "bold"))
        state = (f"  {finding.state:<6}", style_of(finding.state))
        show_line(state, (f"  {finding.name:<{width}}  {finding.says}", ""))
        if finding.remedy:
            show_line((f"          {'':<{width}}  -> {finding.remedy}", ""))
