"""An `input_schema` as a part of a larger document, with its references rewritten."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import jsonschema_specifications
import referencing.jsonschema
from attrs import field, frozen

from config.mistakes import Where
from config.schema.schema import DATA, LATEST, NAMED, REFERENCES, Resolver

_ALIKE: Final = (
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-07/schema",
    "https://json-schema.org/draft/2019-09/schema",
)
"""Earlier versions, with the same meaning if no keyword of `_DIFFERENT` is used."""
_DIFFERENT: Final = frozenset(
    {
        "$anchor",
        "$dynamicAnchor",
        "$dynamicRef",
        "$recursiveAnchor",
        "$recursiveRef",
        "additionalItems",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
        "else",
        "if",
        "maxContains",
        "minContains",
        "prefixItems",
        "then",
        "unevaluatedItems",
        "unevaluatedProperties",
    }
)
_NAMES: Final = ("$id", "$schema", "$anchor", "$dynamicAnchor", "$recursiveAnchor", "$vocabulary")
"""Names and anchors of a schema, not needed if references are paths."""
_OTHERS: Final = ("discriminator", "externalDocs", "xml")
"""Keywords without meaning in JSON Schema that OpenAPI would interpret."""


def embedded(schema: Mapping[str, Any], base: str) -> dict[str, Any] | None:
    """Return the schema with the same meaning at `base`, a place (`#/...`) in a document of JSON Schema 2020-12.

    None if that is impossible: it uses changed keywords of another version, or references outside of it. The schema has
    no `problems`.
    """
    latest = schema.get("$schema", LATEST).rstrip("#") == LATEST
    if not latest and schema["$schema"].rstrip("#") not in _ALIKE:
        return None
    specification = referencing.jsonschema.DRAFT202012
    resource = referencing.Resource.from_contents(dict(schema), default_specification=specification)
    try:
        copy = _Copy(base, latest)
        copy.look(schema, (), named=False)
        if any(count > 1 for count in copy.dynamic.values()):
            return None
        # Only the root is another object in the resource.
        copy.places[id(resource.contents)] = ()
        made = copy.make(schema, jsonschema_specifications.REGISTRY.resolver_with_root(resource), named=False)
    except (_NotAlikeError, RecursionError):
        return None
    return dict(made)


class _NotAlikeError(Exception):
    """The schema would have another meaning."""


@frozen
class _Copy:
    base: str
    latest: bool
    places: dict[int, Where] = field(factory=dict)
    """The place of each part, by identity."""
    dynamic: Counter[str] = field(factory=Counter)
    """How often each dynamic anchor is set; one that is set once works like a plain anchor."""

    def look(self, node: Any, where: Where, *, named: bool) -> None:
        """Record the place of every part. Raises _NotAlikeError if a part would have another meaning."""
        self.places.setdefault(id(node), where)
        if isinstance(node, Mapping):
            if not named:
                if where and "$schema" in node:
                    raise _NotAlikeError
                self._check(node)
            for key, value in node.items():
                if named or key not in DATA:
                    self.look(value, (*where, key), named=not named and key in NAMED)
        elif isinstance(node, list):
            for index, value in enumerate(node):
                self.look(value, (*where, index), named=False)

    def _check(self, node: Mapping[str, Any]) -> None:
        self.dynamic.update({"#": 1} if node.get("$recursiveAnchor") else {})
        self.dynamic.update([node["$dynamicAnchor"]] if "$dynamicAnchor" in node else [])
        if len(node.keys() & {*REFERENCES}) > 1:
            raise _NotAlikeError
        if self.latest:
            return
        # Before 2019, keywords beside a reference are ignored.
        beside = "$ref" in node and node.keys() - {"$ref", "$comment"}
        if node.keys() & _DIFFERENT or isinstance(node.get("items"), list) or beside:
            raise _NotAlikeError

    def make(self, node: Any, resolver: Resolver, *, named: bool) -> Any:
        """Return a part for the document."""
        if isinstance(node, list):
            return [self.make(value, resolver, named=False) for value in node]
        if not isinstance(node, Mapping):
            return node
        if named:
            return {key: self.make(value, resolver, named=False) for key, value in node.items()}
        if isinstance(node.get("$id"), str) and self.places[id(node)] != ():
            specification = referencing.jsonschema.DRAFT202012
            resolver = resolver.in_subresource(referencing.Resource.from_contents(node, specification))
        made: dict[str, Any] = {}
        for key, value in node.items():
            if key in REFERENCES:
                made["$ref"] = self._place(resolver.lookup(value).contents)
            elif key in DATA:
                made[key] = value
            elif key not in (*_NAMES, *_OTHERS):
                made[key] = self.make(value, resolver, named=key in NAMED)
        return made

    def _place(self, found: Any) -> str:
        where = self.places.get(id(found)) if isinstance(found, Mapping) else None
        if where is None:
            raise _NotAlikeError
        steps = (str(step).replace("~", "~0").replace("/", "~1") for step in where)
        return "/".join((self.base, *(quote(step, safe="~!$&'()*+,;=:@") for step in steps)))
