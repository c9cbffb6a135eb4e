"""A hook of hatchling: bakes the commit into wheel and sdist, so that both can say what they were made of."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CommitHook(BuildHookInterface[Any]):
    """Adds `runner/commit.txt`. In an unpacked sdist it is there already; an editable install runs from source."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Write the file where only this build sees it."""
        self._folder = tempfile.mkdtemp(prefix="operato-commit-")
        sys.path.insert(0, self.root)
        try:
            from runner.version import BAKED, commit_of  # noqa: PLC0415  (the tree that is built, not an installed one)
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
        """Whether what is built is not what was committed; False where git is not there to say."""
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
