"""A module as files of its author: the starter, and the request that sends a folder, an archive or a file.

The files are checked before they are sent, with the same checks as in the runner, so mistakes have file and line.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import msgspec
from attrs import evolve

from config.code import ENTRIES, TooLargeError, pack, read_folder, unpack, write_files
from config.completing import passed_over
from config.mistakes import ConfigError, Mistake, Wrong, parse_yaml, read_or_none, read_text
from config.modules import (
    DESCRIPTIONS,
    Description,
    ModuleSpec,
    as_written,
    module_from_archive,
    name_in_block,
    name_of_module,
    read_module,
    read_spec,
    spec_to_mapping,
    starter,
)
from config.units import show
from protocol.errors import ErrorKind, error
from protocol.model import Kind
from runner.client import MAX_ANSWER_BYTES, Sent, segment

_YAML = (".yaml", ".yml")
_ENTRY_NAMES = tuple(name.removesuffix(".py") for name in ENTRIES)


def make_starter(name: str, kind: Kind, folder: Path) -> list[str]:
    """Write a module that runs as it is; return the names of its files. Raises ConfigError, OSError.

    Nothing is written if one of the files exists. Of two concurrent writers, each file belongs to one.
    """
    try:
        files = starter(name, kind)
    except Wrong as wrong:
        raise ConfigError([Mistake(wrong.message, None, None, "NAME", wrong.allowed)]) from None
    there = [file for file in files if (folder / file).exists() or (folder / file).is_symlink()]
    if there:
        text = f"would overwrite {', '.join(there)}; nothing was written: choose another folder with --folder"
        raise ConfigError([Mistake(text, str(folder), None, "")])
    folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        with (folder / file).open("xb") as opened:
            opened.write(content)
    return list(files)


def read_module_files(target: Path, name: str | None, *, check: bool = True) -> Sent:
    """Return the request for a folder, a zip archive, a `.py` or a `.yaml` file. Blocks.

    `name` is the name of the module; by default the one in `module.yaml` or the `.yaml` file, else the name of the
    folder or file. Raises RunnerError `bad_input` with all mistakes, each with file and line, and `too_large`. Without
    `check` only mistakes that prevent sending are reported.
    """
    shown = str(target)
    try:
        if target.is_dir():
            files = read_folder(target)
            return _archive(target, pack(files), files, name, check=check)
        if not target.is_file():
            there = target.exists()
            raise Wrong("is not a regular file" if there else "there is no such file or folder")  # noqa: TRY301
        if target.suffix == ".py":
            files = read_folder(target)
            return _archive(target, pack(files), files, name, check=check)
        if target.suffix == ".zip":
            data = _content(target)
            return _archive(target, data, unpack(data), name, check=check)
        if target.suffix in _YAML:
            return _described(target, name, check=check)
        raise Wrong("is not a folder, a .zip, a .py or a .yaml file")  # noqa: TRY301
    except ConfigError as problem:
        raise error(ErrorKind.BAD_INPUT, str(problem)) from None
    except Wrong as wrong:
        kind = ErrorKind.TOO_LARGE if isinstance(wrong, TooLargeError) else ErrorKind.BAD_INPUT
        raise error(kind, str(Mistake(wrong.message, wrong.file or shown, wrong.line, ""))) from None


def _content(file: Path) -> bytes:
    with file.open("rb") as opened:
        data = opened.read(MAX_ANSWER_BYTES + 1)
    if len(data) > MAX_ANSWER_BYTES:
        raise TooLargeError(f"is over {MAX_ANSWER_BYTES} bytes")
    return data


def _archive(target: Path, data: bytes, files: Mapping[str, bytes], name: str | None, *, check: bool) -> Sent:
    """Return the request for an archive. Raises ConfigError with paths relative to `target`, Wrong, RunnerError."""
    if name is None and not any(file in files for file in DESCRIPTIONS) and name_in_block(files) is None:
        name = _called(target)
    if check:
        try:
            name = _checked(files, name).name
        except ConfigError as problem:
            inside = target.parent if target.suffix == ".py" and target.is_file() else target
            raise ConfigError(
                evolve(each, file=str(inside / each.file if each.file else target)) for each in problem.mistakes
            ) from None
    return Sent("POST", "/modules/upload", "application/zip", data, name)


def _called(target: Path) -> str:
    """Return the name of a module from its folder or file. Raises ConfigError if it is not a module name."""
    name = target.resolve().name if target.is_dir() else target.stem
    if name in _ENTRY_NAMES or read_or_none(name_of_module, name) is None:
        text = f"{show(name)} cannot be the name of the module; give one"
        raise ConfigError([Mistake(text, None, None, "--name")])
    return name


def _checked(files: Mapping[str, bytes], name: str | None) -> ModuleSpec:
    """Return the module as a runner reads it, from a folder with only these files. Raises ConfigError, OSError."""
    described = module_from_archive(files, name)
    with tempfile.TemporaryDirectory(prefix="operato-push-") as folder:
        write_files(files, Path(folder))
        spec = read_module(described, Path(folder))
        for text in not_read(spec, Path(folder)):
            click.echo(f"note: {text}", err=True)
        return spec


def not_read(spec: ModuleSpec, folder: Path | None) -> list[str]:
    """Return a text for each file in the folder of a module that lists packages, and does not count."""
    used = " and ".join(spec.packages_from)
    return [
        f"{spec.name}: packages come from {used}; {name} is not read"
        for name in passed_over(folder, spec.packages_from)
    ]


def _described(file: Path, name: str | None, *, check: bool) -> Sent:
    """Return the request for a file with the fields and code of a module. Raises ConfigError, Wrong."""
    document = parse_yaml(read_text(file))
    if not isinstance(document.value, dict):
        raise Wrong(f"has {show(document.value)} instead of the fields of a module")
    fields = as_written(document, (), document.value)
    described, wrongs = Description(fields, document, str(file)), list(document.wrongs)
    if "modules" in fields:
        wrongs.append(
            Wrong("has several modules; push a file that has the fields of one module at the top level", ("modules",))
        )
    elif fields.get("path") is not None or (file.name in DESCRIPTIONS and fields.get("code") is None):
        text = f"the code is in other files; push their folder: operato-runner modules push {file.parent}"
        wrongs.append(Wrong(text, ("path",) if "path" in fields else ()))
    if name is not None and fields.setdefault("name", name) != name:
        wrongs.append(Wrong(f"{show(fields['name'])} differs from --name {show(name)}", ("name",)))
    if wrongs:
        raise described.mistakes(wrongs)
    fields.setdefault("name", file.stem)
    if check:
        fields, wrongs = _resolved(fields, file.parent)
        if wrongs:
            raise described.mistakes(wrongs)
    try:
        name = name_of_module(fields["name"])
    except Wrong as wrong:
        raise described.mistakes([wrong.under(("name",))]) from None
    try:
        body = msgspec.json.encode(fields)
    except UnicodeEncodeError:
        raise Wrong("has half of a character (a lone surrogate)") from None
    return Sent("PUT", f"/modules/{segment(name)}", "application/json", body, name)


def _resolved(fields: Mapping[str, Any], folder: Path) -> tuple[dict[str, Any], list[Wrong]]:
    """Return the fields with the contents of the files that they name, and the mistakes in them.

    Fields with their default value are not sent unless the file has them: another release may not know them.
    """
    spec, wrongs = read_spec(fields, base=folder, allow_path=True, trusted=False)
    if spec is None:
        return {}, wrongs
    defaults = spec_to_mapping(ModuleSpec(spec.name, spec.env))
    read = spec_to_mapping(spec)
    return {name: value for name, value in read.items() if name in fields or defaults.get(name) != value}, []
