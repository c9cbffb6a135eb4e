"""Secrets of modules: the source of each value, and reading it. Values are never stored.

A module names variables; the value of each comes from a variable of the runner's own environment, or from a file. The
sources are read with the module's other fields; `values` reads the values when they are needed, for each worker again.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from attrs import frozen

from config import shapes, units
from config.files import locate
from config.mistakes import ConfigError, Mistake, Wrong, did_you_mean, read_or_none
from config.units import show

SECRET_PREFIX = "OPERATO_SECRET_"  # noqa: S105 - the name of secrets, not one of them
MAX_FILE_BYTES = 64 * 1024
"""Size of one secret in a file."""
MAX_SECRETS = 100
"""Secrets of one module."""


@frozen
class Secret:
    """The source of one secret: either `env` or `file`."""

    env: str | None = None
    """A variable of the runner's own environment."""
    file: Path | None = None
    """Absolute after loading."""

    @property
    def place(self) -> str:
        """The source, for messages."""
        return str(self.env or self.file)

    def mapping(self) -> dict[str, str]:
        """Return the source as it is written in a modules file."""
        return {"env": self.env} if self.env is not None else {"file": str(self.file)}


LookUp: TypeAlias = Callable[[Mapping[str, Secret]], Mapping[str, str]]
"""Returns the values by the names of the secrets. Raises `ConfigError` with every missing one."""


def read(value: Any) -> dict[str, Secret]:
    """Read a list of names, with values in `OPERATO_SECRET_<NAME>`, or a mapping of names to sources."""
    if isinstance(value, Mapping):
        found = units.all_of(value.items(), _source, check_key=units.variable_name)
    elif isinstance(value, (list, tuple)) or value is None:
        found = {name: Secret(env=SECRET_PREFIX + name) for name in units.items(units.variable_name)(value)}
    else:
        text = f"{show(value)} is neither a list of names nor a mapping of names to {_SOURCE}"
        raise Wrong(text, allowed="a list or a mapping")
    if len(found) > MAX_SECRETS:
        raise Wrong(f"has {len(found)} secrets; a module has at most {MAX_SECRETS}", allowed=f"at most {MAX_SECRETS}")
    return found


def rules(data: Mapping[str, Any], *, trusted: bool, files: bool) -> Iterator[Wrong]:
    """Check the written secrets against the trust in their author and against `variables`.

    The runner's own variables and files include the key that signs tokens: a module that is not `trusted` gets only the
    variables that the operator named for modules, and without `files` no files.
    """
    written, variables = data.get("secrets"), data.get("variables")
    named: Iterable[tuple[str | int, Any]] = ()
    if isinstance(written, Mapping):
        named = zip(written, written, strict=True)
    elif isinstance(written, (list, tuple)):
        named = enumerate(written)
    for place, name in named:
        if isinstance(name, str) and isinstance(variables, Mapping) and name in variables:
            yield Wrong(f"{name} is given in `variables` too", ("secrets", place))
    for name, source in _sources(written):
        if "file" in source and not (trusted and files):
            yield Wrong("files are only for the operator's modules file", ("secrets", name, "file"))
        variable = source.get("env")
        if isinstance(variable, str) and not trusted and not variable.startswith(SECRET_PREFIX):
            text = f"{show(variable)} is not allowed: outside of the operator's modules file, modules get only {_OPEN}"
            yield Wrong(text, ("secrets", name, "env"), allowed=_OPEN)


def located(written: Any, base: Path | None) -> tuple[Any, list[Wrong]]:
    """Return the written secrets with absolute files; relative ones are relative to `base`."""
    wrongs: list[Wrong] = []
    found: dict[str, Any] = {}
    for name, source in _sources(written):
        if isinstance(source.get("file"), str):
            try:
                found[name] = {**source, "file": str(locate(source["file"], base, trusted=True))}
            except Wrong as wrong:
                wrongs.append(wrong.under((name, "file")))
                found[name] = {**source, "file": "/"}
    return ({**written, **found} if found else written), wrongs


def named_files(written: Any, base: Path) -> Iterator[Path]:
    """Yield the files that the written secrets name, without folders, which must not be watched."""
    for _, source in _sources(written):
        name = read_or_none(units.filled, source.get("file"))
        if name is not None and not os.path.isdir(base / name):  # noqa: PTH112  (no error without permission)
            yield base / name


def values(wanted: Mapping[str, Secret], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values by name. Blocks. Raises `ConfigError` with one mistake for each missing secret, by its name.

    No message shows a part of a value.
    """
    found: dict[str, str] = {}
    mistakes = []
    for name, secret in wanted.items():
        try:
            found[name] = _variable(secret.env, environ) if secret.env is not None else _content(secret.file)
        except Wrong as wrong:
            text = f"{secret.place} {wrong.message}, or remove {name} from `secrets`"
            mistakes.append(Mistake(text, None, None, name))
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _sources(written: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the entries whose sources are mappings."""
    if isinstance(written, Mapping):
        yield from ((name, source) for name, source in written.items() if isinstance(source, Mapping))


def _source(value: Any) -> Secret:
    if not isinstance(value, Mapping):
        raise Wrong(f"{show(value)} is not a source; write {_SOURCE}", allowed=_SOURCE)
    for name in value:
        if name not in _READERS:
            raise Wrong(f"unknown field{did_you_mean(name, _READERS)}", (name,), allowed=", ".join(_READERS))
    if len(value) != 1:
        raise Wrong(f"has {'two sources' if value else 'no source'}; write {_SOURCE}", allowed=_SOURCE)
    ((name, written),) = value.items()
    try:
        return Secret(**{name: _READERS[name](written)})
    except Wrong as wrong:
        raise wrong.under((name,)) from None


def _variable(name: str, environ: Mapping[str, str]) -> str:
    if name not in environ:
        raise Wrong("is not set in the runner's environment; set it")
    return _checked(environ[name])


def _content(path: Path | None) -> str:
    """Return the text of a file, links followed, without the newline at its end."""
    try:
        # Opening a pipe would wait for its other end.
        with open(path or "", "rb", opener=_open_at_once) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Wrong("is not a regular file; name a regular file")
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise Wrong("does not exist; create it") from None
    except IsADirectoryError:
        raise Wrong("is a folder; name a file") from None
    except OSError as problem:
        raise Wrong(f"cannot be read ({problem.strerror or problem}); make it readable") from None
    if len(data) > MAX_FILE_BYTES:
        raise Wrong(f"is over {MAX_FILE_BYTES} bytes; name a smaller file")
    return _checked(data.decode("utf-8", "surrogateescape").removesuffix("\n").removesuffix("\r"))


def _open_at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)


def _checked(value: str) -> str:
    """Return the value if a variable can have it. Bytes that are not UTF-8 are lone surrogates in `value`."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Wrong("is not UTF-8 text; encode it, for example as base64") from None
    if "\0" in value:
        raise Wrong("contains a null character; encode it, for example as base64")
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "env": units.matching(units.VARIABLE.pattern, "the name of a variable: letters, digits and _"),
    "file": lambda written: Path(units.filled(written)),
}
_SOURCE = "{env: VARIABLE} or {file: PATH}"
_OPEN = f"variables that begin with {SECRET_PREFIX}"
_NAMES = {"type": "array", "items": shapes.Values.VARIABLE_NAME, "maxItems": MAX_SECRETS}
_ONE_SOURCE = {
    "type": "object",
    "properties": dict.fromkeys(_READERS, shapes.Values.FILLED),
    "additionalProperties": False,
    "minProperties": 1,
    "maxProperties": 1,
}
_MAPPING = {
    "type": "object",
    "propertyNames": shapes.Values.VARIABLE_NAME,
    "additionalProperties": _ONE_SOURCE,
    "maxProperties": MAX_SECRETS,
}
shapes.shaped(read, shapes.nullable({"anyOf": [_NAMES, _MAPPING]}))
