"""Contract: the committed files under `protocol/rpc` equal the output of `make proto`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_the_generated_files_are_those_of_the_proto(tmp_path: Path) -> None:
    plugin = Path(sys.executable).with_name("protoc-gen-python_betterproto")
    command = [
        *(sys.executable, "-m", "grpc_tools.protoc", "-I", str(ROOT / "protocol"), "executor.proto"),
        *(f"--plugin=protoc-gen-python_betterproto={plugin}", f"--python_betterproto_out={tmp_path}"),
        *("--include_imports", f"--descriptor_set_out={tmp_path / 'executor.binpb'}"),
    ]
    subprocess.run(command, check=True, capture_output=True)

    assert tree(tmp_path) == tree(ROOT / "protocol" / "rpc"), "run `make proto`"


def tree(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
