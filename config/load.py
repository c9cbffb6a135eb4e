"""Settings from the command line, the environment, the modules file and defaults, in this order of precedence.

Only this module reads `os.environ`; it passes values on to everything else. Each setting has one flat name:
`--rest-port`, `OPERATO_REST_PORT`, `rest_port` in the section `runner:` of the modules file. The names come from the
classes of `config.settings`, without `_seconds` and `_bytes`, since durations and sizes are written with their unit.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import NoneType
from typing import Any, get_args

import attrs
from attrs import frozen

from config import secrets, units
from config.client import VARIABLES, ClientSettings, read_client_settings
from config.cluster import cluster_rules
from config.mistakes import ConfigError, Mistake, Wrong, did_you_mean
from config.modules import ModulesFile, read_modules, read_runner
from config.secrets import SECRET_PREFIX, Secret
from config.settings import Settings
from config.units import Range

VARIABLE_PREFIX = "OPERATO_"
HIDDEN = "***"

_PREFIXES = {"auth": "jwt_"} | {name: f"{name}_" for name in ("cluster", "docker", "history", "log", "notices")}
"""Prefixes of flat names by section; names of the other sections are unique without one."""
_TRUTHS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}
_PASSWORD = re.compile(r"(?<=://)([^:/@\s]*):[^/\s]*@")


@frozen
class Setting:
    """One setting: its flat `name`, and its place in `Settings`."""

    name: str
    section: str
    attribute: attrs.Attribute[Any]

    @property
    def dotted(self) -> str:
        """The place in `Settings`, `server.rest_port`."""
        return f"{self.section}.{self.attribute.name}"

    @property
    def variable(self) -> str:
        """The environment variable, `OPERATO_REST_PORT`."""
        return VARIABLE_PREFIX + self.name.upper()

    @property
    def secret(self) -> bool:
        """Whether the value is never shown."""
        return self.attribute.repr is False


@frozen
class Loaded:
    """The settings of one runner, and the source of each."""

    settings: Settings
    sources: Mapping[str, str]
    """Dotted name to `command line`, `environment OPERATO_REST_PORT`, `modules.yaml:3` or `default`."""
    modules: ModulesFile


@frozen
class _Given:
    """One given value. `where` is the name as it was written, `base` the folder of relative paths."""

    setting: Setting
    value: Any
    source: str
    where: str
    base: Path
    file: str | None = None
    line: int | None = None

    def mistake(self, wrong: Wrong) -> Mistake:
        return Mistake(wrong.message, self.file, self.line, self.where, wrong.allowed)


def load_settings(
    options: Mapping[str, Any], environ: Mapping[str, str] | None = None, *, modules: bool = True, needed: bool = True
) -> Loaded:
    """Return the settings of this run and the modules file that they name; without `modules`, only its settings.

    Unless it is `needed`, the default file may be absent.

    `options` has the flat names of the command line and `config`, the modules file; None means not given. Relative
    paths are relative to the current folder, those in the file to the file's folder; all are made absolute. Raises
    `ConfigError` with all mistakes of settings and modules; without `modules`, mistakes in modules do not matter.
    """
    environ = os.environ if environ is None else environ
    mistakes: list[Mistake] = []
    config, config_source = _config_path(options, environ, mistakes)
    if mistakes:
        raise ConfigError(mistakes)
    file, file_mistakes = read_modules(config) if modules else read_runner(config)
    missing = _missing(config, config_source)
    mistakes += missing or file_mistakes if needed or not missing else ()
    givens = [
        *_from_file(file, str(config), mistakes),
        *_from_environment(environ, mistakes),
        *_from_options(options, mistakes),
    ]
    values = {setting.dotted: default_of(setting) for setting in SETTINGS.values()}
    sources = dict.fromkeys(values, "default") | {"config": config_source}
    for given in givens:
        try:
            values[given.setting.dotted] = _read(given)
            sources[given.setting.dotted] = given.source
        except Wrong as wrong:
            mistakes.append(given.mistake(wrong))
    mistakes += [*_unpaired(values), *_twice(values), *_unread(values), *cluster_rules(values)]
    if mistakes:
        shown = str(config)
        raise ConfigError(sorted(mistakes, key=lambda m: (m.file is None, m.file != shown, m.file or "", m.line or 0)))
    return Loaded(_assemble(file.path, values), sources, file)


def load_client_settings(options: Mapping[str, Any], environ: Mapping[str, str] | None = None) -> ClientSettings:
    """Return the settings of a client: options of the command line take precedence over the environment.

    Raises `ConfigError` with all mistakes, unknown `OPERATO_` variables included.
    """
    environ = os.environ if environ is None else environ
    mistakes: list[Mistake] = []
    list(_from_environment(environ, mistakes))  # this only checks names; a client does not use the runner's settings
    if mistakes:
        raise ConfigError(mistakes)
    return read_client_settings(options, environ)


def _unpaired(values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield settings that are given without a setting that they need."""
    certificate, key = "server.tls_certificate_file", "server.tls_key_file"
    for name, other in ((certificate, key), (key, certificate), ("server.tls_client_ca_file", certificate)):
        if values[name] is not None and values[other] is None:
            needed = other.removeprefix("server.")
            yield Mistake(f"needs {needed}", None, None, name.removeprefix("server."), needed)


def _twice(values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield settings that exclude each other."""
    if values["auth.secret"] is not None and values["auth.secret_file"] is not None:
        yield Mistake("give `jwt_secret` or `jwt_secret_file`, not both", None, None, "jwt_secret_file")


def _unread(values: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield a `build_ca` that installers could not read; some would use other CAs then."""
    path = values["store.build_ca"]
    if path is None:
        return
    import ssl  # noqa: PLC0415  (10 ms to import, and few runners have the setting)

    try:
        ssl.create_default_context(cafile=path)
    except OSError as problem:
        why = "has no certificate in PEM form" if isinstance(problem, ssl.SSLError) else f"{problem.strerror}"
        yield Mistake(f"{path}: {why}", None, None, "build_ca", "a PEM file with certificates of CAs")


def describe(loaded: Loaded) -> list[tuple[str, str, str]]:
    """Return flat name, value as it is written, and source of each setting; secrets and passwords as `***`."""
    rows = [("config", str(loaded.settings.config), loaded.sources["config"])]
    for setting in SETTINGS.values():
        value = getattr(getattr(loaded.settings, setting.section), setting.attribute.name)
        rows.append((setting.name, _shown(setting, value), loaded.sources[setting.dotted]))
    return rows


def secret_values(wanted: Mapping[str, Secret], environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the values of secrets by name; see `config.secrets.values`."""
    return secrets.values(wanted, os.environ if environ is None else environ)


def base_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that user code inherits from the runner: only PATH and LANG."""
    environ = os.environ if environ is None else environ
    return {"PATH": environ.get("PATH") or "/usr/local/bin:/usr/bin:/bin", "LANG": environ.get("LANG") or "C.UTF-8"}


def installer_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the variables that installers inherit: search path, proxies, certificates, indexes and caches."""
    environ = os.environ if environ is None else environ
    names = {"PATH", "HOME", "LANG", "TMPDIR", "NO_PROXY", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NETRC"}
    kept = ("UV_", "XDG_", "SSL_CERT_", "PIP_", "CONDA_", "MAMBA_", "RATTLER_", "DOCKER_")
    return {k: v for k, v in environ.items() if k.upper() in names or k.startswith(kept)}


def colours_wanted() -> bool:
    """Return whether a terminal may have colours: `NO_COLOR` turns them off."""
    return not os.environ.get("NO_COLOR")


def shown_default(setting: Setting) -> str | None:
    """Return the default as it is written, or None if there is no default."""
    value = _default(setting)
    return None if value in (None, ()) else _shown(setting, value)


def form_of(setting: Setting) -> str:
    """Return the form of a value as one word: DURATION, SIZE, NUMBER, PATH or TEXT; empty for a flag."""
    name, kind = setting.attribute.name, _kind(setting)
    if name.endswith("_seconds"):
        return "DURATION"
    if name.endswith("_bytes"):
        return "SIZE"
    return {bool: "", int: "NUMBER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def default_of(setting: Setting) -> Any:
    """Return the default value of a setting; paths are made absolute."""
    value = _default(setting)
    return Path.cwd() / value if isinstance(value, Path) else value


def _default(setting: Setting) -> Any:
    default: Any = setting.attribute.default
    return default.factory() if isinstance(default, attrs.Factory) else default  # type: ignore[arg-type]


def _config_path(options: Mapping[str, Any], environ: Mapping[str, str], mistakes: list[Mistake]) -> tuple[Path, str]:
    """Return the modules file and the source of its name."""
    default: Any = attrs.fields(Settings).config.default
    variable = VARIABLE_PREFIX + "CONFIG"
    for value, where, source in (
        (options.get("config"), "--config", "command line"),
        (environ.get(variable), variable, f"environment {variable}"),
    ):
        if value is None:
            continue
        try:
            return Path(units.filled(str(value))), source
        except Wrong as wrong:
            mistakes.append(Mistake(wrong.message, None, None, where, wrong.allowed))
    return Path(default), "default"


def _missing(config: Path, source: str) -> tuple[Mistake, ...]:
    """Return a mistake with the remedy if the default modules file does not exist."""
    if source != "default" or config.exists():
        return ()
    remedy = f"there is no {config} in {Path.cwd()}; name the file with --config or OPERATO_CONFIG"
    return (Mistake(remedy, str(config), None, "config", "an existing modules file"),)


def _from_file(file: ModulesFile, shown: str, mistakes: list[Mistake]) -> Iterator[_Given]:
    for name, value in file.runner.items():
        line = file.lines.get(name)
        if (setting := SETTINGS.get(name)) is not None:
            source = f"{shown}:{line}"
            yield _Given(setting, value, source, f"runner.{name}", file.path.parent, shown, line)
            continue
        reason = "cannot be set in the file itself" if name == "config" else "unknown setting"
        message = reason + ("" if name == "config" else did_you_mean(name, SETTINGS))
        mistakes.append(Mistake(message, shown, line, f"runner.{name}", ", ".join(SETTINGS)))


def _from_environment(environ: Mapping[str, str], mistakes: list[Mistake]) -> Iterator[_Given]:
    known = {setting.variable: setting for setting in SETTINGS.values()}
    others = (VARIABLE_PREFIX + "CONFIG", *VARIABLES.values())
    for name, value in sorted(environ.items()):
        if not name.startswith(VARIABLE_PREFIX) or name.startswith(SECRET_PREFIX) or name in others:
            continue
        if (setting := known.get(name)) is not None:
            yield _Given(setting, _typed(setting, value), f"environment {name}", name, Path.cwd())
            continue
        near = did_you_mean(name.removeprefix(VARIABLE_PREFIX), [*SETTINGS, "config", *VARIABLES])
        hint = re.sub(r"'(\w+)'", lambda match: repr(VARIABLE_PREFIX + match[1].upper()), near)
        mistakes.append(Mistake(f"unknown setting{hint}", None, None, name, ", ".join([*known, *others])))


def _from_options(options: Mapping[str, Any], mistakes: list[Mistake]) -> Iterator[_Given]:
    for name, value in options.items():
        if value is None or name == "config":
            continue
        where = "--" + name.replace("_", "-")
        if (setting := SETTINGS.get(name)) is not None:
            yield _Given(setting, _typed(setting, value), "command line", where, Path.cwd())
        else:
            mistakes.append(Mistake(f"unknown setting{did_you_mean(name, SETTINGS)}", None, None, where))


def _typed(setting: Setting, value: Any) -> Any:
    """Convert text of a command line or variable to the setting's type if possible; values of a file have types."""
    if not isinstance(value, str):
        return value
    kind = _kind(setting)
    if kind is bool:
        return _TRUTHS.get(value.strip().lower(), value)
    if kind is int and re.fullmatch(r"\s*[+-]?[0-9]{1,18}\s*", value):
        return int(value)
    if kind is float and not setting.attribute.name.endswith("_seconds") and re.fullmatch(r"[0-9.]{1,18}", value):
        return float(value) if value.count(".") < 2 and value != "." else value
    return value


def _read(given: _Given) -> Any:
    """Return the setting's value. Raises `Wrong`, which does not show secrets."""
    setting, value = given.setting, given.value
    if value is None and is_optional(setting):
        return None
    try:
        limits, options = limits_of(setting)
        result: Any = units.choose(value, options) if options else reader_of(setting)(value)
        if limits is not None:
            limits.check(result, _renderer(setting))
    except Wrong as wrong:
        if setting.secret:
            raise Wrong("must be text that is not empty", allowed="text that is not empty") from None
        raise wrong from None
    return given.base / result if isinstance(result, Path) else result


def reader_of(setting: Setting) -> Callable[[Any], Any]:
    """Return the reader of a setting, without its limits."""
    name, kind = setting.attribute.name, _kind(setting)
    if name.endswith(("_seconds", "_bytes")):
        return units.duration if name.endswith("_seconds") else units.size
    if kind is Path:
        return lambda value: Path(units.filled(str(value) if isinstance(value, Path) else value))
    readers: dict[Any, Callable[[Any], Any]]
    readers = {bool: units.flag, int: units.whole, float: units.number, str: units.filled}
    return setting.attribute.metadata.get("read") or readers[kind]


def _renderer(setting: Setting) -> Callable[[Any], str]:
    name = setting.attribute.name
    if name.endswith("_seconds"):
        return units.format_duration
    return units.format_size if name.endswith("_bytes") else str


def limits_of(setting: Setting) -> tuple[Range | None, tuple[str, ...]]:
    """Return the range and the choices that the validators of a setting allow."""
    validator: Any = setting.attribute.validator
    bounds: dict[str, float] = {}
    options: tuple[str, ...] = ()
    validator = getattr(validator, "validator", validator)  # of an optional one
    for part in getattr(validator, "_validators", (validator,)):
        if hasattr(part, "options"):
            options = tuple(part.options)
        elif part is not None:
            bounds[{">=": "low", "<=": "high", ">": "above"}[part.compare_op]] = part.bound
    return (Range(**bounds) if bounds else None), options


def _kind(setting: Setting) -> Any:
    """Return the type of a setting, without its None."""
    kinds = [kind for kind in get_args(setting.attribute.type) if kind is not NoneType]
    return kinds[0] if kinds else setting.attribute.type


def is_optional(setting: Setting) -> bool:
    """Return whether a setting may be null."""
    return NoneType in get_args(setting.attribute.type)


def _shown(setting: Setting, value: Any) -> str:
    if value in (None, ()):
        return "-"
    if setting.secret:
        return HIDDEN
    if isinstance(value, bool | tuple):
        return str(value).lower() if isinstance(value, bool) else ", ".join(value)
    return _PASSWORD.sub(rf"\1:{HIDDEN}@", _renderer(setting)(value))


def _assemble(config: Path, values: Mapping[str, Any]) -> Settings:
    sections: dict[str, Any] = {}
    for section, kind in _SECTIONS.items():
        own = {s.attribute.name: values[s.dotted] for s in SETTINGS.values() if s.section == section}
        sections[section] = kind(**own)
    return Settings(config=config, **sections)


def _table() -> dict[str, Setting]:
    table: dict[str, Setting] = {}
    for section, kind in _SECTIONS.items():
        for leaf in attrs.fields(attrs.resolve_types(kind)):
            short = leaf.name.removesuffix("_seconds").removesuffix("_bytes")
            # `max` alone would be ambiguous.
            prefixed = _PREFIXES.get(section, "") + (leaf.name if short == "max" else short)
            name = leaf.metadata.get("name", prefixed)
            table[name] = Setting(name, section, leaf)
    return table


_SECTIONS: Mapping[str, Any] = {
    section.name: section.type for section in attrs.fields(attrs.resolve_types(Settings)) if section.name != "config"
}
SETTINGS: Mapping[str, Setting] = _table()
"""Every setting by its flat name; a test checks that the names are unique."""
