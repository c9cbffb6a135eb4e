"""Contract: what comes out of an archive of the starter runs as it is."""

from __future__ import annotations

import pytest

from config.code.archive import read_folder, write_files
from config.modules.template import starter
from config.modules.upload import module_from_archive, read_module
from protocol.model import Kind
from tests.support import open_rig


@pytest.mark.parametrize("kind", [Kind.INLINE, Kind.VENV])
async def test_the_starter_runs(tmp_path, kind):
    write_files(starter("greeter", kind), tmp_path / "greeter")
    files = read_folder(tmp_path / "greeter")
    described = module_from_archive(files)
    (tmp_path / "sent").mkdir()
    write_files(files, tmp_path / "sent")
    spec = read_module(described, tmp_path / "sent")

    async with open_rig(tmp_path / "rig") as made:
        await made.publish_all([spec])
        ran = await made.call(made.registry.snapshot.get("greeter"), {"name": "Ada"})

    assert ran.value == {"message": "Hello, Ada!"}
    assert ran.stdout == "greeting Ada (attempt 1)\n"
