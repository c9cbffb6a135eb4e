"""Every kind of worker, for tests of the contract that all kinds keep."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from protocol.model import Isolation, Kind
from tests import engines
from tests.support import Rig

WORKERS = {
    "inline-warm": {"env": Kind.INLINE, "isolation": Isolation.WARM},
    "inline-fork": {"env": Kind.INLINE, "isolation": Isolation.FORK},
    "inline-fresh": {"env": Kind.INLINE, "isolation": Isolation.FRESH},
    "venv-warm": {"env": Kind.VENV, "isolation": Isolation.WARM},
    "venv-fork": {"env": Kind.VENV, "isolation": Isolation.FORK},
    "conda-warm": {"env": Kind.CONDA, "isolation": Isolation.WARM},
    "conda-fork": {"env": Kind.CONDA, "isolation": Isolation.FORK},
    "docker-warm": {"env": Kind.DOCKER, "isolation": Isolation.WARM},
    "docker-fork": {"env": Kind.DOCKER, "isolation": Isolation.FORK},
    "docker-fresh": {"env": Kind.DOCKER, "isolation": Isolation.FRESH},
}


def chosen(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Return the module fields for a fixture parameter, after setting up what the kind needs of the machine."""
    fields: dict[str, Any] = WORKERS[request.param]
    if fields["env"] is Kind.DOCKER:
        request.getfixturevalue("engine")
    if fields["env"] is Kind.CONDA:
        fields = fields | {"channels": (request.getfixturevalue("channel"),)}
    return fields


class Flag:
    """A file that a test makes and a handler waits for, in a place that the handler sees."""

    def __init__(self, rig: Rig, how: dict[str, Any], tmp_path: Path) -> None:
        self.instance = rig.path / "instance" if how["env"] is Kind.DOCKER else None
        self.path = "/tmp/flag" if self.instance else str(tmp_path / "flag")

    def touch(self) -> None:
        if self.instance:
            engines.touch(self.instance.read_text(), self.path)
        else:
            Path(self.path).touch()
