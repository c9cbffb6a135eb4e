"""Secrets of modules: where each value comes from, and reading it. No value is kept here.

A module names variables; the value of each is that of a variable of the runner's own environment, or the content of a
file. What is written is read into `Secret`s with the other fields; the values are looked up by `values` when they are
needed, and again for each worker.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

from attrs import frozen

from config import units
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
    """Where the value of one secret is: exactly one of `env` and `file` is given."""

    env: str | None = None
    """A variable of the runner's own environment."""
    file: Path | None = None
    """Absolute after loading."""

    @property
    def place(self) -> str:
        """Where it is, as people are told."""
        return str(self.env or self.file)

    def mapping(self) -> dict[str, str]:
        """Return it as it is written in a modules file."""
        return {"env": self.env} if self.env is not None else {"file": str(self.file)}


LookUp: TypeAlias = Callable[[Mapping[str, Secret]], Mapping[str, str]]
"""Returns the values by the names of the secrets. Raises `ConfigError` that names all that cannot be had."""


def read(value: Any) -> dict[str, Secret]:
    """Read a list of names, whose values are in `OPERATO_SECRET_<NAME>`, or a mapping of names to sources."""
    if isinstance(value, Mapping):
        found = units.all_of(value.items(), _source, check_key=units.variable_name)
    elif isinstance(value, (list, tuple)) or value is None:
        found = {name: Secret(env=SECRET_PREFIX + name) for name in units.items(units.variable_name)(value)}
    else:
        text = f"{show(value)} is neither a list of names nor a mapping of names to {_SOURCE}"
        raise Wrong(text, allowed="a list or a mapping")
    if len(found) > MAX_SECRETS:
        raise Wrong(f"are {len(found)}; a module has at most {MAX_SECRETS}", allowed=f"at most {MAX_SECRETS}")
    return found


def rules(data: Mapping[str, Any], *, trusted: bool, files: bool) -> Iterator[Wrong]:
    """Check secrets, as they were written, against who wrote them and against `variables`.

    The runner's own environment has what signs tokens, and its files: what is not `trusted` gets what the operator has
    named for modules, and without `files` nothing of the file system.
    """
    written, variables = data.get("secrets"), data.get("variables")
    named: Iterable[tuple[str | int, Any]] = ()
    if isinstance(written, Mapping):
        named = zip(written, written, strict=True)
    elif isinstance(written, (list, tuple)):
        named = enumerate(written)
    for place, name in named:
        if isinstance(name, str) and isinstance(variables, Mapping) and name in variables:
            yield Wrong(f"{name} is given in `variables` as well", ("secrets", place))
    for name, source in _sources(written):
        if "file" in source and not (trusted and files):
            yield Wrong("files are only for the operator's modules file", ("secrets", name, "file"))
        variable = source.get("env")
        if isinstance(variable, str) and not trusted and not variable.startswith(SECRET_PREFIX):
            text = f"{show(variable)} is not for modules; outside of the operator's modules file, only {_OPEN} are"
            yield Wrong(text, ("secrets", name, "env"), allowed=_OPEN)


def located(written: Any, base: Path | None) -> tuple[Any, list[Wrong]]:
    """Return secrets, as they were written, with absolute files: relative ones are relative to `base`."""
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
    """Yield the files that secrets, as they were written, name. A folder is none, and is not walked through."""
    for _, source in _sources(written):
        name = read_or_none(units.filled, source.get("file"))
        if name is not None and not os.path.isdir(base / name):  # noqa: PTH112  (no error where one may not look)
            yield base / name


def values(wanted: Mapping[str, Secret], environ: Mapping[str, str]) -> dict[str, str]:
    """Return the values by name. Blocks. Raises `ConfigError`: a mistake, with the secret's name, for each one missing.

    Whatever is said of a value says nothing of what is in it.
    """
    found: dict[str, str] = {}
    mistakes = []
    for name, secret in wanted.items():
        try:
            found[name] = _variable(secret.env, environ) if secret.env is not None else _content(secret.file)
        except Wrong as wrong:
            text = f"{secret.place} {wrong.message}, or take {name} out of `secrets`"
            mistakes.append(Mistake(text, None, None, name))
    if mistakes:
        raise ConfigError(mistakes)
    return found


def _sources(written: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the entries of the form with sources that are mappings."""
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
                raise Wrong("is not a regular file; name one")
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError:
        raise Wrong("does not exist; bring it there") from None
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
    """Return a value that a variable can have. Bytes that are no text are half characters in `value`."""
    try:
        value.encode()
    except UnicodeEncodeError:
        raise Wrong("is not UTF-8 text; write it as text, such as base64") from None
    if "\0" in value:
        raise Wrong("holds a null character; write it as text, such as base64")
    return value


_READERS: Mapping[str, Callable[[Any], Any]] = {
    "env": units.matching(units.VARIABLE.pattern, "the name of a variable: letters, digits and _"),
    "file": lambda written: Path(units.filled(written)),
}
_SOURCE = "{env: VARIABLE} or {file: PATH}"
_OPEN = f"variables that begin with {SECRET_PREFIX}"
