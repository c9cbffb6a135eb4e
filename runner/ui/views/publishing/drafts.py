"""The files of a version that is being written: from a starter, a version, or a form."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec
import yaml
from attrs import frozen
from werkzeug.datastructures import FileStorage

from actors.registry import Published
from config.code import pack
from config.mistakes import Wrong
from config.modules import DESCRIPTIONS, spec_from_mapping, spec_to_mapping, starter
from protocol.errors import ErrorKind, error
from protocol.model import Kind
from runner.api import CodeFile

_FILE: Final = "file:"
_EDITED: Final = 12
"""Files that are shown to be written."""
_FIELDS: Final = DESCRIPTIONS[0]
_NOT_WRITTEN: Final = ("code", "path", "version")
_OF_KINDS: Final = {Kind.VENV: "requirements.txt", Kind.CONDA: "environment.yml", Kind.DOCKER: "requirements.txt"}
_MISTAKE: Final = re.compile(r"(?:([\w./-]{1,200}):(\d{1,6})(?::\d+)?: )?(.*)", re.DOTALL)


@frozen
class Draft:
    """A version that is being written."""

    name: str
    files: Mapping[str, str]
    """Texts by the names of their files."""
    kept: tuple[str, ...] = ()
    """Files that a new version takes from the one that it begins with, as they are."""


@frozen
class Mistake:
    """One mistake in a draft."""

    file: str
    line: int | None
    text: str


def started(name: str, kind: Kind) -> Draft:
    """Return the draft of a new module. Raises RunnerError `bad_input` for its name."""
    try:
        files = starter(name or "my-module", kind)
    except Wrong as wrong:
        raise error(ErrorKind.BAD_INPUT, str(wrong), field="name") from None
    return Draft(name or "my-module", {each: data.decode() for each, data in files.items() if each != "README.md"})


def of_version(module: Published, files: Iterable[CodeFile]) -> Draft:
    """Return the draft of the next version of a module: its fields as YAML, its texts, and the names of the others."""
    texts, kept = {_FIELDS: fields_of(module)}, []
    for file in files:
        if file.name in DESCRIPTIONS:
            continue
        if file.text is not None and len(texts) < _EDITED:
            texts[file.name] = file.text
        else:
            kept.append(file.name)
    return Draft(module.ref.name, texts, tuple(kept))


def fields_of(module: Published, *, whole: bool = True) -> str:
    """Return the fields of a module that differ from their defaults, as YAML.

    Without `whole`, what others than its authors do not see is left out: values of variables, recipients of notices.
    """
    fields = spec_to_mapping(module.spec)
    plain = spec_from_mapping(
        {"name": module.ref.name, "env": module.spec.env.value, "code": "handler = print"}, base=None, allow_path=False
    )
    defaults = spec_to_mapping(plain)
    shown: dict[str, Any] = {"name": module.ref.name, "env": module.spec.env.value}
    for field, value in fields.items():
        if field not in (*_NOT_WRITTEN, "secrets") and field not in shown and value != defaults.get(field):
            shown[field] = value
    if not whole:
        shown.pop("on_end", None)
        shown |= {"variables": sorted(module.spec.variables)} if module.spec.variables else {}
    if module.spec.secrets:
        shown["secrets"] = list(module.spec.secrets)
    text: str = yaml.safe_dump(msgspec.to_builtins(shown), sort_keys=False, allow_unicode=True, width=100)
    return text


def posted(form: Mapping[str, str]) -> Draft:
    """Return the draft in a form."""
    files = {
        name.removeprefix(_FILE): text.replace("\r\n", "\n") for name, text in form.items() if name.startswith(_FILE)
    }
    return Draft(form.get("name", "").strip(), files)


def archive(files: Mapping[str, bytes]) -> bytes:
    """Return files as an archive. Blocks. Raises RunnerError `bad_input`."""
    try:
        return pack(files)
    except Wrong as wrong:
        raise error(ErrorKind.BAD_INPUT, str(wrong), field="archive") from None


def uploaded(files: Iterable[FileStorage]) -> bytes:
    """Return the archive that a form has: one zip file, or the files of a folder. Raises RunnerError `bad_input`."""
    found = [each for each in files if each.filename]
    if not found:
        raise error(ErrorKind.BAD_INPUT, "choose a folder or a zip file", field="archive")
    if len(found) == 1 and str(found[0].filename).lower().endswith(".zip"):
        data: bytes = found[0].read()
        return data
    names = [str(each.filename).replace("\\", "/") for each in found]
    top = names[0].partition("/")[0] + "/"
    within = all(name.startswith(top) for name in names)
    return archive(
        {
            name.removeprefix(top) if within else name: each.read()
            for name, each in zip(names, found, strict=True)
            if not _left_out(name)
        }
    )


def _left_out(name: str) -> bool:
    return any(part in ("__pycache__", ".git", ".venv", "node_modules") for part in name.split("/"))


def mistakes(message: str) -> list[Mistake]:
    """Return the mistakes in the text of a failure, with file and line where it has them."""
    found = []
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if text:
            file, number, rest = _MISTAKE.fullmatch(text).groups()  # type: ignore[union-attr]
            found.append(Mistake(file or "", int(number) if number else None, rest))
    return found
