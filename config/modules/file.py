"""The modules file: YAML with `modules:` and the section `runner:`, read with the line of each mistake."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from operator import itemgetter
from pathlib import Path
from typing import Any

import attrs
from attrs import field, frozen

from config import secrets
from config.mistakes import Document, Mistake, Where, Wrong, did_you_mean, parse_yaml, read_or_none, read_text
from config.modules.endpoints import EndpointSpec, clashes, conflict_text
from config.modules.on_end import OnEnd, loop_from, loop_text
from config.modules.spec import ModuleSpec, as_written, name_of_module, read_spec
from config.modules.upload import name_in_block
from config.paths import PathTree
from config.units import show


@frozen
class ModulesFile:
    """One modules file: `modules:`, a list or a mapping of names, and the runner's own section `runner:`."""

    modules: tuple[ModuleSpec, ...]
    runner: Mapping[str, Any]
    """The section as written; `config.load` reads it."""
    path: Path
    """Absolute."""
    lines: Mapping[str, int] = field(factory=dict)
    """The line of each entry of `runner`."""
    files: tuple[Path, ...] = ()
    """Files named in it, existing or not: code, secrets, requirements files and the files that they include."""
    read_at: float = field(default=0.0, eq=False)
    """Seconds since the epoch when reading began."""


def read_modules(path: Path) -> tuple[ModulesFile, tuple[Mistake, ...]]:
    """Return the modules file without its wrong modules, and all mistakes by line."""
    absolute, began = Path.cwd() / path, time.time()
    try:
        document = parse_yaml(read_text(path))
    except Wrong as wrong:
        document = Document({}, wrongs=(wrong,))
    wrongs = [*document.wrongs, *_sections(document.value)]
    specs: dict[str, ModuleSpec] = {}
    places: dict[str, Where] = {}
    names: dict[str, int | None] = {}
    labels: dict[Where, Where] = {}
    files: list[Path] = []
    for where, data in _entries(document, wrongs):
        name = data.get("name")
        if isinstance(name, str) and read_or_none(name_of_module, name) is not None:
            labels[where] = (name,)
            if name in names:
                wrongs.append(Wrong(f"the name is given twice, first in line {names[name]}", (*where, "name")))
            names.setdefault(name, document.line(Wrong("", (*where, "name"))))
        files += _named_files(data, absolute.parent)
        spec, found = read_spec(data, base=absolute.parent, allow_path=True, trusted=True, named=files)
        unread = {wrong.where for wrong in document.wrongs}
        wrongs += [placed for wrong in found if (placed := wrong.under(where)).where not in unread]
        if spec is not None:
            specs.setdefault(spec.name, spec)
            places.setdefault(spec.name, where)
    wrongs += (wrong.under(places[name]) for name, wrong in _conflicts(specs.values()))
    wrongs += _loops(specs, places)
    mistakes = [document.mistake(wrong, str(path), labels) for wrong in wrongs]
    mistakes.sort(key=lambda mistake: (mistake.file != str(path), mistake.file or "", mistake.line or 0))
    runner = document.value.get("runner") if isinstance(document.value, dict) else None
    runner = runner if isinstance(runner, dict) else {}
    lines = {key: document.lines["runner", key] for key in runner}
    return ModulesFile(tuple(specs.values()), runner, absolute, lines, tuple(files), began), tuple(mistakes)


def read_script(path: Path) -> tuple[ModulesFile, tuple[Mistake, ...]]:
    """Return a modules file with one module, the Python file `path`, and all mistakes; it has none if there are some.

    The block of the file has its fields. Its name is that of the file, if the block has none.
    """
    absolute, began = Path.cwd() / path, time.time()
    files = [absolute]
    data: dict[str, Any] = {"path": str(absolute)}
    try:
        if absolute.is_dir():
            raise Wrong("is a folder; name one Python file in it")  # noqa: TRY301
        found = name_in_block({absolute.name: read_text(absolute).encode()})
        data["name"] = absolute.stem.lower().replace(" ", "-") if found is None else found
        if found is None and read_or_none(name_of_module, data["name"]) is None:
            text = f"{show(absolute.stem)} cannot be the name of a module; write `name` below [tool.operato]"
            raise Wrong(text, ("name",))  # noqa: TRY301
        spec, wrongs = read_spec(data, base=absolute.parent, allow_path=True, trusted=True, named=files)
    except Wrong as wrong:
        spec, wrongs = None, [wrong]
    document = Document({})
    mistakes = [document.mistake(wrong, str(absolute), {}) for wrong in wrongs]
    shown = [attrs.evolve(each, file=str(path) if each.file == str(absolute) else each.file) for each in mistakes]
    shown.sort(key=lambda mistake: (mistake.file != str(path), mistake.file or "", mistake.line or 0))
    return ModulesFile(() if spec is None else (spec,), {}, absolute, {}, tuple(files), began), tuple(shown)


def _loops(specs: Mapping[str, ModuleSpec], places: Mapping[str, Where]) -> Iterator[Wrong]:
    """Check that no notice of a module comes back to it over others."""

    def told(name: str) -> tuple[OnEnd, ...]:
        return specs[name].on_end if name in specs else ()

    for name in specs:
        if specs[name].on_end and (way := loop_from(name, told)):
            yield Wrong(loop_text(way), (*places[name], "on_end"), allowed="modules that do not tell this one")


def _conflicts(specs: Iterable[ModuleSpec]) -> Iterator[tuple[str, Wrong]]:
    """Yield the conflicts between endpoints of different modules, with the name of the later module."""
    tree: PathTree[tuple[str, EndpointSpec]] = PathTree()
    for spec in specs:
        for place, endpoint in enumerate(spec.endpoints):
            other = next(clashes(tree, endpoint, itemgetter(1)), None)
            if other is not None:
                yield spec.name, Wrong(conflict_text(endpoint, *other), ("endpoints", place, "path"))
            tree.add(endpoint.path, (spec.name, endpoint))


def read_runner(path: Path) -> tuple[ModulesFile, tuple[Mistake, ...]]:
    """Return the section `runner:` of the modules file, without its modules, and the mistakes in this section.

    Mistakes elsewhere do not matter, even where the file is not valid YAML: then its lines are looked for.
    """
    began = time.time()
    try:
        document = _readable(read_text(path))
    except Wrong as wrong:
        document = Document({}, wrongs=(Wrong(wrong.message, ("runner",), line=wrong.line),))
    concerned = [wrong for wrong in document.wrongs if wrong.where[:1] == ("runner",)]
    runner = document.value.get("runner") if isinstance(document.value, dict) else None
    if not isinstance(runner, _SECTIONS["runner"]):
        concerned += [wrong for wrong in _sections({"runner": runner}) if not concerned]
    runner = runner if isinstance(runner, dict) else {}
    lines = {key: document.lines["runner", key] for key in runner}
    mistakes = tuple(document.mistake(wrong, str(path), {}) for wrong in concerned)
    return ModulesFile((), runner, Path.cwd() / path, lines, (), began), mistakes


def _readable(text: str) -> Document:
    """Return the document, or that of the section `runner:` alone if the text is not valid YAML. Raises Wrong."""
    try:
        return parse_yaml(text)
    except Wrong:
        lines = text.splitlines(keepends=True)
        starts = [at for at, line in enumerate(lines) if line.startswith("runner:")]
        if not starts:
            if re.search(r"\brunner\b", text):  # the settings may be there in another form, such as `{runner: ...}`
                raise
            return Document({})
        first = starts[0]
        ends = (at for at in range(first + 1, len(lines)) if lines[at][0] not in " #\t\r\n")
        # The lines before it are replaced by empty ones, so that numbers of lines stay.
        return parse_yaml("\n" * first + "".join(lines[first : next(ends, len(lines))]))


def _sections(root: Any) -> Iterator[Wrong]:
    """Check the top level of the file."""
    if not isinstance(root, dict):
        hint = "; write `modules:` above it" if isinstance(root, list) else ""
        text = f"contains {show(root)} where a mapping with `modules:` is expected{hint}"
        yield Wrong(text, allowed=", ".join(_SECTIONS))
        return
    for name, value in root.items():
        if name not in _SECTIONS:
            hint = did_you_mean(name, _SECTIONS) or _place_of(name)
            yield Wrong(f"unknown section; a file has modules and runner{hint}", (name,), allowed=", ".join(_SECTIONS))
        elif not isinstance(value, _SECTIONS[name]):
            allowed = "a mapping of settings" if name == "runner" else "a list of modules or a mapping of their names"
            yield Wrong(f"{show(value)} is not {allowed}", (name,), allowed=allowed)


def _place_of(name: str) -> str:
    """Return where a name of the top level belongs, if it is a field of a module or looks like a setting."""
    if name in _FIELDS:
        return "; a field of a module belongs below `modules:` and the module's name"
    return "; write settings below `runner:`" if name.isidentifier() and "_" in name else ""


def _entries(document: Document, wrongs: list[Wrong]) -> Iterator[tuple[Where, dict[str, Any]]]:
    """Yield place and fields of each module, its name included; other values become mistakes in `wrongs`."""
    modules: Any = document.value.get("modules") if isinstance(document.value, dict) else None
    named = isinstance(modules, dict)
    if named and "code" in modules and isinstance(modules.get("name", ""), str):
        text = "has the fields of a module directly below it; write `- ` before the first one: a list of modules"
        wrongs.append(Wrong(text, ("modules",), allowed="a list of modules"))
        return
    for key, written in modules.items() if named else enumerate(modules) if isinstance(modules, list) else ():
        where = ("modules", key)
        if not isinstance(written, dict):
            wrongs.append(Wrong(f"{show(written)} is not a module; a module is a mapping", where, allowed="a mapping"))
            continue
        if named and written.get("name", key) != key:
            wrongs.append(Wrong(f"the name is already given as {show(key)}; leave it out here", (*where, "name")))
        yield where, as_written(document, where, written | ({"name": key} if named else {}))


def _named_files(data: Mapping[str, Any], base: Path) -> Iterator[Path]:
    """Yield the files that a module names, but for requirements files."""
    path = data.get("path")
    if isinstance(path, str) and path:
        yield base / path
    if isinstance(dependencies := data.get("dependencies"), str) and dependencies:
        yield base / dependencies
    yield from secrets.named_files(data.get("secrets"), base)


_FIELDS = frozenset(each.name for each in attrs.fields(ModuleSpec))
_SECTIONS: Mapping[str, tuple[type, ...]] = {"modules": (dict, list, type(None)), "runner": (dict, type(None))}
"""The sections of the file with their types; a section with only comments is None."""
