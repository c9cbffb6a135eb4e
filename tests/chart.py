"""The Helm chart under the real engine: rendered with values, as objects."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from helm_python import Chart

CHART = Path(__file__).resolve().parents[1] / "packaging" / "operato-runner"
VALUES = sorted((CHART / "ci").glob("values-*.yaml"))
KEY = {"auth": {"existingSecret": "keys"}}
"""The least that a release needs."""


def values_of(file: Path) -> dict[str, Any]:
    values: dict[str, Any] = yaml.safe_load(file.read_text())
    return values


def merged(*parts: dict[str, Any]) -> dict[str, Any]:
    """Return values as `-f A -f B` puts them together."""
    whole: dict[str, Any] = {}
    for part in parts:
        for name, value in part.items():
            both = isinstance(value, dict) and isinstance(whole.get(name), dict)
            whole[name] = merged(whole[name], value) if both else value
    return whole


class Rendered:
    """What a release would make."""

    def __init__(self, values: dict[str, Any], name: str = "jobs") -> None:
        with Chart.load(CHART) as chart:
            texts = chart.render(values, name=name, namespace="team")
        self.notes = texts.pop("operato-runner/templates/NOTES.txt")
        self.objects = [each for text in texts.values() for each in yaml.safe_load_all(text) if each]

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [each for each in self.objects if each["kind"] == kind]

    def one(self, kind: str) -> dict[str, Any]:
        (only,) = self.all(kind)
        return only

    @property
    def pod(self) -> dict[str, Any]:
        template: dict[str, Any] = self.one("StatefulSet")["spec"]["template"]
        return template

    @property
    def container(self) -> dict[str, Any]:
        (only,) = self.pod["spec"]["containers"]
        return dict(only)

    @property
    def environ(self) -> dict[str, str]:
        """Return the variables that have their value here."""
        return {each["name"]: each["value"] for each in self.container["env"] if "value" in each}
