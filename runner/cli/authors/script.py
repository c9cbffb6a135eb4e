"""A module of one file from a plain script: its functions, its packages, and the block that makes it a module."""

from __future__ import annotations

import ast
import json
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import click
from attrs import frozen

from config.code import MAX_BYTES, input_schema
from config.completing import KIND, blocks
from config.mistakes import ConfigError, Mistake, Wrong, did_you_mean
from config.modules import name_of_module

_PREFERRED: Final = ("handler", "main")
_SHOWN: Final = 20
_TABLE: Final = "[tool.operato]"
_QUIET: Final = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Pass)


@frozen
class Script:
    """A script as a module of one file."""

    name: str
    function: str
    text: str
    """The script with its block."""
    notes: tuple[str, ...]
    """What its author should look at."""
    example: Any
    """An input to begin with; None if any will do."""


def read_script(path: Path, name: str | None, function: str | None) -> Script:
    """Return a script as a module: its `function`, by default `handler`, `main` or the only one.

    `name` is by default that of the file. Raises ConfigError with the place of each mistake, OSError.
    """
    data = path.read_bytes()
    try:
        if len(data) > MAX_BYTES:
            raise _wrong(path, f"is over {MAX_BYTES} bytes")
        text = data.decode()
        tree = ast.parse(text)
    except UnicodeDecodeError:
        raise _wrong(path, "is not UTF-8 text") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as problem:
        line = problem.lineno if isinstance(problem, SyntaxError) else None
        raise _wrong(path, f"is not Python that this release reads: {problem}", line) from None
    called = _name(path, name)
    chosen = _function(path, tree, function)
    packages, local = _imports(tree, path.parent)
    fields = {"name": called} if called != path.stem else {}
    fields |= _described(tree, chosen) | ({"handler": chosen} if chosen != "handler" else {})
    made = _with_block(path, text, packages, fields)
    notes = [*_early(tree, chosen), *(f"{each} is beside the script; push their folder instead" for each in local)]
    if packages and "dependencies" in made:
        notes.append(f"check the names of its packages: {', '.join(packages)}")
    return Script(called, chosen, made, tuple(notes), _example(data, chosen))


def _wrong(path: Path, text: str, line: int | None = None, field: str = "") -> ConfigError:
    return ConfigError([Mistake(text, str(path), line, field)])


def _name(path: Path, name: str | None) -> str:
    wanted = path.stem.lower().replace(" ", "-") if name is None else name
    try:
        return name_of_module(wanted)
    except Wrong as wrong:
        remedy = "; give one: modules init NAME --from FILE" if name is None else ""
        raise ConfigError([Mistake(f"{wrong.message}{remedy}", None, None, "NAME", wrong.allowed)]) from None


def _function(path: Path, tree: ast.Module, wanted: str | None) -> str:
    """Return the function to call. Raises ConfigError."""
    found = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    public = [name for name in dict.fromkeys(found) if not name.startswith("_")]
    if wanted is not None:
        if wanted in found:
            return wanted
        hint = did_you_mean(wanted, public) or f"; there are {', '.join(public[:_SHOWN]) or 'none'}"
        raise _wrong(path, f"has no function {wanted!r:.80}{hint}", field="--function")
    chosen = next((name for name in _PREFERRED if name in public), None)
    if chosen is not None:
        return chosen
    if not public:
        raise _wrong(path, "has no function; put the lines that each call runs into one, such as `def main():`")
    if len(public) > 1:
        raise _wrong(path, f"has several functions, {', '.join(public[:_SHOWN])}; choose one", field="--function")
    return public[0]


def _described(tree: ast.Module, function: str) -> dict[str, str]:
    """Return the description of a module: the first line of the docstring of its function, else of its file."""
    nodes = [node for node in tree.body if getattr(node, "name", None) == function]
    for node in (*nodes[-1:], tree):
        text = ast.get_docstring(node) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Module) else ""
        if text:
            first = text.strip().splitlines()[0]
            return {"description": "".join(filter(str.isprintable, first))}
    return {}


def _imports(tree: ast.Module, folder: Path) -> tuple[list[str], list[str]]:
    """Return the packages that a script imports, and the files beside it. Imports within `try` may fail: not these."""
    from environments.remedies import distribution_of

    names = {name.partition(".")[0] for name in _imported(tree)} - {*sys.stdlib_module_names, "operato"}
    local = sorted(name for name in names if (folder / f"{name}.py").exists() or (folder / name).is_dir())
    return sorted(distribution_of(name) for name in names - {*local}), local


def _imported(node: ast.AST) -> Iterator[str]:
    for inner in ast.iter_child_nodes(node):
        if isinstance(inner, ast.Import):
            yield from (alias.name for alias in inner.names)
        elif isinstance(inner, ast.ImportFrom) and inner.level == 0 and inner.module:
            yield inner.module
        elif not isinstance(inner, ast.Try):
            yield from _imported(inner)


def _early(tree: ast.Module, function: str) -> Iterator[str]:
    """Yield the statements that run at the import, and not at each call."""
    for node in tree.body:
        main = isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)
        works = any(isinstance(each, ast.Call) for each in ast.walk(node))
        if works and not main and not isinstance(node, (*_QUIET, ast.Assign, ast.AnnAssign, ast.Try)):
            yield f"line {node.lineno} runs at the import, and not at each call; move it into {function}"


def _with_block(path: Path, text: str, packages: Sequence[str], fields: dict[str, str]) -> str:
    """Return the text with the block of a module. Raises ConfigError."""
    table = [_TABLE, *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items())]
    known = [(line, inside) for kind, line, inside in blocks(text) if kind == KIND]
    lines = text.splitlines(keepends=True)
    if known:
        first, inside = known[0]
        if any(line.strip().startswith("[tool.operato") for line in inside):
            raise _wrong(path, f"is a module already, with {_TABLE}; push it as it is", first)
        return "".join([*lines[: first + len(inside)], *_comments(["", *table]), *lines[first + len(inside) :]])
    given = [f"dependencies = {json.dumps(list(packages))}", ""] if packages else []
    at = next((number for number, line in enumerate(lines[:2]) if not line.startswith("#")), min(len(lines), 2))
    at = 0 if not text.startswith("#!") and "coding" not in "".join(lines[:at]) else at
    block = ["# /// script\n", *_comments([*given, *table]), "# ///\n"]
    return "".join([*lines[:at], *block, *lines[at:]])


def _comments(lines: Sequence[str]) -> list[str]:
    return [f"# {line}".rstrip() + "\n" for line in lines]


def _example(data: bytes, function: str) -> Any:
    schema = input_schema(data, function)
    if schema is None:
        return None
    from config.schema import examples

    return next(iter(examples(schema)), None)


def write_script(path: Path, name: str | None, function: str | None, folder: str | None) -> int:
    """Write a script as a module to a folder, by default one of its name, and print what to do next.

    Raises ConfigError, OSError. Nothing is overwritten.
    """
    made = read_script(path, name, function)
    place = Path(made.name if folder is None else folder)
    to = place / path.name
    if to.exists() or to.is_symlink():
        text = f"would overwrite {path.name}; nothing was written: choose another folder with --folder"
        raise ConfigError([Mistake(text, str(place), None, "")])
    place.mkdir(parents=True, exist_ok=True)
    with to.open("xb") as file:
        file.write(made.text.encode())
    click.echo(f"{click.format_filename(to)}: {made.name} calls {made.function}")
    for note in made.notes:
        click.echo(f"note: {note}", err=True)
    quoted = shlex.quote(str(to))
    example = "" if made.example is None else f" {shlex.quote(json.dumps(made.example, ensure_ascii=False))}"
    click.echo(f"try it: operato-runner run {quoted}{example}", err=True)
    click.echo(f"send it to a server: operato-runner push {quoted}", err=True)
    return 0
