"""The server as one Trio run: signals, system, doors, drain and exit code; and one call without a server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import define, evolve, field

from actors.system import Surroundings, open_system
from config.client import is_loopback
from config.load import Loaded, base_environment, installer_environment, secret_values
from config.mistakes import ConfigError, Mistake
from config.settings import ServerSettings, Settings
from protocol.events import decode_all, text_of
from runner.api import Service
from runner.auth import Principal, Verifier, load_or_make_secret, sign_for, with_secret
from runner.ports import explaining_bind_errors, in_url, reachable
from runner.reload import Bell, Reloader
from runner.status import CODES
from runner.tls import server_context
from runner.version import version_of_this

EXIT_DRAINED = 0
EXIT_NOT_DRAINED = 3
_EXAMPLE_TOKEN_SECONDS = 86400.0
_GRACEFUL_SECONDS = 2.0
"""Time to deliver answers that are under way when the doors close."""

log = structlog.get_logger("main")


@define(eq=False)
class _Stop:
    """The end of the runner: the first signal drains, the second ends at once."""

    asked: trio.Event = field(factory=trio.Event, init=False)
    reload: Bell = field(factory=Bell, init=False)
    scope: trio.CancelScope = field(factory=trio.CancelScope, init=False)
    forced: bool = field(default=False, init=False)

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
                    self.asked.set()
                else:
                    log.warning("stopping at once", signal=signal.Signals(number).name)
                    self.forced = True
                    self.scope.cancel()


def run_server(loaded: Loaded, around: Surroundings) -> int:
    """Serve until a signal stops it; return the exit code. Raises RunnerError, ConfigError and OSError of the start."""
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
            bound = await _open_doors(nursery, service, verifier, settings, stop.asked, closed)
            _announce(settings, bound, secret, loaded, len(system.registry.snapshot.modules))
            await stop.asked.wait()
            drained = await system.drain(settings.server.drain_timeout_seconds)
            closed.set()
            await bound.wait_ended()
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


@define(eq=False)
class _Bound:
    """The doors by name, with the addresses of the open ones."""

    addresses: dict[str, list[tuple[str, int]]] = field(factory=lambda: {"rest": [], "grpc": []})
    _ended: list[trio.Event] = field(factory=list)

    async def open(
        self, nursery: trio.Nursery, name: str, door: Callable[..., Awaitable[None]], host: str, port: int
    ) -> None:
        """Start a door; it passes its addresses to `task_status.started`. Raises OSError that names the remedy."""
        ended = trio.Event()
        self._ended.append(ended)

        async def run(*, task_status: trio.TaskStatus[list[tuple[str, int]]]) -> None:
            try:
                with explaining_bind_errors(host, port, f"--{name}-port"):
                    await door(task_status=task_status)
            finally:
                ended.set()

        self.addresses[name] = await nursery.start(run)

    async def wait_ended(self) -> None:
        """Wait until all doors are closed."""
        for ended in self._ended:
            await ended.wait()


async def _open_doors(
    nursery: trio.Nursery,
    service: Service,
    verifier: Verifier,
    settings: Settings,
    draining: trio.Event,
    closed: trio.Event,
) -> _Bound:
    server = settings.server
    bound = _Bound()
    if server.rest:
        await bound.open(nursery, "rest", _rest_door(service, verifier, server, closed), server.host, server.rest_port)
    if server.grpc:
        grpc = _grpc_door(service, verifier, server, draining, closed)
        await bound.open(nursery, "grpc", grpc, server.host, server.grpc_port)
    return bound


# Each door imports its libraries itself: `--no-rest` and `--no-grpc` save their start-up time and memory.


def _rest_door(
    service: Service, verifier: Verifier, server: ServerSettings, closed: trio.Event
) -> Callable[..., Awaitable[None]]:
    from runner.http import HttpLimits, serve  # noqa: PLC0415
    from runner.rest import make_app  # noqa: PLC0415

    limits = HttpLimits(
        keep_alive_seconds=server.keep_alive_seconds,
        body_seconds=server.body_timeout_seconds,
        send_seconds=server.send_timeout_seconds,
        graceful_seconds=_GRACEFUL_SECONDS,
        max_connections=server.max_connections,
        max_body_bytes=server.max_frame_bytes,
    )
    return partial(
        serve,
        make_app(service, verifier),
        host=server.host,
        port=server.rest_port,
        limits=limits,
        shutdown=closed,
        tls=server_context(server, ["http/1.1"]),
    )


def _grpc_door(
    service: Service, verifier: Verifier, server: ServerSettings, draining: trio.Event, closed: trio.Event
) -> Callable[..., Awaitable[None]]:
    from runner.grpc import server as grpc_server  # noqa: PLC0415
    from runner.grpc.call import GrpcLimits  # noqa: PLC0415
    from runner.grpc.executions import make_methods  # noqa: PLC0415

    limits = GrpcLimits(
        max_message_bytes=server.max_frame_bytes,
        max_connections=server.max_connections,
        max_calls=server.max_connections,
        message_seconds=server.body_timeout_seconds,
        send_seconds=server.send_timeout_seconds,
        graceful_seconds=_GRACEFUL_SECONDS,
    )
    return partial(
        grpc_server.serve,
        make_methods(service, verifier),
        host=server.host,
        port=server.grpc_port,
        limits=limits,
        draining=draining,
        closed=closed,
        tls=server_context(server, ["h2"]),
    )


def _announce(settings: Settings, bound: _Bound, secret: str | None, loaded: Loaded, modules: int) -> None:
    """Log the addresses of the doors, write the ready file and, with the runner's own secret, print an example call."""
    tls = settings.server.tls_certificate_file is not None
    addresses = {name: [list(address) for address in found] for name, found in bound.addresses.items()}
    ready = {"pid": os.getpid(), "tls": tls, **addresses}
    log.info("ready", version=version_of_this(), modules=modules, **ready)
    if settings.server.ready_file is not None:
        _write_whole(settings.server.ready_file, json.dumps(ready) + "\n")
    if secret is None or not bound.addresses["rest"]:
        return
    token = sign_for(settings.auth, secret, "local", ["admin"], _EXAMPLE_TOKEN_SECONDS)
    host, port = bound.addresses["rest"][0]
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


def surroundings() -> Surroundings:
    """Return the parts of the operating system's environment that user code and installers get."""
    return Surroundings(base_environment(), installer_environment(), secret_values)


def run_once(loaded: Loaded, name: str, data: bytes, timeout: float | None) -> int:
    """Run one module without a server: result to standard output, printed text to standard error.

    Returns 0, or the exit code of the error kind. Raises RunnerError for a call that never began.
    """
    return trio.run(_once, loaded, name, data, timeout)


async def _once(loaded: Loaded, name: str, data: bytes, timeout: float | None) -> int:
    caller = Principal("command-line", frozenset({"admin"}), ())
    # A server may have the history of the data directory open, and this one call needs no record.
    records = tempfile.mkdtemp(prefix="operato-run-")
    settings = evolve(loaded.settings, executor=evolve(loaded.settings.executor, spares=0))
    wanted = [evolve(m, workers=evolve(m.workers, min=0)) for m in loaded.modules.modules if m.name == name]
    try:
        modules = wanted or loaded.modules.modules
        async with open_system(settings, surroundings(), modules, records=Path(records)) as system:
            service = Service(system.registry, system.executors, system.history, system.runs, settings)
            execution = await service.execute(caller, name, data, timeout=timeout)
    finally:
        shutil.rmtree(records, ignore_errors=True)
    sys.stderr.write(text_of(decode_all(execution.events), None))
    failure = execution.failure
    if failure is None:
        sys.stdout.write((execution.result or b"null").decode() + "\n")
        return 0
    sys.stderr.write(f"{failure.traceback or ''}error: {failure.kind}: {failure.message}\n")
    return CODES[failure.kind].exit
