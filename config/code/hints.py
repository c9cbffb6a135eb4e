"""JSON Schemas of type hints, without running anything: those of the types that JSON has.

Uncertain hints (a name that is not clearly from `typing` or built in, a class) are ignored, in part or as a whole.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeAlias

from config.code.source import Names

Schema: TypeAlias = dict[str, Any]

MAX_DEPTH = 16
"""Levels of nested hints, aliases included."""
MAX_PARTS = 500
"""Parts of one hint; a larger one is ignored."""
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
"""The names of these modules that are understood."""
_PLAIN: Mapping[str, Schema] = {
    "bool": {"type": "boolean"},
    "int": {"type": "integer"},
    "float": {"type": "number"},
    "str": {"type": "string"},
    "list": {"type": "array"},
    "dict": {"type": "object"},
}
_SAME = {"List": "list", "Dict": "dict", "Mapping": "dict", "MutableMapping": "dict", "Text": "str"}
"""Names of `typing` and `collections.abc` for the types of JSON; without `Sequence`, which a string is too."""


class TooMuchError(Exception):
    """The hint is too large."""


class Hints:
    """Reads the hints of one file, for a handler that gets JSON as Python reads it."""

    builtin: ClassVar[frozenset[str]] = frozenset(_PLAIN)
    """The built-in names that are understood."""
    library: ClassVar[Mapping[str, frozenset[str]]] = dict.fromkeys(_MODULES, _OWN)
    """The names that are understood, by their module."""

    def __init__(self, names: Names) -> None:
        self.names = names
        self.parts = 0
        self.within: list[str] = []
        """The classes and aliases being read: a recursive use of one is ignored."""

    def schema(self, node: ast.expr, depth: int) -> Schema:  # noqa: PLR0911  (one for each form)
        """Return the schema of a hint, empty if the hint accepts everything. Raises `TooMuchError`."""
        self.count()
        if depth > MAX_DEPTH:
            return {}
        match node:
            case ast.Constant(value=None):
                return {"type": "null"}
            case ast.Constant(value=str(text)):
                return self.schema(parsed(text), depth + 1)
            case ast.BinOp(op=ast.BitOr(), left=left, right=right):
                return any_of([self.schema(left, depth + 1), self.schema(right, depth + 1)])
            case ast.Name() | ast.Attribute():
                return self.named(node, depth)
            case ast.Subscript(value=value, slice=inner):
                return self.subscript(self.canonical(value), inner, depth)
        return {}

    def count(self) -> None:
        """Count one part. Raises `TooMuchError` above the limit."""
        self.parts += 1
        if self.parts > MAX_PARTS:
            raise TooMuchError

    def canonical(self, node: ast.expr) -> str:
        """Return the name of an expression that is built in or from `typing`; empty for all others."""
        if isinstance(node, ast.Name):
            if node.id in self.names.loose or self.names.open:
                return ""
            sites = self.names.sites.get(node.id)
            if sites is None:
                return node.id if node.id in self.builtin else ""
            found = {self._imported(site, node.id) for site in sites}
            return found.pop() if len(found) == 1 else ""
        if isinstance(node, ast.Attribute):
            module = self._module(node.value)
            return self._known(module, node.attr) if module else ""
        return ""

    def _module(self, node: ast.expr) -> str:
        """Return the name of an expression that is a module of hints; empty for all others."""
        if isinstance(node, ast.Attribute):
            return "collections.abc" if node.attr == "abc" and self._module(node.value) == "collections" else ""
        if not isinstance(node, ast.Name) or node.id in self.names.loose or self.names.open:
            return ""
        sites = self.names.sites.get(node.id, [])
        found = {_imported_module(site, node.id) for site in sites}
        module = found.pop() if len(found) == 1 else ""
        return module if module == "collections" or module in self.library else ""

    def _known(self, module: str, name: str) -> str:
        return name if name in self.library.get(module, ()) else ""

    def _imported(self, site: ast.AST, name: str) -> str:
        """Return the original name of an import that binds `name`, if it is understood."""
        if isinstance(site, ast.ImportFrom) and site.level == 0:
            made = {each.asname or each.name: each.name for each in site.names}
            return self._known(site.module or "", made.get(name, ""))
        return ""

    def named(self, node: ast.Name | ast.Attribute, depth: int) -> Schema:
        """Return the schema of a name."""
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
                return self.of_class(found, depth + 1)
            if isinstance(found, ast.Assign) and len(found.targets) == 1:
                return self.schema(found.value, depth + 1)
        finally:
            self.within.pop()
        return {}

    def subscript(self, name: str, inner: ast.expr, depth: int) -> Schema:  # noqa: PLR0911  (one for each name)
        """Return the schema of a type with arguments."""
        parts = inner.elts if isinstance(inner, ast.Tuple) else [inner]
        match _SAME.get(name, name):
            case "list" if len(parts) == 1:
                items = self.schema(parts[0], depth + 1)
                return {"type": "array"} | ({"items": items} if items else {})
            case "dict" if len(parts) == 2:
                values = self.schema(parts[1], depth + 1) if self.schema(parts[0], depth + 1) in _KEYS else {}
                return {"type": "object"} | ({"additionalProperties": values} if values else {})
            case "Optional" if len(parts) == 1:
                return any_of([self.schema(parts[0], depth + 1), {"type": "null"}])
            case "Union" if parts:
                return any_of([self.schema(part, depth + 1) for part in parts])
            case "Literal":
                return literal(parts)
            case "Annotated" if len(parts) > 1:
                return self.schema(parts[0], depth + 1)
        return {}

    def of_class(self, node: ast.ClassDef, depth: int) -> Schema:
        """Return the schema of a `TypedDict` of the file; empty for other classes."""
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
                if name.startswith("__"):  # Python mangles the name
                    continue
                hint, wanted = self._key(item.annotation, total)
                properties[name] = self.schema(hint, depth + 1)
                required.pop(name, None)
                if wanted:
                    required[name] = None
        known = {name: schema for name, schema in properties.items() if schema}
        result: Schema = {"type": "object"}
        return result | ({"properties": known} if known else {}) | ({"required": list(required)} if required else {})

    def _key(self, hint: ast.expr, total: bool | None) -> tuple[ast.expr, bool]:
        """Return the hint of a key, and whether the key is required."""
        wanted = total is True
        for _ in range(MAX_DEPTH):
            if isinstance(hint, ast.Constant) and isinstance(hint.value, str):
                hint = parsed(hint.value)
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
        self.count()
        usual = all(keyword.arg == "total" for keyword in node.keywords)
        if depth > MAX_DEPTH or node.decorator_list or getattr(node, "type_params", []) or not usual or not node.bases:
            return False
        return all(
            self.canonical(base) == "TypedDict"
            or (isinstance(parent := self.class_of(base), ast.ClassDef) and self._is_typed_dict(parent, depth + 1))
            for base in node.bases
        )

    def class_of(self, base: ast.expr) -> ast.AST | None:
        """Return what binds the name of a base class."""
        return self.names.only(base.id) if isinstance(base, ast.Name) else None

    def _lineage(self, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        """Yield the classes of a `TypedDict`, bases first; a class is repeated if it is inherited several times."""
        self.count()
        for base in node.bases:
            parent = self.class_of(base)
            if isinstance(parent, ast.ClassDef) and parent is not node:
                yield from self._lineage(parent)
        yield node


_KEYS: tuple[Schema, ...] = ({}, {"type": "string"})
"""Schemas of keys that fit JSON objects; other hints describe values made from JSON later."""


def parsed(text: str) -> ast.expr:
    """Return a quoted hint as an expression; `...`, which is ignored, if it is not one."""
    try:
        return ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError):
        return ast.Constant(value=...)


def _total(node: ast.ClassDef) -> bool | None:
    """Return whether all keys of a class are required; None if `total` is not a literal."""
    values = [keyword.value for keyword in node.keywords]
    if not values:
        return True
    return values[0].value if isinstance(values[0], ast.Constant) and isinstance(values[0].value, bool) else None


def _imported_module(site: ast.AST, name: str) -> str:
    """Return the module that an import binds to `name`; empty for other statements."""
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
    return found


def any_of(schemas: list[Schema]) -> Schema:
    """Return the union of schemas; empty if one of them is empty, which accepts everything."""
    if not all(schemas):
        return {}
    found: list[Schema] = []
    for schema in schemas:
        inner = schema["anyOf"] if list(schema) == ["anyOf"] else [schema]
        found += [each for each in inner if each not in found]
    return found[0] if len(found) == 1 else {"anyOf": found}


def literal(parts: list[ast.expr]) -> Schema:
    """Return the schema of `Literal`."""
    values: list[Any] = []
    for part in parts[:_MAX_CHOICES]:
        match part:
            case ast.Constant(value=str() | bool() | int() | None) if is_json(part.value):
                value = part.value
            case ast.UnaryOp(op=ast.USub(), operand=ast.Constant(value=int(number))) if is_json(number):
                value = -number
            case _:
                return {}
        if not any(value == known and isinstance(value, bool) == isinstance(known, bool) for known in values):
            values.append(value)
    return {"enum": values} if len(parts) <= _MAX_CHOICES else {}


def is_json(value: object) -> bool:
    """Return whether a value can be part of a schema, which is stored and sent as JSON."""
    if isinstance(value, str):
        return len(value) <= _MAX_TEXT and not any("\ud800" <= character <= "\udfff" for character in value)
    return not isinstance(value, int) or abs(value) < 2**63
