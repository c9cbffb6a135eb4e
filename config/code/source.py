"""Static check of a module's source: it compiles, and its handler can be called.

Standard library only, Python 3.8 and later, since it is also a program: another interpreter, which knows its own
grammar best, runs it as `python -I -S source.py FILE HANDLER NAME PACKAGE SHARED` and prints the findings as
JSON. An empty HANDLER leaves the handler unchecked; an empty PACKAGE means that relative imports fail, an empty SHARED
that a worker runs one call at a time. Source that the guest (`protocol/guest.py`) could run is never refused: names
created at run time are accepted.
"""

from __future__ import annotations

import ast
import difflib
import json
import sys
import threading
import types
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

MAX_BYTES = 2 * 1024 * 1024
"""Longer source is not checked."""
_MAX_SHOWN = 80
_MAX_NAMES = 10
_OLDEST_GRAMMAR = (3, 9)
"""The oldest grammar to check by `feature_version`; for 3.8 it wrongly refuses `with (open(name)):`."""
_REFLECTIVE = frozenset(
    "globals locals vars exec eval setattr modules __dict__ f_globals __import__ import_module".split()  # noqa: SIM905
)
"""Names with which a module can create names that are not in its text."""
_LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.JoinedStr, ast.ListComp, ast.DictComp)
_CLOSED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
"""Nodes with a scope of their own; a walrus in them is found by `_look`."""
_WARNINGS = threading.Lock()
"""Guards the warning filters, which belong to the whole process."""


class Finding(NamedTuple):
    """One mistake: in the `code`, at `line` (from 1) if known, or in the name of the `handler`."""

    about: str
    message: str
    line: int | None = None
    allowed: str = ""


class Verdict(NamedTuple):
    """The findings. `certain` is false if only an interpreter of the target version can decide."""

    findings: list[Finding]
    certain: bool = True


def check(
    source: bytes,
    handler: str,
    target: tuple[int, int] | None,
    name: str,
    largest: int = MAX_BYTES,
    *,
    package: bool = True,
    shared: bool = False,
) -> Verdict:
    """Return the mistakes in the source of a module that Python `target` will import.

    `handler` may be empty; `target` is None if unknown. Messages call the source `name`. Source of more than `largest`
    bytes is not checked. Without `package`, relative imports fail. A `shared` worker needs an async handler.
    """
    if len(source) > largest:
        return Verdict([], certain=False)
    finding, certain = _compiled(source, target, name)
    if finding is not None:
        return Verdict([finding])
    if not certain:
        return Verdict([], certain=False)
    try:
        with quiet():
            tree = ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        # It compiled, but is too large for a tree of objects.
        return Verdict([])
    return Verdict([*([] if package else _relative(tree, name)), *_named(tree, handler, name, shared=shared)])


def _compiled(source: bytes, target: tuple[int, int] | None, name: str) -> tuple[Finding | None, bool]:
    """Return why the source does not compile, and whether this interpreter can decide that for the target."""
    running = sys.version_info[:2]
    problem = _compile(source, target)
    if isinstance(problem, (RecursionError, MemoryError)):
        # The recursion limit includes the caller's depth: a thread has a fresh stack, as a guest has.
        again: list[Exception | None] = []
        thread = threading.Thread(target=lambda: again.append(_compile(source, target)))
        thread.start()
        thread.join()
        problem = again[0]
    if problem is None:
        return None, True
    if isinstance(problem, SyntaxError):
        # Indentation rules do not change; any other error may be grammar that this Python does not know.
        judged = target is not None and target <= running
        return (
            (_not_compiled(problem, name), True) if judged or isinstance(problem, IndentationError) else (None, False)
        )
    if isinstance(problem, (RecursionError, MemoryError)) and target != running:
        return None, False
    return Finding("code", f"does not compile: {problem or 'it is nested too deeply'}"), True


def _compile(source: bytes, target: tuple[int, int] | None) -> Exception | None:
    """Return the error of compiling with this interpreter's grammar and, if it knows it, the target's; else None."""
    try:
        with quiet():
            compile(source, "code", "exec", dont_inherit=True)
            if target is not None and _OLDEST_GRAMMAR <= target < sys.version_info[:2]:
                ast.parse(source, feature_version=target)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as problem:
        return problem
    return None


class quiet:  # noqa: N801  (it reads as a function)
    """Suppress the warnings of compiling."""

    def __enter__(self) -> None:
        _WARNINGS.acquire()
        self._caught = warnings.catch_warnings()
        self._caught.__enter__()
        warnings.simplefilter("ignore")

    def __exit__(self, *problem: object) -> None:
        self._caught.__exit__(None, None, None)
        _WARNINGS.release()


def _not_compiled(error: SyntaxError, name: str) -> Finding:
    line = error.lineno or 1
    place = f"line {line} of {name}"
    if error.offset is not None and error.offset > 0:
        place += f", column {error.offset}"
    text = "".join(c if c.isprintable() else " " for c in error.text or "").strip()
    if text:
        place += f": `{_cut(text)}`"
    return Finding("code", f"does not compile: {error.msg} ({place})", line)


class Names:
    """The names that a module has after its import, as far as its text shows."""

    def __init__(self, tree: ast.Module) -> None:
        self.sites: dict[str, list[ast.AST]] = {}
        """The nodes that bind each name at top level, including those in `if`, `try`, `with` and loops."""
        self.loose: set[str] = set()
        """Names that later code, or a part of an expression, may bind or change."""
        self.open = False
        """Whether the module may have any other name."""
        for node in ast.walk(tree):
            self._look(node)
        self._top_level(tree)
        self.open = self.open or "__getattr__" in self.sites or "__getattr__" in self.loose

    def _look(self, node: ast.AST) -> None:
        if isinstance(node, ast.Global):
            self.loose.update(node.names)
        elif isinstance(node, ast.NamedExpr):
            self.loose.add(node.target.id)
        elif isinstance(node, ast.ImportFrom):
            self.open = self.open or any(alias.name == "*" or alias.name in _REFLECTIVE for alias in node.names)
        elif isinstance(node, ast.Name):
            self.open = self.open or node.id in _REFLECTIVE
        elif isinstance(node, ast.Attribute):
            self.open = self.open or node.attr in _REFLECTIVE
            if not isinstance(node.ctx, ast.Load):
                self.loose.add(node.attr)
                if isinstance(node.value, ast.Name):
                    self.loose.add(node.value.id)

    def _top_level(self, tree: ast.Module) -> None:
        todo: list[ast.AST] = [tree]
        while todo:
            node = todo.pop()
            for name in _bound(node):
                self.sites.setdefault(name, []).append(node)
            if isinstance(node, ast.Assign):
                todo += [node.value, *(each for each in node.targets if not isinstance(each, ast.Name))]
            elif not isinstance(node, _CLOSED) and not (isinstance(node, ast.AnnAssign) and node.value is None):
                todo += ast.iter_child_nodes(node)

    def functions(self) -> list[str]:
        """Return the public functions, in the order of the file."""
        lines = {
            name: node.lineno
            for name, nodes in self.sites.items()
            for node in nodes
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not name.startswith("_")
        }
        return sorted(lines, key=lambda name: lines[name])

    def only(self, name: str) -> ast.AST | None:
        """Return the only node that binds a name, or None if it may be bound to something else at run time."""
        sites = self.sites.get(name, [])
        return sites[0] if len(sites) == 1 and name not in self.loose and not self.open else None


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node binds itself, without those of nodes below it."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.Assign):
        yield from (each.id for each in node.targets if isinstance(each, ast.Name))
    elif isinstance(node, (ast.Import, ast.ImportFrom)):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    elif isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.ExceptHandler) or type(node).__name__.startswith("Match"):
        yield from (name for name in (getattr(node, "name", None), getattr(node, "rest", None)) if name is not None)


def _relative(tree: ast.Module, name: str) -> Iterator[Finding]:
    """Yield the first relative import that every import of the module runs."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and "__package__" in _bound(node):
            return
        if isinstance(node, ast.ImportFrom) and node.level:
            found = node.module or node.names[0].name
            text = f"a relative import needs a package: write `import {found}`, or add an `__init__.py` to the folder"
            yield Finding("code", f"{text} (line {node.lineno} of {name})", node.lineno)
            return


def _named(tree: ast.Module, handler: str, name: str, *, shared: bool) -> Iterator[Finding]:
    """Check that there is a handler, and that `init` can be called without arguments."""
    names = Names(tree)
    known = handler in names.sites or handler in names.loose or names.open or hasattr(types.ModuleType, handler)
    if handler and not known:
        yield _missing(handler, names.functions(), name)
    found = names.only(handler)
    if isinstance(found, ast.Assign) and isinstance(found.value, _LITERALS):
        text = f"{handler!r} is a value, not a function (line {found.lineno} of {name})"
        yield Finding("handler", text, allowed="the name of a function")
    if shared and isinstance(found, ast.FunctionDef) and not found.decorator_list:
        text = f"{handler!r} is not async, so one call at a time runs in a worker; write `async def`"
        yield Finding("calls", f"{text} (line {found.lineno} of {name})", allowed="1")
    init = names.only("init")
    if isinstance(init, (ast.FunctionDef, ast.AsyncFunctionDef)) and not init.decorator_list and init is not found:
        needed = _needed(init) + _needed_by_name(init)
        if needed:
            text = f"`init` is called without arguments, but needs {_listed(needed)}"
            remedy = f"add defaults, or rename the function (line {init.lineno} of {name})"
            yield Finding("code", f"{text}; {remedy}", init.lineno)


def _missing(handler: str, functions: list[str], name: str) -> Finding:
    text = f"there is no function {handler!r}; {name} has {_listed(functions) or 'no functions'}"
    near = difflib.get_close_matches(handler.lower(), functions, n=1)
    if near:
        text += f"; did you mean {near[0]!r}?"
    elif len(functions) == 1:
        text += f"; write `handler: {functions[0]}` to call it"
    elif not functions:
        text += f"; write `def {handler}(input):`"
    return Finding("handler", text, allowed=", ".join(functions[:_MAX_NAMES]))


def _positional(arguments: ast.arguments) -> list[ast.arg]:
    return [*arguments.posonlyargs, *arguments.args]


def _needed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the positional parameters without a default."""
    given = _positional(function.args)
    return [argument.arg for argument in given[: len(given) - len(function.args.defaults)]]


def _needed_by_name(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    pairs = zip(function.args.kwonlyargs, function.args.kw_defaults)
    return [argument.arg for argument, default in pairs if default is None]


def _listed(names: list[str]) -> str:
    return ", ".join([*map(_cut, names[:_MAX_NAMES]), *["..."] * (len(names) > _MAX_NAMES)])


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def main() -> None:
    """Check file and handler from the command line; print the findings as one line of JSON."""
    with Path(sys.argv[1]).open("rb") as file:
        source = file.read(MAX_BYTES + 1)
    package, shared = bool(sys.argv[4]), bool(sys.argv[5])
    verdict = check(source, sys.argv[2], sys.version_info[:2], sys.argv[3], package=package, shared=shared)
    sys.stdout.write(json.dumps([list(finding) for finding in verdict.findings]) + "\n")


if __name__ == "__main__":
    main()
