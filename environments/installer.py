"""Programs that build environments, uv above all: run to their end, with their last lines as the error message."""

from __future__ import annotations

import os
import shutil
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from attrs import evolve

from config.modules import ModuleSpec
from config.packages import UV_LOCK
from environments.local import ProcessTable
from protocol.errors import ErrorKind, error

_LAST_LINES = 20
_ONLY_WHEELS = "--only-binary :all:"
CA_VARIABLES = (
    "SSL_CERT_FILE",
    "GIT_SSL_CAINFO",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "CONDA_SSL_VERIFY",
    "MAMBA_SSL_VERIFY",
)
"""Installers and git read the file of the CAs that they trust from these."""

WHEELS_REMEDY = (
    "modules that are registered over the API install wheels only here (setting `api_builds`): "
    "name a version that has a wheel, or let the operator put the module into the modules file"
)


class Tail:
    """Passes an installer's lines on, and keeps the last ones to explain a failure."""

    def __init__(self, say: Callable[[str], None] | None = None) -> None:
        self._say = say
        self._lines: deque[str] = deque(maxlen=_LAST_LINES)

    def __call__(self, line: str) -> None:
        """Take a line."""
        self._lines.append(line)
        if self._say is not None:
            self._say(line)

    def text(self, otherwise: str) -> str:
        """Return the kept lines that are not blank, or `otherwise` if there are none."""
        return "\n".join(line for line in self._lines if line.strip()) or otherwise


async def run_installer(
    table: ProcessTable,
    argv: Sequence[str],
    environ: Mapping[str, str],
    say: Callable[[str], None],
    *,
    failed: str,
    field: str | None = None,
) -> None:
    """Run a program to its end; `say` gets its lines.

    Raises RunnerError: `unavailable` if the program cannot be started; `environment_failed` at `field` if it fails,
    whose message is `failed` and the program's last lines. Cancelled, the program is killed.
    """
    tail = Tail(say)
    try:
        status = await table.run(argv, environ, on_line=tail)
    except OSError as problem:
        raise error(ErrorKind.UNAVAILABLE, f"{argv[0]} cannot be run: {problem}", field="env") from problem
    if status != 0:
        text = tail.text(f"{Path(argv[0]).name} ended with exit code {status}")
        raise error(ErrorKind.ENVIRONMENT_FAILED, f"{failed}:\n{text}", field=field)


def find_uv() -> str | None:
    """Return the path of the uv program: that of the installed package, else the one on PATH."""
    try:
        from uv import find_uv_bin  # noqa: PLC0415  (some packagings have uv on PATH only)

        return os.fspath(find_uv_bin())
    except (ImportError, FileNotFoundError):
        return shutil.which("uv")


def only_wheels(spec: ModuleSpec) -> ModuleSpec:
    """Return a module whose requirements every installer reads so that it installs wheels only, and runs no package.

    Raises RunnerError `environment_failed` for a requirement that names something else.
    """
    if not spec.requirements and not spec.packages_from.get(UV_LOCK):
        return spec
    return wheels_only(evolve(spec, requirements=(_ONLY_WHEELS, *spec.requirements)))


def wheels_only(spec: ModuleSpec) -> ModuleSpec:
    """Return the module. Raises RunnerError `environment_failed` if it installs wheels only, and names others."""
    if _ONLY_WHEELS not in spec.requirements:
        return spec
    for line in spec.requirements:
        place = line.partition(" @ ")[2].partition(";")[0].partition("#")[0].partition("?")[0].strip()
        place = place.partition(" --hash")[0].strip()
        if "git+" in line.lower() or (place and not place.endswith(".whl")):
            text = f"`{line}` is no wheel, and would be built; {WHEELS_REMEDY}"
            raise error(ErrorKind.ENVIRONMENT_FAILED, text, field="requirements")
    return spec


async def write_lock(
    path: Path, requirements: Sequence[str], constraints: Sequence[str], run: Callable[[list[str]], Awaitable[None]]
) -> None:
    """Let uv resolve requirements into the file `path`. `run` gets the arguments of uv; raises as it does."""
    path.parent.mkdir(parents=True, exist_ok=True)
    source, limits, target = (path.with_suffix(f".{os.getpid()}.{end}") for end in ("in", "limits", "tmp"))
    try:
        source.write_text("\n".join(requirements) + "\n")
        limits.write_text("\n".join(constraints) + "\n")
        options = ["--no-header", "--no-annotate", "--no-emit-index-url", "-q"]
        await run(["pip", "compile", *options, "-c", str(limits), "-o", str(target), str(source)])
        target.rename(path)
    finally:
        for file in (source, limits, target):
            file.unlink(missing_ok=True)


def trusting(environ: Mapping[str, str], ca: Path | None) -> Mapping[str, str]:
    """Return the variables of installers; with `ca` they, and git below them, trust only the CAs of that file."""
    if ca is None:
        return environ
    return {k: v for k, v in environ.items() if k != "SSL_CERT_DIR"} | dict.fromkeys(CA_VARIABLES, str(ca))


def read_ca(ca: Path) -> str:
    """Return the text of a file of CAs. Raises RunnerError `environment_failed` if it cannot be read."""
    try:
        return ca.read_text()
    except (OSError, UnicodeDecodeError) as problem:
        raise error(ErrorKind.ENVIRONMENT_FAILED, f"`build_ca` {ca} cannot be read: {problem}") from problem


async def run_uv(
    uv: str | None,
    arguments: Sequence[str],
    table: ProcessTable,
    environ: Mapping[str, str],
    say: Callable[[str], None],
    *,
    failed: str,
    offline: bool,
) -> None:
    """Run uv without downloading Pythons and without its configuration files. Raises as `run_installer`."""
    options = [*(["--offline"] if offline else []), "--no-config", "--no-progress", "--color", "never"]
    argv = [uv or "uv", *arguments, *options]
    await run_installer(table, argv, {**environ, "UV_PYTHON_DOWNLOADS": "never"}, say, failed=failed)
