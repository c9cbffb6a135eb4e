"""A JSON Schema of a handler's input, from the type hint of its first parameter, without running anything.

The guest hands over the JSON as Python reads it: only hints about what JSON becomes say anything about the input. What
is not certain (a name that is not plainly `typing`'s or Python's own, a class, a decorator) says nothing, at its place
or at all.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

from attrs import define, field

from config.code.source import Names, quiet

Schema: TypeAlias = dict[str, Any]

_MAX_BYTES = 128 * 1024
"""Source of which hints are read: reading takes time in which nothing else is done."""
MAX_DEPTH = 16
"""Levels of hints within hints, names that stand for others included."""
MAX_PARTS = 500
"""Hints within one; a larger one says nothing."""
_MAX_CHOICES = 200
_MAX_TEXT = 200
_TYPING = ("typing", "typing_extensions")
_MODULES = (*_TYPING, "collections.abc", "types")
_OWN = frozenset(
    {
        "Annotated",
        "Any",
        "Dict",
        "List",
        "Literal",
        "Mapping",
        "MutableMapping",
        "NoneType",
        "NotRequired",
        "Optional",
        "ReadOnly",
        "Required",
        "Text",
        "TypedDict",
        "Union",
    }
)
"""What is known of those modules."""
_PLAIN: Mapping[str, Schema] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "list": {"type": "array"},
    "dict": {"type": "object"},
}
_SAME = {"List": "list", "Dict": "dict", "Mapping": "dict", "MutableMapping": "dict", "Text": "str"}
"""Names of `typing` and `collections.abc` for what JSON becomes; a string is a `Sequence` too, so that is not here."""


class _TooMuchError(Exception):
    """The hint is larger than is worth while."""


def input_schema(source: bytes, handler: str) -> Schema | None:
    """Return what the hint of the handler's first parameter says of the input, or None when it says nothing."""
    begun = re.compile(rb"def\s+%b\s*\([^:,=)]+:" % re.escape(handler.encode()))
    if len(source) > _MAX_BYTES or not begun.search(source):  # most have no hint, and need not be read for that
        return None
    try:
        with quiet():
            tree = ast.parse(source)
        names = Names(tree)
        function = names.only(handler)
        if not isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) or function.decorator_list:
            return None
        if getattr(function, "type_params", []):
            return None
        return _of_parameter(function.args, _Hints(names))
    except (SyntaxError, ValueError, RecursionError, MemoryError, _TooMuchError):
        return None


def _of_parameter(arguments: ast.arguments, hints: _Hints) -> Schema | None:
    parameters = [*arguments.posonlyargs, *arguments.args]
    if not parameters or parameters[0].annotation is None:
        return None
    schema = hints.schema(parameters[0].annotation, 0)
    default = arguments.defaults[0] if len(arguments.defaults) == len(parameters) else None
    if isinstance(default, ast.Constant) and default.value is None:
        schema = _any_of([schema, {"type": "null"}])
    return schema or None


@define
class _Hints:
    """Reads hints with the names of one file."""

    names: Names
    parts: int = 0
    within: list[str] = field(factory=list)
    """The classes and aliases that are being read: one that is in itself says nothing there."""

    def schema(self, node: ast.expr, depth: int) -> Schema:  # noqa: PLR0911  (one for each form)
        """Return what a hint says: the empty schema when that is nothing. Raises `_TooMuchError`."""
        self._count()
        if depth > MAX_DEPTH:
            return {}
        match node:
            case ast.Constant(value=None):
                return {"type": "null"}
            case ast.Constant(value=str(text)):
                return self.schema(_parsed(text), depth + 1)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return _any_of([self.schema(left, depth + 1), self.schema(right, depth + 1)])
            case ast.Name() | ast.Attribute():
                return self._named(node, depth)
            case ast.Subscript(value=value, slice=inner):
                return self._subscript(self.canonical(value), inner, depth)
        return {}

    def _count(self) -> None:
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise _TooMuchError

    def canonical(self, node: ast.expr) -> str:
        """Return which of Python's or `typing`'s own names an expression is; empty for all others."""
        if isinstance(node, ast.Name):
            if node.id in self.names.loose or self.names.open:
                return ""
            sites = self.names.sites.get(node.id)
            if sites is None:
                return node.id if node.id in _PLAIN else ""
            found = {_imported(site, node.id) for site in sites}
            return found.pop() if len(found) == 1 else ""
        if isinstance(node, ast.Attribute):
            module = self._module(node.value)
            return _known(module, node.attr) if module else ""
        return ""

    def _module(self, node: ast.expr) -> str:
        """Return the name of the module of hints that an expression is; empty for all others."""
        if isinstance(node, ast.Attribute):
            return "collections.abc" if node.attr == "abc" and self._module(node.value) == "collections" else ""
        if not isinstance(node, ast.Name) or node.id in self.names.loose or self.names.open:
            return ""
        sites = self.names.sites.get(node.id, [])
        found = {_imported_module(site, node.id) for site in sites}
        return found.pop() if len(found) == 1 else ""

    def _named(self, node: ast.Name | ast.Attribute, depth: int) -> Schema:
        name = self.canonical(node)
        if name:
            name = _SAME.get(name, name)
            return {"type": "null"} if name == "NoneType" else dict(_PLAIN.get(name, {}))
        if not isinstance(node, ast.Name) or node.id in self.within:
            return {}
        found = self.names.only(node.id)
        self.within.append(node.id)
        try:
            if isinstance(found, ast.ClassDef):
                return self._typed_dict(found, depth + 1)
            if isinstance(found, ast.Assign) and len(found.targets) == 1:
                return self.schema(found.value, depth + 1)
        finally:
            self.within.pop()
        return {}

    def _subscript(self, name: str, inner: ast.expr, depth: int) -> Schema:  # noqa: PLR0911  (one for each name)
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        match _SAME.get(name, name):
            case "list" if len(parts) == 1:
                items = self.schema(parts[0], depth + 1)
                return {"type": "array"} | ({"items": items} if items else {})
            case "dict" if len(parts) == 2:
                values = self.schema(parts[1], depth + 1) if self.schema(parts[0], depth + 1) in _KEYS else {}
                return {"type": "object"} | ({"additionalProperties": values} if values else {})
            case "Optional" if len(parts) == 1:
                return _any_of([self.schema(parts[0], depth + 1), {"type": "null"}])
            case "Union" if parts:
                return _any_of([self.schema(part, depth + 1) for part in parts])
            case "Literal":
                return _literal(parts)
            case "Annotated" if len(parts) > 1:
                return self.schema(parts[0], depth + 1)
        return {}

    def _typed_dict(self, node: ast.ClassDef, depth: int) -> Schema:
        """Return the schema of a `TypedDict` of the file; the empty one for every other class."""
        if not self._is_typed_dict(node, 0):
            return {}
        properties: dict[str, Schema] = {}
        required: dict[str, None] = {}
        for each in self._lineage(node):
            total = _total(each)
            for item in each.body:
                if isinstance(item, ast.Pass) or (isinstance(item, ast.Expr) and isinstance(item.value, ast.Constant)):
                    continue
                if not isinstance(item, ast.AnnAssign) or not isinstance(item.target, ast.Name):
                    return {"type": "object"}
                name = item.target.id
                if name.startswith("__"):  # Python gives it another name
                    continue
                hint, wanted = self._key(item.annotation, total)
                properties[name] = self.schema(hint, depth + 1)
                required.pop(name, None)
                if wanted:
                    required[name] = None
        said = {name: schema for name, schema in properties.items() if schema}
        result: Schema = {"type": "object"}
        return result | ({"properties": said} if said else {}) | ({"required": list(required)} if required else {})

    def _key(self, hint: ast.expr, total: bool | None) -> tuple[ast.expr, bool]:
        """Return the hint of a key, and whether the key must be there."""
        wanted = total is True
        for _ in range(MAX_DEPTH):
            if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
                hint = _parsed(hint.value)
            if not isinstance(hint, ast.Subscript):
                break
            name = self.canonical(hint.value)
            if name == "Annotated" and isinstance(hint.slice, ast.Tuple) and hint.slice.elts:
                hint = hint.slice.elts[0]
                continue
            if name not in ("Required", "NotRequired", "ReadOnly"):
                break
            wanted = wanted if name == "ReadOnly" else name == "Required"
            hint = hint.slice
        return hint, wanted

    def _is_typed_dict(self, node: ast.ClassDef, depth: int) -> bool:
        self._count()
        usual = all(keyword.arg == "total" for keyword in node.keywords)
        if depth > MAX_DEPTH or node.decorator_list or getattr(node, "type_params", []) or not usual or not node.bases:
            return False
        return all(
            self.canonical(base) == "TypedDict"
            or (isinstance(parent := self._class(base), ast.ClassDef) and self._is_typed_dict(parent, depth + 1))
            for base in node.bases
        )

    def _class(self, base: ast.expr) -> ast.AST | None:
        return self.names.only(base.id) if isinstance(base, ast.Name) else None

    def _lineage(self, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        """Yield the classes of a `TypedDict` from the first one on, each as often as it is inherited from."""
        self._count()
        for base in node.bases:
            parent = self._class(base)
            if isinstance(parent, ast.ClassDef) and parent is not node:
                yield from self._lineage(parent)
        yield node


_KEYS: tuple[Schema, ...] = ({}, {"type": "string"})
"""What the keys of a JSON object may be hinted as; another hint is about a value that is made later."""


def _parsed(text: str) -> ast.expr:
    """Return the hint that stands in quotes; one that says nothing for what is no expression."""
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return ast.Constant(value=...)


def _total(node: ast.ClassDef) -> bool | None:
    """Return whether all keys of a class must be there; None when that is not said plainly."""
    values = [keyword.value for keyword in node.keywords]
    if not values:
        return True
    return values[0].value if isinstance(values[0], ast.Constant) and isinstance(values[0].value, bool) else None


def _known(module: str, name: str) -> str:
    return name if module in _MODULES and name in _OWN else ""


def _imported(site: ast.AST, name: str) -> str:
    """Return the own name of what an import binds to `name`, where it comes from a module of hints."""
    if isinstance(site, ast.ImportFrom) and site.level == 0:
        made = {each.asname or each.name: each.name for each in site.names}
        return _known(site.module or "", made.get(name, ""))
    return ""


def _imported_module(site: ast.AST, name: str) -> str:
    """Return the module that an import binds to `name`, where it is one of hints or holds one."""
    modules = (*_MODULES, "collections")
    found = ""
    if isinstance(site, ast.Import):
        for alias in site.names:
            if alias.asname == name:
                found = alias.name
            elif alias.asname is None and alias.name.partition(".")[0] == name:
                found = name
    elif isinstance(site, ast.ImportFrom) and site.level == 0 and site.module == "collections":
        made = {each.asname or each.name: each.name for each in site.names}
        found = "collections.abc" if made.get(name) == "abc" else ""
    return found if found in modules else ""


def _any_of(schemas: list[Schema]) -> Schema:
    """Return the schema of what fits one of some; one of them that says nothing lets everything pass."""
    if not all(schemas):
        return {}
    found: list[Schema] = []
    for schema in schemas:
        inner = schema["anyOf"] if list(schema) == ["anyOf"] else [schema]
        found += [each for each in inner if each not in found]
    return found[0] if len(found) == 1 else {"anyOf": found}


def _literal(parts: list[ast.expr]) -> Schema:
    values: list[Any] = []
    for part in parts[:_MAX_CHOICES]:
        match part:
            case ast.Constant(value=str() | bool() | int() | None) if _sayable(part.value):
                value = part.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))) if _sayable(number):
                value = -number
            case _:
                return {}
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            values.append(value)
    return {"enum": values} if len(parts) <= _MAX_CHOICES else {}


def _sayable(value: object) -> bool:
    """Return whether a value can be in a schema that is kept and sent as JSON."""
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT and not any("\ud800" <= character <= "\udfff" for character in value)
    return not isinstance(value, int) or abs(value) < 2**63
