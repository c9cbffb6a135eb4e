"""What is wrong with a module's source, told without running it: it compiles, and its handler can be called.

Standard library only and Python 3.8 and later, since it is a program as well: another interpreter, which knows its own
grammar best, runs it as `python -I -S source.py FILE HANDLER NAME` and prints the findings as JSON. An empty HANDLER
checks all but the handler. Nothing is told that the guest (`protocol/guest.py`) might run all the same: whatever cannot
be seen in the text, such as a name that is made while the module is imported, passes.
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
"""Source that is longer is not looked at."""
_MAX_SHOWN = 80
_MAX_NAMES = 10
_OLDEST_GRAMMAR = (3, 9)
"""What `feature_version` can be asked about; it is wrong about `with (open(name)):` in 3.8."""
_REFLECTIVE = frozenset(
    "globals locals vars exec eval setattr modules __dict__ f_globals __import__ import_module".split()  # noqa: SIM905
)
"""Names by which a module can make names that are not in its text."""
_LITERALS = (ast.Constant, ast.List, ast.Tuple, ast.Set, ast.Dict, ast.JoinedStr, ast.ListComp, ast.DictComp)
_CLOSED = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
"""What has names of its own; a walrus in it is found apart."""
_WARNINGS = threading.Lock()
"""The filters of warnings are the process's own."""


class Finding(NamedTuple):
    """One mistake: in the `code`, at `line` (from 1) where it has one, or in the name of the `handler`."""

    about: str
    message: str
    line: int | None = None
    allowed: str = ""


class Verdict(NamedTuple):
    """What was found. `certain` is false where only an interpreter of the target version could tell."""

    findings: list[Finding]
    certain: bool = True


def check(source: bytes, handler: str, target: tuple[int, int] | None, name: str, largest: int = MAX_BYTES) -> Verdict:
    """Return what is wrong with the source of a module that will be imported by Python `target`.

    `handler` may be empty; `target` is None where it is not known. `name` is what messages call the source. Of more
    than `largest` bytes nothing is said.
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
        # It compiled: what is wide enough cannot be made a tree of objects.
        return Verdict([])
    return Verdict(list(_named(tree, handler, name)))


def _compiled(source: bytes, target: tuple[int, int] | None, name: str) -> tuple[Finding | None, bool]:
    """Return why the source does not compile, and whether this interpreter can say so for the target."""
    running = sys.version_info[:2]
    problem = _compile(source, target)
    if isinstance(problem, (RecursionError, MemoryError)):
        # How deep is too deep depends on how deep the caller is: a thread begins anew, as a guest does.
        again: list[Exception | None] = []
        thread = threading.Thread(target=lambda: again.append(_compile(source, target)))
        thread.start()
        thread.join()
        problem = again[0]
    if problem is None:
        return None, True
    if isinstance(problem, SyntaxError):
        # No later Python reads another layout; everything else may be grammar that this one does not know.
        judged = target is not None and target <= running
        return (
            (_not_compiled(problem, name), True) if judged or isinstance(problem, IndentationError) else (None, False)
        )
    if isinstance(problem, (RecursionError, MemoryError)) and target != running:
        return None, False
    return Finding("code", f"does not compile: {problem or 'it is nested too deeply'}"), True


def _compile(source: bytes, target: tuple[int, int] | None) -> Exception | None:
    """Return what compiling raises, in the grammar of this interpreter and, as far as it knows it, of the target."""
    try:
        with quiet():
            compile(source, "code", "exec", dont_inherit=True)
            if target is not None and _OLDEST_GRAMMAR <= target < sys.version_info[:2]:
                ast.parse(source, feature_version=target)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError) as problem:
        return problem
    return None


class quiet:  # noqa: N801  (it reads as a function)
    """Keep what compiling warns of from anybody's eyes."""

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
    """The names that a module has once it is imported, as far as its text says."""

    def __init__(self, tree: ast.Module) -> None:
        self.sites: dict[str, list[ast.AST]] = {}
        """Where each name is bound at top level, `if`, `try`, `with` and loops included."""
        self.loose: set[str] = set()
        """Names that may be bound or changed by what runs later, or in the midst of an expression."""
        self.open = False
        """There may be any other name."""
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
        """Return the functions that somebody may have meant, in the order of the file."""
        lines = {
            name: node.lineno
            for name, nodes in self.sites.items()
            for node in nodes
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)) and not name.startswith("_")
        }
        return sorted(lines, key=lambda name: lines[name])

    def only(self, name: str) -> ast.AST | None:
        """Return the one thing that a name is bound to, or None where it may be another one when it is called."""
        sites = self.sites.get(name, [])
        return sites[0] if len(sites) == 1 and name not in self.loose and not self.open else None


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node binds by itself, without those that are nodes below it."""
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


def _named(tree: ast.Module, handler: str, name: str) -> Iterator[Finding]:
    """Check that handler and `init` can be called as the guest calls them."""
    names = Names(tree)
    known = handler in names.sites or handler in names.loose or names.open or hasattr(types.ModuleType, handler)
    if handler and not known:
        yield _missing(handler, names.functions(), name)
    found = names.only(handler)
    if isinstance(found, (ast.FunctionDef, ast.AsyncFunctionDef)) and not found.decorator_list:
        yield from _callable(found, name)
    elif isinstance(found, ast.Assign) and isinstance(found.value, _LITERALS):
        text = f"{handler!r} is a value, not a function (line {found.lineno} of {name})"
        yield Finding("handler", text, allowed="the name of a function")
    init = names.only("init")
    if isinstance(init, (ast.FunctionDef, ast.AsyncFunctionDef)) and not init.decorator_list and init is not found:
        needed = _needed(init) + _needed_by_name(init)
        if needed:
            text = f"`init` is called without arguments, but needs {_listed(needed)}"
            remedy = f"give a default, or another name to the function (line {init.lineno} of {name})"
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


def _callable(function: ast.FunctionDef | ast.AsyncFunctionDef, name: str) -> Iterator[Finding]:
    """Check that a function takes an input, or an input and a context, by position."""
    wanted = f"def {function.name}(input):"
    needed, named = _needed(function), _needed_by_name(function)
    if named:
        text = f"is called with input, or input and context, but needs {_listed(named)} by name; give a default"
    elif not (_positional(function.args) or function.args.vararg):
        text = f"takes no parameter; write `{wanted}`"
    elif len(needed) > 2:
        text = f"needs {len(needed)} parameters ({_listed(needed)}), but is called with input, or input and context"
    else:
        return
    yield Finding("code", f"the handler {text} (line {function.lineno} of {name})", function.lineno, wanted)


def _positional(arguments: ast.arguments) -> list[ast.arg]:
    return [*arguments.posonlyargs, *arguments.args]


def _needed(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[str]:
    """Return the parameters by position that have no default."""
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
    """Check the file and the handler that the command line names; print the findings as one line of JSON."""
    with Path(sys.argv[1]).open("rb") as file:
        source = file.read(MAX_BYTES + 1)
    verdict = check(source, sys.argv[2], sys.version_info[:2], sys.argv[3])
    sys.stdout.write(json.dumps([list(finding) for finding in verdict.findings]) + "\n")


if __name__ == "__main__":
    main()
