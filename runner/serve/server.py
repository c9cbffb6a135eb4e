"""The server as one Trio run: signals, system, doors, drain and exit code."""

from __future__ import annotations

import gc
import json
import os
import signal
import sys
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import define, field

from actors.system import Surroundings, open_system
from config.client import is_loopback
from config.load import Loaded, base_environment, installer_environment, secret_values
from config.mistakes import ConfigError, Mistake
from config.settings import Settings
from environments import proc
from runner.api import Service
from runner.auth import Verifier, load_or_make_secret, sign_for, with_secret
from runner.ports import in_url, reachable
from runner.serve.doors import Doors, open_doors
from runner.serve.reload import Bell, Reloader
from runner.version import version_of_this

EXIT_DRAINED = 0
EXIT_NOT_DRAINED = 3
_ECHO_SECONDS = 0.2
"""A signal to all processes of a service reaches the runner twice: directly, and through the watcher."""
_EXAMPLE_TOKEN_SECONDS = 86400.0

log = structlog.get_logger("main")


@define(eq=False)
class _Stop:
    """The end of the runner: the first signal drains, the second ends at once."""

    asked: trio.Event = field(factory=trio.Event, init=False)
    reload: Bell = field(factory=Bell, init=False)
    scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    forced: bool = field(default=False, init=False)
    _first: tuple[int, float] = field(default=(0, 0.0), init=False)
    """The signal that began the drain, and when."""

    async def listen(self, *, task_status: trio.TaskStatus[None]) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                if number == signal.SIGHUP:
                    self.reload.ring()
                elif not self.asked.is_set():
                    log.info(
                        "stopping: new work is refused, running work may finish", signal=signal.Signals(number).name
                    )
                    self._first = number, trio.current_time()
                    self.asked.set()
                elif number != self._first[0] or trio.current_time() > self._first[1] + _ECHO_SECONDS:
                    log.warning("stopping at once", signal=signal.Signals(number).name)
                    self.forced = True
                    self.scope.cancel()


def run_server(loaded: Loaded, around: Surroundings) -> int:
    """Serve until a signal stops it; return the exit code. Raises RunnerError, ConfigError and OSError of the start."""
    proc.hide()
    return trio.run(_run, loaded, around)


async def _run(loaded: Loaded, around: Surroundings) -> int:
    stop = _Stop()
    drained = True
    # Signals are received to the very end: the default action of a second one would cut off writing the history.
    async with trio.open_nursery() as signals:
        await signals.start(stop.listen)
        with stop.scope:
            drained = await _serve(loaded, around, stop)
        signals.cancel_scope.cancel()
    if stop.forced or not drained:
        log.warning("stopped, some work was cut off")
        return EXIT_NOT_DRAINED
    log.info("stopped, all work had ended")
    return EXIT_DRAINED


async def _serve(loaded: Loaded, around: Surroundings, stop: _Stop) -> bool:
    """Run system and doors until the first signal; return whether all work ended within `drain_timeout`."""
    settings = loaded.settings
    verifier, secret = await make_verifier(settings)
    async with open_system(settings, around, loaded.modules.modules) as system:
        service = Service(system.registry, system.executors, system.history, system.runs, settings)
        async with trio.open_nursery() as nursery:
            reloader = Reloader(loaded.modules, system, stop.reload)
            nursery.start_soon(partial(reloader.run, watching=settings.server.reload))
            closed = trio.Event()
            doors = await open_doors(nursery, service, verifier, settings, stop.asked, closed)
            gc.freeze()  # a full collection would hold up the loop for 80 ms to look at what stays for good
            gc.enable()
            _announce(settings, doors, secret, loaded, len(system.registry.snapshot.modules))
            await stop.asked.wait()
            drained = await system.drain(settings.server.drain_timeout_seconds)
            closed.set()
            await doors.wait_ended()
            nursery.cancel_scope.cancel()
    return drained


async def make_verifier(settings: Settings) -> tuple[Verifier, str | None]:
    """Return the verifier, and the secret if it is the runner's own (no key is configured). Raises ConfigError."""
    auth = await trio.to_thread.run_sync(with_secret, settings.auth)
    if auth.secret or auth.public_key_file or auth.jwks_url:
        key = None if auth.public_key_file is None else _read_key(auth.public_key_file)
        return Verifier(auth, public_key=key), None
    if not auth.own_secret and not is_loopback(settings.server.host):
        remedy = (
            "configure `jwt_secret`, `jwt_secret_file`, `jwt_public_key_file` or `jwt_jwks_url`, listen on 127.0.0.1, "
            "or allow the runner's own secret with `jwt_own_secret`"
        )
        text = f"{settings.server.host!r:.80} is not a loopback address, and no key for tokens is configured; {remedy}"
        raise ConfigError([Mistake(text, None, None, "host")])
    secret, made = await trio.to_thread.run_sync(load_or_make_secret, settings.store.data_dir)
    if made:
        log.info("made a secret for tokens", file=str(settings.store.data_dir / "jwt-secret"))
    return Verifier(auth, secret=secret), secret


def _read_key(file: Path) -> bytes:
    try:
        with file.open("rb") as opened:
            return opened.read(1024 * 1024)
    except OSError as problem:
        text = f"{file} cannot be read: {problem.strerror}"
        raise ConfigError([Mistake(text, None, None, "jwt_public_key_file")]) from None


def _announce(settings: Settings, doors: Doors, secret: str | None, loaded: Loaded, modules: int) -> None:
    """Log the addresses of the doors, write the ready file and, with the runner's own secret, print an example call."""
    tls = settings.server.tls_certificate_file is not None
    addresses = {name: [list(address) for address in found] for name, found in doors.addresses.items()}
    ready = {"pid": os.getpid(), "tls": tls, **addresses}
    log.info("ready", version=version_of_this(), modules=modules, **ready)
    if not any(doors.addresses.values()):
        log.warning("nothing can be called: `rest` and `grpc` are both off")
    if settings.server.ready_file is not None:
        _write_whole(settings.server.ready_file, json.dumps(ready) + "\n")
    if secret is None or not doors.addresses["rest"]:
        return
    token = sign_for(settings.auth, secret, "local", ["admin"], _EXAMPLE_TOKEN_SECONDS)
    host, port = doors.addresses["rest"][0]
    scheme = "https" if tls else "http"
    first = next((m.name for m in loaded.modules.modules), "NAME")
    sys.stderr.write(
        "\nTry this call; its token is valid for one day:\n\n"
        f"  curl -s -X POST {scheme}://{in_url(reachable(host))}:{port}/modules/execute/{first} \\\n"
        f"    -H 'Authorization: Bearer {token}' \\\n"
        '    -d \'{"name": "world"}\'\n\n'
    )
    sys.stderr.flush()


def _write_whole(file: Path, text: str) -> None:
    temporary = file.with_name(f"{file.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text)
        temporary.replace(file)
    except OSError as problem:
        temporary.unlink(missing_ok=True)
        raise OSError(problem.errno, f"`ready_file` {file} cannot be written: {problem.strerror}") from None


def surroundings(watcher: int | None = None) -> Surroundings:
    """Return the parts of the operating system's environment that user code and installers get, and the watcher."""
    return Surroundings(base_environment(), installer_environment(), secret_values, watcher)
