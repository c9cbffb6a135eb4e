"""A module uploaded as files: its fields from `module.yaml`, completed from the other files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from attrs import evolve, frozen

from config.code import ENTRIES
from config.mistakes import MAX_UPLOADED_BYTES, ConfigError, Document, Mistake, Wrong, parse_yaml
from config.modules.spec import ModuleSpec, as_written, read_spec
from config.units import show
from protocol.model import Kind

DESCRIPTIONS = ("module.yaml", "module.yml")
REQUIREMENTS, CONDA = "requirements.txt", "environment.yml"
_WITH_REQUIREMENTS = (Kind.VENV, Kind.CONDA, Kind.DOCKER)


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
    `given` with the archive override its own. Missing fields are taken from the files: `requirements` and
    `dependencies` from `requirements.txt` and `environment.yml` if the kind of environment has such, `env` from the
    existence of these files, and the handler's file if the only `.py` file has another name than `ENTRIES`.

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
    if name is not None and fields.setdefault("name", name) != name:
        wrongs.append(Wrong(f"{show(fields['name'])} differs from the name it was sent with, {show(name)}", ("name",)))
    if "name" not in fields:
        wrongs.append(Wrong("is missing; write it in module.yaml, or send it with the archive", ("name",)))
    found = Description(_completed(fields, files), document, file)
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
    """Return the fields, with missing ones taken from the files."""
    fields = {"path": "."} | dict(written)
    if "env" not in fields:
        fields["env"] = str(Kind.CONDA if CONDA in files else Kind.VENV if REQUIREMENTS in files else Kind.INLINE)
    if fields.get("requirements") is None and REQUIREMENTS in files and fields["env"] in _WITH_REQUIREMENTS:
        fields["requirements"] = REQUIREMENTS
    if fields.get("dependencies") is None and CONDA in files and fields["env"] == Kind.CONDA:
        fields["dependencies"] = CONDA
    handler = fields.get("handler", "handler")
    sources = [name for name in files if name.endswith(".py") and "/" not in name]
    alone = fields["path"] == "." and len(sources) == 1 and sources[0] not in ENTRIES
    if alone and isinstance(handler, str) and ":" not in handler:
        fields["handler"] = f"{sources[0].removesuffix('.py')}:{handler}"
    return fields


def _relative(file: str | None, folder: Path | None) -> str | None:
    if file and folder is not None and Path(file).is_relative_to(folder):
        return Path(file).relative_to(folder).as_posix()
    return file or None
