"""A module as callers see it, and the JSON object by which they describe one: the same over REST and gRPC."""

from __future__ import annotations

from typing import Any, Final, TypedDict

import msgspec

from actors.registry import Published
from config.modules import PREFIX, OnEnd, origin_of, spec_to_mapping
from protocol import messages
from protocol.errors import ErrorKind, error
from protocol.scan import decoded, has_more_values

NOT_SHOWN: Final = ("code", "path", "variables", "secrets", "name", "env", "version", "on_end", "packages_from")
"""Fields of a specification that callers do not see, or see in another form."""

_MAX_VALUES: Final = 50_000
"""Values in a description; a schema has 10,000 at most."""


class ShownTool(TypedDict, total=False):
    """The title and hints of a module for agents; a hint that is not there has its default."""

    title: str
    read_only: bool
    destructive: bool
    idempotent: bool
    confirm: bool


def module_fields(module: Published, base: str = "") -> dict[str, Any]:
    """Return a module as lists and details show it: no code, no paths, names of variables without their values.

    `base` is the address of the server, if it is known, for the URLs of endpoints. `input_schema` is the schema that
    inputs are checked against, also where it comes from the handler's type hint; `output_schema` is that of its result.
    """
    spec = module.spec
    shown = {name: value for name, value in spec_to_mapping(spec).items() if name not in NOT_SHOWN}
    for endpoint in shown["endpoints"]:
        endpoint["url"] = f"{base}{PREFIX}{endpoint['path']}"
    if module.input_schema is not None:
        shown["input_schema"] = module.input_schema
    if module.output_schema is not None:
        shown["output_schema"] = module.output_schema
    return {
        "name": spec.name,
        "version": module.ref.version,
        "env": spec.env.value,
        **shown,
        "variables": sorted(spec.variables),
        "secrets": list(spec.secrets),
        "on_end": [_recipient(each) for each in spec.on_end],
        "digest": module.content_digest,
        "published_at": round(module.published_at, 3),
        "published_by": module.published_by,
        "source": "file" if module.trusted else "api",
        "packages_from": list(spec.packages_from),
    }


def _recipient(recipient: OnEnd) -> dict[str, Any]:
    """Return a recipient of notices without path and query of its URL, which can be secrets."""
    place = {"module": recipient.module} if recipient.url is None else {"url": origin_of(recipient.url)}
    return {**place, "when": list(recipient.when)}


def parse_description(body: bytes, field: str = "$") -> dict[str, Any]:
    """Return the JSON object that describes a module or changes to one. Raises RunnerError `bad_input`.

    A body of many megabytes takes a moment, in which other threads run.
    """
    try:
        raw = bytes(messages.check_json(body))
        large = has_more_values(raw, _MAX_VALUES)
        data = None if large else decoded(raw)
    except (messages.InvalidJsonError, msgspec.DecodeError) as problem:  # the latter for numbers out of range
        raise error(ErrorKind.BAD_INPUT, f"the body is not JSON: {problem}", field=field) from None
    if large:
        text = f"the description has more than {_MAX_VALUES:,} values; shorten its lists and its schema"
        raise error(ErrorKind.BAD_INPUT, text, field=field)
    if not isinstance(data, dict):
        text = "the body does not describe a module; a module is an object with name, env, code"
        raise error(ErrorKind.BAD_INPUT, text, field=field)
    return data
