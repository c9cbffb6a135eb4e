"""A module uploaded as files: its fields from `module.yaml`, completed from the other files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import evolve, frozen

from config.code import ENTRIES, MAX_BYTES, find_entry
from config.completing import read_block
from config.mistakes import MAX_UPLOADED_BYTES, ConfigError, Document, Mistake, Wrong, parse_yaml
from config.modules.spec import ModuleSpec, as_written, read_spec
from config.units import show

DESCRIPTIONS = ("module.yaml", "module.yml")


@frozen
class Description:
    """The fields of a module before its code is checked."""

    fields: Mapping[str, Any]
    """As in the modules file, with files relative to the module's folder. `read_module` makes a module of them."""
    document: Document
    file: str | None
    """The name of the description, or None if it has no description."""

    def mistakes(self, wrongs: Iterable[Wrong], folder: Path | None = None) -> ConfigError:
        """Return the mistakes in the fields, each with file (relative to `folder`), line and field."""
        found = [self.document.mistake(wrong, self.file or "", {}) for wrong in wrongs]
        found.sort(key=lambda each: (each.file != (self.file or ""), each.file or "", each.line or 0))
        return ConfigError(
            evolve(each, file=_relative(each.file, folder), line=each.line if each.file else None) for each in found
        )


def module_from_archive(
    files: Mapping[str, bytes], name: str | None = None, given: Mapping[str, Any] = MappingProxyType({})
) -> Description:
    """Return the description of a module from its files, which have relative names.

    `module.yaml` has the fields of one module, without `code`; its `name` may come from the caller instead, and fields
    `given` with the archive override its own. The handler's file is the only `.py` file, if that has another name than
    `ENTRIES`; the name may be in its block. `read_module` takes other missing fields from the files.

    Raises `ConfigError` if the description cannot be read; `read_module` reports mistakes in its fields.
    """
    described = [each for each in DESCRIPTIONS if each in files]
    if len(described) > 1:
        raise ConfigError(
            [Mistake(f"is given twice, as {' and '.join(described)}; remove one", described[0], None, "")]
        )
    file = described[0] if described else None
    document = Document({}) if file is None else _document(files[file], file)
    wrongs = [*document.wrongs]
    fields = as_written(document, (), document.value) | dict(given)
    if "modules" in fields:
        wrongs.append(Wrong("describes one module: write its fields at the top, without `modules:`", ("modules",)))
        fields.pop("modules")
    if fields.get("code") is not None:
        wrongs.append(Wrong("the code of an uploaded module is in its files; remove `code`", ("code",)))
    fields = _completed(fields, files)
    if name is not None and fields.setdefault("name", name) != name:
        wrongs.append(Wrong(f"{show(fields['name'])} differs from the name it was sent with, {show(name)}", ("name",)))
    if "name" not in fields:
        wrongs.append(Wrong("is missing; write it in module.yaml, or send it with the archive", ("name",)))
    found = Description(fields, document, file)
    if wrongs:
        raise found.mistakes(wrongs)
    return found


def read_module(description: Description, folder: Path) -> ModuleSpec:
    """Return the module with files in `folder`; paths outside of it are refused.

    Raises `ConfigError` with all mistakes, each with file (relative to the folder), line and field.
    """
    spec, wrongs = read_spec(description.fields, base=folder, allow_path=True, trusted=False)
    if spec is None:
        raise description.mistakes(wrongs, folder)
    return spec


def _document(data: bytes, file: str) -> Document:
    try:
        if len(data) > MAX_UPLOADED_BYTES:
            raise Wrong(f"is over {MAX_UPLOADED_BYTES} bytes")  # noqa: TRY301
        document = parse_yaml(data.decode("utf-8-sig"))
        if not isinstance(document.value, dict):
            raise Wrong(f"contains {show(document.value)} where the fields of a module are expected")  # noqa: TRY301
    except UnicodeDecodeError as problem:
        line = data.count(b"\n", 0, problem.start) + 1
        raise ConfigError([Mistake(f"is not UTF-8 text: {problem.reason}", file, line, "")]) from None
    except Wrong as wrong:
        raise ConfigError([Mistake(wrong.message, file, wrong.line, "")]) from None
    return document


def _completed(written: Mapping[str, Any], files: Mapping[str, bytes]) -> dict[str, Any]:
    """Return the fields, with the place of the handler and the name, where they are not written."""
    fields = {"path": "."} | dict(written)
    handler = fields.get("handler")
    sources = [name for name in files if name.endswith(".py") and "/" not in name]
    alone = fields["path"] == "." and len(sources) == 1 and sources[0] not in ENTRIES
    if alone and handler is None:
        handler = _in_block(files[sources[0]], "handler") or "handler"
    if alone and isinstance(handler, str) and ":" not in handler:
        fields["handler"] = f"{sources[0].removesuffix('.py')}:{handler}"
    if "name" not in fields and (found := name_in_block(files, fields.get("handler", "handler"))) is not None:
        fields["name"] = found
    return fields


def name_in_block(files: Mapping[str, bytes], handler: Any = "handler") -> Any:
    """Return the name that the block in the file with the handler gives the module; None without one."""
    try:
        only = next(iter(files)) if len(files) == 1 else None
        entry = find_entry(files.__contains__, handler if isinstance(handler, str) else "handler", only)
    except Wrong:
        return None
    return _in_block(files[entry], "name")


def _in_block(source: bytes, field: str) -> Any:
    """Return the value of a field in the block of a file; None without one."""
    block = read_block(source.decode("utf-8-sig", "replace")) if len(source) <= MAX_BYTES else None
    return None if block is None else block.fields.get(field)


def _relative(file: str | None, folder: Path | None) -> str | None:
    if file and folder is not None and Path(file).is_relative_to(folder):
        return Path(file).relative_to(folder).as_posix()
    return file or None
