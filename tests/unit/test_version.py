"""Unit: the version: the release in the project file, and the commit in the files of git."""

from __future__ import annotations

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

from runner import version

ROOT = Path(__file__).parents[2]
ONE, TWO = "1" * 40, "2" * 40


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")


def test_the_release_comes_from_the_project_file():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    assert version.release() == project["version"]
    assert re.fullmatch(rf"{re.escape(project['version'])}( \([0-9a-f]{{7}}\))?", version.version_of_this())


def test_git_gives_the_same_commit():
    try:
        printed = subprocess.check_output(["git", "rev-parse", "HEAD"], cwd=ROOT, text=True, stderr=-3)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("not a checkout, or git is not installed")

    assert version.commit_of(ROOT) == printed.strip()


def test_a_branch_packed_loose_and_none_at_all(tmp_path):
    write(tmp_path, **{".git/HEAD": "ref: refs/heads/main", ".git/packed-refs": f"# pack\n{TWO} refs/heads/main"})
    assert version.commit_of(tmp_path) == TWO

    write(tmp_path, **{".git/refs/heads/main": ONE})
    assert version.commit_of(tmp_path) == ONE, "a loose branch is newer than a packed one"

    write(tmp_path, **{".git/HEAD": TWO})
    assert version.commit_of(tmp_path) == TWO


@pytest.mark.parametrize("absolute", [True, False])
def test_a_linked_work_tree(tmp_path, absolute):
    tree = tmp_path / "tree"
    own = tmp_path / "repo" / ".git" / "worktrees" / "tree"
    write(tree, **{".git": f"gitdir: {own if absolute else '../repo/.git/worktrees/tree'}"})
    write(own, HEAD="ref: refs/heads/side/one", commondir="../..")
    write(tmp_path / "repo", **{".git/HEAD": ONE, ".git/refs/heads/side/one": TWO})

    assert version.commit_of(tree) == TWO


@pytest.mark.parametrize(
    "files",
    [
        {},
        {".git/HEAD": "ref: refs/heads/unborn"},
        {".git/HEAD": "ref: refs/heads/main", ".git/refs/heads/main": "not a commit"},
        {".git": "gitdir: /no/such/place"},
        {".git/HEAD": "ref: refs/heads/other", ".git/packed-refs": f"{ONE} refs/heads/main"},
    ],
)
def test_an_unknown_commit_is_none(tmp_path, files):
    write(tmp_path, **files)

    assert version.commit_of(tmp_path) is None


@pytest.mark.parametrize(
    ("baked", "shown"),
    [(f"{ONE}\n", " (1111111)"), (f"{ONE}-dirty\n", " (1111111-dirty)"), ("nonsense\n", "")],
)
def test_the_baked_commit_takes_precedence(tmp_path, monkeypatch, baked, shown):
    (tmp_path / "commit.txt").write_text(baked)
    monkeypatch.setattr(version, "_PLACE", tmp_path / "commit.txt")

    assert version.version_of_this() == version.release() + shown


def test_without_a_commit_only_the_release_is_shown(tmp_path, monkeypatch):
    monkeypatch.setattr(version, "_PLACE", tmp_path / "none")
    monkeypatch.setattr(version, "commit_of", lambda _root: None)

    assert version.version_of_this() == version.release()
