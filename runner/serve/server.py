"""The server as one Trio run: signals, system, doors, drain and exit code."""

from __future__ import annotations

import gc
import json
import os
import shlex
import signal
import sys
import tempfile
from contextlib import nullcontext
from functools import partial
from pathlib import Path

import structlog
import trio
from attrs import define, field

from actors.registry import RegistrySnapshot
from actors.system import Surroundings, System, open_system
from config.client import is_loopback
from config.folders import new_data_elsewhere
from config.load import Loaded, base_environment, installer_environment, secret_values
from config.mistakes import ConfigError
from config.settings import Settings
from environments import proc
from runner.api import Service
from runner.auth import Verifier, sign_for
from runner.outgoing import posting
from runner.ports import in_url, reachable
from runner.serve.again import command_line
from runner.serve.checks import make_verifier, makes_secret, start_mistakes, unknown_recipients
from runner.serve.dev import Dev
from runner.serve.doors import Doors, open_doors
from runner.serve.heap import Heap
from runner.serve.reload import Bell, Reloader
from runner.version import release, version_of_this

EXIT_DRAINED = 0
EXIT_NOT_DRAINED = 3
_ECHO_SECONDS = 0.2
"""A signal to all processes of a service reaches the runner twice: directly, and through the watcher."""
_SWITCH_SECONDS = 0.001
"""After this time a thread with a long check lets the event loop go on, if that waits."""
_COLLECTIONS = 2000, 20, 100
"""Thresholds of the garbage collector: full collections are rare, and the others take few milliseconds."""
_EXAMPLE_TOKEN_SECONDS = 86400.0
_SUBJECT = "local"
_SHOWN_USERS = 20

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


def run_server(loaded: Loaded, around: Surroundings, dev: Dev | None = None) -> int:
    """Serve until a signal stops it; return the exit code. Raises RunnerError, ConfigError and OSError of the start.

    With `dev`, one file is served for its author, and nothing is recorded.
    """
    proc.hide()
    proc.give_back_memory()
    sys.setswitchinterval(_SWITCH_SECONDS)
    with tempfile.TemporaryDirectory(prefix="operato-dev-") if dev else nullcontext() as records:
        return trio.run(_run, loaded, around, dev, None if records is None else Path(records))


async def _run(loaded: Loaded, around: Surroundings, dev: Dev | None, records: Path | None) -> int:
    stop = _Stop()
    drained = True
    # Signals are received to the very end: the default action of a second one would cut off writing the history.
    async with trio.open_nursery() as signals:
        await signals.start(stop.listen)
        with stop.scope:
            drained = await _serve(loaded, around, stop, dev, records)
        signals.cancel_scope.cancel()
    if stop.forced or not drained:
        log.warning("stopped, some work was cut off")
        return EXIT_NOT_DRAINED
    log.info("stopped, all work had ended")
    return EXIT_DRAINED


async def _serve(loaded: Loaded, around: Surroundings, stop: _Stop, dev: Dev | None, records: Path | None) -> bool:
    """Run system and doors until the first signal; return whether all work ended within `drain_timeout`."""
    settings = loaded.settings
    if mistakes := await start_mistakes(loaded, around):
        raise ConfigError(mistakes)
    if dev is None and (warning := await trio.to_thread.run_sync(new_data_elsewhere, loaded)):
        log.warning(warning)
    new = makes_secret(settings)
    verifier, secret = await make_verifier(settings)
    if new:
        log.info("made a secret for tokens", file=str(settings.store.data_dir / "jwt-secret"))
    async with (
        posting(settings.notices.allow) as post,
        open_system(settings, around, loaded.modules.modules, records=records, post=post) as system,
    ):
        parts = (system.registry, system.executors, system.history, system.runs, system.files, settings)
        service = Service(*parts, system.keys, system.schedules, system.outbox)
        verifier.api_keys = system.keys
        async with trio.open_nursery() as nursery:
            reloader = Reloader(loaded.modules, system, stop.reload, dev=dev)
            if dev is not None:
                dev.begin(system, nursery)
            nursery.start_soon(partial(reloader.run, watching=settings.server.reload))
            closed = trio.Event()
            doors = await open_doors(nursery, service, verifier, settings, stop.asked, closed)
            gc.freeze()  # a full collection would hold up the loop for 80 ms to look at what stays for good
            gc.set_threshold(*_COLLECTIONS)
            gc.enable()
            nursery.start_soon(Heap().run)
            _announce(settings, doors, len(system.registry.snapshot.modules))
            if secret is not None and doors.addresses["rest"]:
                await _print_call(doors, secret, loaded, system.registry.snapshot, dev)
            _warn_of_anonymous(settings, verifier)
            _warn_of_missing_kinds(system)
            for name, text in unknown_recipients(loaded.modules.modules, system.registry.snapshot.modules):
                log.warning("a notice has no receiver yet", module=name, why=text)
            await stop.asked.wait()
            drained = await system.drain(settings.server.drain_timeout_seconds)
            closed.set()
            await doors.wait_ended()
            nursery.cancel_scope.cancel()
    return drained


def _warn_of_anonymous(settings: Settings, verifier: Verifier) -> None:
    """Log what callers without a token may do, as a warning where they may be on other machines."""
    if verifier.anonymous is not None:
        level = log.info if is_loopback(settings.server.host) else log.warning
        scopes = " ".join(sorted(verifier.anonymous.scopes))
        level("callers without a token are accepted (`anonymous`)", scopes=scopes, host=settings.server.host)


def _warn_of_missing_kinds(system: System) -> None:
    """Log each kind of environment that modules need and this machine does not have, with these modules."""
    modules = system.registry.snapshot.modules.values()
    for kind, executor in system.executors.items():
        users = sorted(module.spec.name for module in modules if module.spec.env is kind)
        if users and not executor.availability.available:
            why = executor.availability.reason
            more = [f"and {len(users) - _SHOWN_USERS} more"] if users[_SHOWN_USERS:] else []
            shown = ", ".join(users[:_SHOWN_USERS] + more)
            log.warning("calls of these modules fail on this machine", env=str(kind), modules=shown, why=why)


def _announce(settings: Settings, doors: Doors, modules: int) -> None:
    """Log the addresses of the doors, and write the ready file."""
    tls = settings.server.tls_certificate_file is not None
    addresses = {name: [list(address) for address in found] for name, found in doors.addresses.items()}
    ready = {"pid": os.getpid(), "tls": tls, **addresses}
    log.info("ready", version=version_of_this(), modules=modules, **ready)
    if not any(doors.addresses.values()):
        log.warning("nothing can be called: `rest` and `grpc` are both off")
    if settings.server.ready_file is not None:
        _write_whole(settings.server.ready_file, json.dumps(ready) + "\n")


async def _print_call(doors: Doors, secret: str, loaded: Loaded, served: RegistrySnapshot, dev: Dev | None) -> None:
    """Print a call of the first module, with a token that is signed by the runner's own secret.

    On a terminal also a link that opens the dashboard with this token: in a log it would be too old when it is read.
    """
    settings, address = loaded.settings, doors.addresses["rest"][0]
    token = sign_for(settings.auth, secret, _SUBJECT, ["admin"], _EXAMPLE_TOKEN_SECONDS)
    scheme = "http" if settings.server.tls_certificate_file is None else "https"
    url = f"{scheme}://{in_url(reachable(address[0]))}:{address[1]}"
    first = next((module.name for module in loaded.modules.modules), "NAME")
    module = served.modules.get(first)
    # In a thread, as the code for schemas is imported.
    example = None if module is None else await trio.to_thread.run_sync(module.example)
    text = shlex.quote('{"name": "world"}' if example is None else example.decode())
    if dev is not None:
        page = f"{url}/docs"
        if doors.ui is not None:
            shown = f"/modules/{first}"
            link = f"{doors.ui.link(token, _SUBJECT)}&next={shown}" if sys.stderr.isatty() else f"/ui{shown}"
            page = url + link
        dev.announce(url, first, page, f"{command_line(loaded, url)} call {first} {text}")
        return
    sys.stderr.write(
        "\nTry this call; its token is valid for one day:\n\n"
        f"  curl -s -X POST {url}/modules/execute/{first} \\\n"
        f"    -H 'Authorization: Bearer {token}' \\\n"
        f"    -d {text}\n\n"
        "Or this one, in another terminal:\n\n"
        f"  {command_line(loaded, url)} call {first} {text}\n\n"
    )
    if doors.ui is not None and sys.stderr.isatty():
        link = (settings.server.external_url or url) + doors.ui.link(token, _SUBJECT)
        sys.stderr.write(f"The dashboard; this link signs in once, within a minute:\n\n  {link}\n\n")
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
    return Surroundings(base_environment(), installer_environment(), secret_values, watcher, release())
