"""Contract: one worker reaches neither another one nor the runner, which run as the same ordinary user.

Root reaches every process, so the cases run as another user where the tests run as root. The runner must still see the
workers: their memory, their processes, their descriptors' end.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import sysconfig
import tempfile
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from environments import proc
from protocol.errors import ErrorKind
from protocol.model import Isolation
from tests.support import WAIT_FOR, open_rig

ROOT = Path(__file__).parents[2]
NOBODY = 65534
SHORT = "python{}.{}".format(*sys.version_info)
READABLE = "import subprocess, sys; subprocess.run([sys.executable, '-c', ''], check=True); import tests.support"
MIB = 1 << 20

THIEF = """
import ctypes, os
def handler(pid, /):
    taken = [fd for fd in range(64) if ctypes.CDLL(None).syscall(438, os.pidfd_open(pid), fd, 0) >= 0]
    found = {"pidfd_getfd": taken}
    for name in ("mem", "environ", "fd"):
        try:
            os.listdir(f"/proc/{pid}/fd") if name == "fd" else open(f"/proc/{pid}/{name}", "rb").close()
            found[name] = "open"
        except PermissionError:
            found[name] = "refused"
    return found
"""
REFUSED = {"pidfd_getfd": [], "mem": "refused", "environ": "refused", "fd": "refused"}


async def reaching(path: Path) -> None:
    async with open_rig(path) as rig:
        victim = await rig.publish("import os\ndef handler(input): return os.getpid()", name="victim")
        pid = (await rig.call(victim)).value
        forked = await rig.publish(
            WAIT_FOR
            + "import os\ndef handler(input):\n    open(input, 'w').write(str(os.getpid())); wait_for(input + '.go')",
            name="forked",
            isolation=Isolation.FORK,
        )
        thief = await rig.publish(THIEF, name="thief")

        assert (await rig.call(thief, pid)).value == REFUSED
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.call, forked, str(path / "pid"))
            await rig.wait_until(lambda: (path / "pid").exists() and (path / "pid").read_text() != "", "it runs")
            assert (await rig.call(thief, int((path / "pid").read_text()))).value == REFUSED
            (path / "pid.go").touch()


async def seeing(path: Path) -> None:
    """Measure and end workers that cannot be traced."""
    async with open_rig(path, watched=True) as rig:
        module = await rig.publish("def handler(size, /):\n    held = bytearray(size); return len(held)", name="held")
        peaks = [(await rig.call(module, size)).outcome.peak_memory for size in (64 * MIB, 1, 64 * MIB)]
        assert peaks[0] - peaks[1] > 48 * MIB  # the peak of a call, not of the life of its worker
        assert peaks[2] - peaks[1] > 48 * MIB
        code = "import time\ndef handler(i, /):\n    held = bytearray(200 << 20); time.sleep(30)"
        over = await rig.run(code, name="over", memory=100 * MIB)
        assert over.kind is ErrorKind.OUT_OF_MEMORY
        code = """
            import os, time
            def handler(i, /):
                pids = []
                for far in (False, True):
                    reader, writer = os.pipe()
                    if os.fork() == 0:
                        os.setsid()
                        if far and os.fork():
                            os._exit(0)
                        os.write(writer, b"%d" % os.getpid())
                        time.sleep(600)
                    pids.append(int(os.read(reader, 20)))
                return pids
        """
        ran = await rig.run(code, name="leaver")
        assert len(ran.killed) == 2
        assert all(ran.gone(pid) for pid in ran.value)
        pid = (await rig.run("import os\ndef handler(i, /): return os.getpid()", name="seen")).value
        assert proc.resident_bytes(pid) > 0


async def own(path: Path) -> None:
    """Code still reads about itself what programs read, and what it starts is a program as any other."""
    async with open_rig(path) as rig:
        code = """
            import os, subprocess, sys
            def handler(input):
                os.listdir("/proc/self/fd")
                for name in ("maps", "smaps", "status", "stat", "statm", "limits", "cgroup"):
                    open(f"/proc/self/{name}").close()
                with open("/dev/stdout", "w") as out:
                    out.write("said")
                read = "import os; open('/proc/self/environ').close(); print(os.readlink(f'/proc/{os.getpid()}/cwd'))"
                return subprocess.run([sys.executable, "-c", read], capture_output=True, text=True, check=True).stdout
        """
        ran = await rig.run(code, name="own")
        assert ran.value.strip()
        assert ran.stdout == "said"


async def left(path: Path) -> None:
    """Find what a worker left, though its variables and its working directory are hidden."""
    async with open_rig(path) as rig:
        code = """
            import os, time
            def handler(input):
                if input == "leave":
                    reader, writer = os.pipe()
                    if os.fork() == 0:
                        os.setsid()
                        os.write(writer, b"%d" % os.getpid())
                    else:
                        open("left", "wb").write(os.read(reader, 20))
                    time.sleep(600)
                return os.getpid(), os.getcwd()
        """
        module = await rig.publish(code, name="leaver", concurrency=1)
        pid, workdir = (await rig.call(module)).value
        async with trio.open_nursery() as nursery:
            nursery.start_soon(rig.call, module, "leave")
            note = Path(workdir, "left")
            await rig.wait_until(lambda: note.exists() and note.read_text() != "", "it has left a process")
            assert {pid, int(note.read_text())} <= {*proc.started_in(str(Path(workdir).parent))}
            assert proc.started_in(f"{workdir}0") == []
            nursery.cancel_scope.cancel()


def the_runner(path: Path) -> None:
    """Reach for the runner, which has the other ends of all channels."""
    child = os.fork()
    if child == 0:
        proc.hide()
        (path / "hidden").touch()
        signal.pause()
    try:
        trio.run(_wait_for, path / "hidden")
        found: dict[str, object] = {}
        exec(compile(THIEF, "thief", "exec"), found)
        assert found["handler"](child) == REFUSED  # type: ignore[operator]
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


async def _wait_for(path: Path) -> None:
    while not path.exists():
        await trio.sleep(0.002)


def as_ordinary_user(case: str, *before: str) -> subprocess.CompletedProcess[str]:
    """Run a case of this file as an ordinary user; skips where there is no way to become one."""
    become = os.geteuid() == 0 and not before
    who: dict[str, Any] = {"user": NOBODY, "group": NOBODY, "extra_groups": []} if become else {}
    libraries = f"{ROOT}:{sysconfig.get_path('purelib')}:{sysconfig.get_path('platlib')}"
    with tempfile.TemporaryDirectory(prefix="operato-between-") as folder:
        if os.geteuid() == 0:
            os.chown(folder, NOBODY, NOBODY)
        environ = {"PATH": os.environ["PATH"], "HOME": folder, "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": libraries}
        run = partial(subprocess.run, check=False, cwd=ROOT, env=environ, capture_output=True, text=True, **who)
        for python in (sys.executable, f"/usr/local/bin/{SHORT}", f"/usr/bin/{SHORT}"):  # root's own is for root only
            with suppress(OSError):
                if run([*before, python, "-c", READABLE]).returncode == 0:
                    return run(
                        [*before, python, "-m", "tests.contract.test_between", case, f"{folder}/rig"], timeout=100
                    )
    pytest.skip("no other user can be had, or none that can read these files")


@pytest.mark.parametrize("case", ["reaching", "seeing", "own", "left", "the_runner"])
def test_as_an_ordinary_user(case):
    ran = as_ordinary_user(case)

    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_where_proc_hides_processes_the_runner_still_sees_its_workers():
    """A systemd service with ProtectProc has such a /proc."""
    mount = (
        f'mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups "$@"'
    )
    before = ("unshare", "--mount", "--propagation", "private", "sh", "-c", mount, "sh")
    if os.geteuid() != 0 or subprocess.run([*before, "true"], check=False, capture_output=True).returncode:
        pytest.skip("/proc cannot be mounted with hidepid here")

    ran = as_ordinary_user("seeing", *before)

    assert ran.returncode == 0, ran.stdout + ran.stderr


if __name__ == "__main__":
    case, path = globals()[sys.argv[1]], Path(sys.argv[2])
    path.mkdir()
    if case is the_runner:
        case(path)
    else:
        trio.run(case, path)
