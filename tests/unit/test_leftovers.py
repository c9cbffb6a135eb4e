"""Unit: short paths of long folders, and what is removed of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from environments.leftovers import remove_links, shortened


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / ("long" * 20) / "work" / "4711"
    path.mkdir(parents=True)
    return path


def test_a_long_folder_has_a_short_path(folder):
    with shortened(folder) as short:
        assert len(str(short)) < 40
        assert os.path.realpath(short) == str(folder)
        (short / "file").write_text("x")

    assert not short.is_symlink()
    assert (folder / "file").read_text() == "x"


def test_a_short_folder_is_used_as_it_is():
    with shortened(Path("/srv/data/4711")) as short:
        assert short == Path("/srv/data/4711")


def test_only_links_to_folders_that_are_gone_are_removed(folder, tmp_path):
    with (
        shortened(folder) as gone,
        shortened(folder.with_name("4712")) as living,
        shortened(tmp_path / ("x" * 90)) as other,
    ):
        folder.rmdir()
        folder.with_name("4712").mkdir()

        remove_links()

        assert [path.is_symlink() for path in (gone, living, other)] == [False, True, True]
