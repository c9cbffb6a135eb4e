"""Solves and installs conda environments: a separate program under the runner's Python, started by `conda.py`.

It is a process because an install can only be stopped by a kill, and because the library can crash while an interpreter
exits: this one ends by `os._exit`. The request is one JSON object in argv. Each line of standard output is a JSON
object; the last one is `done` or `error`.
"""

import asyncio
import json
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from rattler.install import InstallerReporter

_ENVIRONMENT = "default"
_EVERY_SECONDS = 1.0


def send(**fields: Any) -> None:
    """Send one message to the runner."""
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


class Reporter:
    """Reports the progress of an install, called in threads of the library, which drop its exceptions."""

    def __init__(self) -> None:
        self.names: dict[int, str] = {}
        self.sizes: dict[int, tuple[int, int]] = {}
        self.total = self.linked = 0
        self.reported = 0.0

    def on_transaction_start(self, total: int) -> None:
        """Record the number of operations."""
        self.total = total

    def on_populate_cache_start(self, operation: int, name: str) -> int:
        """Record the name of a package; return its number."""
        self.names[operation] = name
        return operation

    def on_download_start(self, entry: int) -> int:
        """Return the same number."""
        return entry

    def on_download_progress(self, entry: int, done: int, total: int | None) -> None:
        """Report downloaded bytes, once a second."""
        self.sizes[entry] = (done, total or 0)
        if time.monotonic() - self.reported >= _EVERY_SECONDS:
            self.reported = time.monotonic()
            done, all_of_it = (sum(pair[at] for pair in list(self.sizes.values())) for at in (0, 1))
            send(event="download", name=self.names.get(entry, "?"), done=done, total=all_of_it)

    def on_link_start(self, operation: int, name: str) -> int:
        """Report the package that is being installed."""
        self.linked += 1
        send(event="link", name=name, at=self.linked, total=self.total)
        return operation


async def lock(request: dict[str, Any]) -> None:
    """Solve, and write the result to a lock file."""
    from rattler import (  # noqa: PLC0415  (the request has its path)
        ChannelPriority,
        Gateway,
        MatchSpec,
        SourceConfig,
        VirtualPackage,
        VirtualPackageOverrides,
        solve,
    )

    if request["explicit"]:
        records = _explicit(request)
        if missing := _missing(request["asked"], records):
            send(event="stale", why=missing)
            return
        _write(request, records)
        return
    source = SourceConfig(cache_action="force-cache-only") if request["offline"] else SourceConfig()
    records = await solve(
        request["channels"],  # positional: its name differs between versions
        [MatchSpec(spec, strict=False) for spec in request["specs"]],
        gateway=Gateway(cache_dir=Path(request["cache"]) / "repodata", default_config=source),
        virtual_packages=VirtualPackage.detect(VirtualPackageOverrides.from_env()),
        channel_priority=ChannelPriority.Strict,
    )
    _write(request, records)


def _write(request: dict[str, Any], records: list[Any]) -> None:
    """Write the lock file, and report the packages in it."""
    from rattler import LockFile, LockPlatform  # noqa: PLC0415
    from rattler.lock import LockChannel  # noqa: PLC0415

    platform = LockPlatform(request["platform"])
    file = LockFile([platform])
    file.set_channels(_ENVIRONMENT, [LockChannel(channel) for channel in request["urls"]])
    for record in records:
        file.add_conda_package(_ENVIRONMENT, platform, record)
    file.to_path(Path(request["lock"]))
    send(event="solved", packages=[[str(r.name.normalized), str(r.version), str(r.url), _sha256(r)] for r in records])


def _explicit(request: dict[str, Any]) -> list[Any]:
    """Return the records of packages, each given as `https://HOST/CHANNEL/noarch/NAME-1.0-0.conda#DIGEST`."""
    from rattler import PackageRecord, RepoDataRecord  # noqa: PLC0415

    records = []
    described = Path(request["lock"] + ".index.json")
    for line in request["specs"]:
        url, _, digest = line.rpartition("#")
        channel, subdir, file = url.rsplit("/", 2)
        name, version, build = file.removesuffix(".conda").removesuffix(".tar.bz2").rsplit("-", 2)
        number = build.rpartition("_")[2]
        index = {"name": name, "version": version, "build": build, "subdir": subdir, "depends": []}
        described.write_text(json.dumps({**index, "build_number": int(number) if number.isdigit() else 0}))
        given = {"sha256" if len(digest) == 64 else "md5": digest}
        package = PackageRecord.from_index_json(described, **given)
        records.append(RepoDataRecord(package, file, url, channel))
    described.unlink()
    return records


def _missing(asked: list[str], records: list[Any]) -> str:
    """Return the first asked package that the records do not have; empty if they have all."""
    from rattler import MatchSpec  # noqa: PLC0415

    for line in asked:
        spec = MatchSpec(line, strict=False)
        if not any(spec.matches(record) for record in records):
            return f"it has no {line}"
    return ""


def _sha256(record: Any) -> str:
    return record.sha256.hex() if record.sha256 else ""


async def install(request: dict[str, Any]) -> None:
    """Install the packages of a lock file into `stage`, for its final path `prefix`."""
    from rattler import Config, LockFile  # noqa: PLC0415
    from rattler import install as install_records  # noqa: PLC0415

    environment = LockFile.from_path(Path(request["lock"])).environment(_ENVIRONMENT)
    assert environment is not None  # noqa: S101  (`lock` wrote it)
    (records,) = environment.conda_repodata_records().values()
    # Copies: through hard links user code could change the cache, and so every later environment.
    await install_records(
        records,
        request["stage"],
        alternative_target_prefix=request["prefix"],
        cache_dir=Path(request["cache"]) / "pkgs",
        show_progress=False,
        reporter=cast("InstallerReporter", Reporter()),  # it has the methods that are called here
        config=Config.from_toml("allow-hard-links = false"),
    )


def main() -> None:
    """Execute the request."""
    request = json.loads(sys.argv[1])
    sys.path.insert(0, request["library"])
    code = 0
    try:
        asyncio.run({"lock": lock, "install": install}[request["do"]](request))
        send(event="done")
    except Exception as problem:  # noqa: BLE001  (the library raises many kinds; all are reported)
        send(event="error", type=type(problem).__name__, message=str(problem))
        code = 1
    sys.stdout.flush()
    os._exit(code)


if __name__ == "__main__":
    main()
