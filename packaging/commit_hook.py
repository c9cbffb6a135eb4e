"""A hook of hatchling: writes the commit into wheel and sdist, so that both can report it."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface[Any]):
    """Adds `runner/commit.txt`. An unpacked sdist has it already; an editable install runs from source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the file to a folder of this build."""
        self._folder = tempfile.mkdtemp(prefix="operato-commit-")
        sys.path.insert(0, self.root)
        try:
            from runner.version import BAKED, commit_of  # noqa: PLC0415  (of the tree being built)
        finally:
            sys.path.remove(self.root)
        file = Path(self.root, "runner", BAKED)
        commit = commit_of(Path(self.root))
        if commit is not None:
            file = Path(self._folder, BAKED)
            file.write_text(commit + ("-dirty\n" if self._differs() else "\n"))
        if file.is_file() and version != "editable":
            build_data["force_include"][str(file)] = f"runner/{BAKED}"

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:  # noqa: ARG002
        """Remove the file."""
        shutil.rmtree(self._folder)

    def _differs(self) -> bool:
        """Return whether the built files differ from the commit; False without git."""
        paths = [path.strip("/") for path in self.metadata.hatch.build_targets["sdist"]["include"]]
        paths += ["pyproject.toml", "requirements.txt", "Dockerfile", "packaging"]
        try:
            status = subprocess.run(
                ["git", "status", "--porcelain", "--", *paths],
                cwd=self.root,
                capture_output=True,
                check=True,
            )
        except (OSError, subprocess.CalledProcessError):
            return False
        return bool(status.stdout.strip())
