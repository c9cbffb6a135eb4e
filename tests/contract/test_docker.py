"""Contract: containers: isolation by default, images pulled and built once, engines that go away and return."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import zipfile
from functools import partial

import docker
import pytest
import trio

from actors.events import EventLog
from config.modules.spec import ModuleSpec
from environments.docker.docker import INSTANCE
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Isolation, Kind
from tests import engines
from tests.proxies import certificates, file_server, refusing_port, tcp_proxy, unix_proxy
from tests.support import PATIENCE, Watch, open_rig, wait_until

pytestmark = [pytest.mark.usefixtures("engine"), pytest.mark.timeout(300)]
DOCKER = {"env": Kind.DOCKER}
SOCKET = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock").removeprefix("unix://")


# -- the walls -------------------------------------------------------------------------------------------------------

LOOK = """
import os, socket
def status(name):
    with open("/proc/self/status") as file:
        return next(line.split(":")[1].strip() for line in file if line.startswith(name))
def refused(call, *args):
    try:
        call(*args)
    except OSError as problem:
        return problem.strerror
def handler(input):
    return {
        "user": [os.getuid(), os.getgid()],
        "capabilities": int(status("CapEff"), 16),
        "no new privileges": status("NoNewPrivs"),
        "network": sorted(os.listdir("/sys/class/net")),
        "root": refused(open, "/written", "w"),
        "tmp": refused(open, "/tmp/written", "w"),
        "relay": refused(open, "/proc/1/environ"),
        "others": sorted(p for p in os.listdir("/proc") if p.isdigit() and p not in ("1", str(os.getpid()))),
        "runner": os.path.exists(input),
    }
"""


async def test_walls_are_closed_by_default(rig):
    found = (await rig.run(LOOK, __file__, **DOCKER)).value

    assert found["user"] == [65534, 65534]
    assert found["capabilities"] == 0
    assert found["no new privileges"] == "1"
    assert found["network"] == ["lo"]
    assert found["root"] == "Read-only file system"
    assert found["tmp"] is None
    assert found["relay"] == "Permission denied", "user code can look into the relay"
    assert found["others"] == []
    assert found["runner"] is False


async def test_a_module_may_open_the_network(rig):
    with engines.client() as api:
        if not any(network["Name"] == "bridge" for network in api.networks()):
            pytest.skip("this engine was started without a network")

    assert "eth0" in (await rig.run(LOOK, __file__, network=True, **DOCKER)).value["network"]


async def test_a_module_may_open_the_root_and_be_another_user(rig):
    found = (await rig.run(LOOK, __file__, user="0:0", writable=True, **DOCKER)).value

    assert found["user"] == [0, 0]
    assert found["root"] is None
    assert found["capabilities"] == 0, "root has got more than its name"


async def test_limits_of_a_module_are_those_of_its_container(rig):
    module = await rig.publish("def handler(input): pass", memory=200_000_000, cpus=0.5, processes=7, **DOCKER)
    names = []
    await rig.call(module, on_worker=lambda worker: names.append(worker.guest.name))

    with engines.client() as api:
        found = api.inspect_container(names[0])["HostConfig"]
    assert (found["Memory"], found["MemorySwap"]) == (200_000_000, 200_000_000)
    assert found["NanoCpus"] == 500_000_000
    assert found["PidsLimit"] == 9
    assert found["ReadonlyRootfs"]
    assert found["CapDrop"] == ["ALL"]
    assert not found["Binds"], "something of this machine is mounted"


async def test_code_that_does_not_fit(tmp_path):
    folder = tmp_path / "large"
    folder.mkdir()
    (folder / "main.py").write_text("def handler(input): return input\n")
    (folder / "data.bin").write_bytes(bytes(3_000_000))
    async with open_rig(tmp_path / "rig", docker=engines.settings(scratch_bytes=1 << 20)) as rig:
        failure = (await rig.run("", path=folder, **DOCKER)).failure

    assert failure.kind is ErrorKind.LOAD_FAILED
    assert "No space left" in failure.message


async def test_a_folder_of_files_travels(rig, tmp_path):
    folder = tmp_path / "shop"
    (folder / "data").mkdir(parents=True)
    (folder / "main.py").write_text(
        "import hashlib, pathlib\nHERE = pathlib.Path(__file__).parent\n"
        "def handler(input): return hashlib.sha256((HERE / 'data' / input).read_bytes()).hexdigest()\n"
    )
    content = os.urandom(1_000_003)
    (folder / "data" / "large").write_bytes(content)
    (folder / "data" / "empty").write_bytes(b"")
    module = await rig.publish("", path=folder, **DOCKER)

    assert (await rig.call(module, "large")).value == hashlib.sha256(content).hexdigest()
    assert (await rig.call(module, "empty")).value == hashlib.sha256(b"").hexdigest()


# -- images ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def image():
    """Return a function that makes an image from files over the base image, or from files alone."""
    made = []

    def make(files, base=True, workdir="/app"):
        name = f"{engines.IMAGE}:made{len(made)}"
        data = io.BytesIO()
        with tarfile.open(fileobj=data, mode="w") as tar:
            for path, content in files.items():
                info = tarfile.TarInfo(path)
                info.size, info.mode = len(content), 0o755
                tar.addfile(info, io.BytesIO(content))
        with engines.client() as api:
            if base:
                container = api.create_container(f"{engines.IMAGE}:base", "true")["Id"]
                api.put_archive(container, "/", data.getvalue())
                api.commit(container, *name.split(":"), changes=[f"WORKDIR {workdir}", "ENV FROM_IMAGE=yes"])
                api.remove_container(container)
            else:
                api.import_image_from_data(data.getvalue(), *name.split(":"))
        made.append(name)
        return name

    yield make
    with engines.client() as api:
        for name in made:
            api.remove_image(name, force=True)


async def test_code_that_is_in_the_image(rig, image):
    name = image({"app/jobs/report.py": b"import os\ndef run(input): return [input, os.environ['FROM_IMAGE']]\n"})
    module = await rig.publish("", image=name, handler="jobs/report:run", path=None, **DOCKER)

    assert (await rig.call(module, 3)).value == [3, "yes"]


async def test_an_image_without_python(rig, image):
    failure = (await rig.run("", image=image({"bin/true": b""}, base=False), **DOCKER)).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert failure.field == "image"
    assert "has no Python" in failure.message
    assert "python3" in failure.message


async def test_an_image_with_a_python_that_is_too_old(rig, image):
    name = image({"usr/local/bin/python3": b"#!/bin/sh\necho 2.7.18\n"})
    failure = (await rig.run("", image=name, **DOCKER)).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert "2.7.18" in failure.message
    assert "3.8" in failure.message


async def test_another_python_than_the_module_wants(rig):
    failure = (await rig.run("", python="3.8", **DOCKER)).failure

    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "python")
    assert "wants 3.8" in failure.message


async def test_an_image_that_is_nowhere(rig):
    with refusing_port() as port:
        failure = (await rig.run("", image=f"127.0.0.1:{port}/no/such:image", **DOCKER)).failure

    assert failure.kind is ErrorKind.ENVIRONMENT_FAILED
    assert f"127.0.0.1:{port}/no/such:image could not be pulled" in failure.message


class Index:
    """A package index with one package, for pip inside a build."""

    def __init__(self, code=b"answer = 42\n"):
        self.asked = []
        data = io.BytesIO()
        with zipfile.ZipFile(data, "w") as wheel:
            wheel.writestr("tiny.py", code)
            wheel.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
            wheel.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
            wheel.writestr("tiny-1.0.dist-info/RECORD", "")
        self.files = {
            "/simple/tiny/": b'<a href="/tiny-1.0-py3-none-any.whl">tiny-1.0-py3-none-any.whl</a>',
            "/tiny-1.0-py3-none-any.whl": data.getvalue(),
        }

    def __call__(self, path):
        self.asked.append(path)
        return self.files.get(path)


def built_images():
    with engines.client() as api:
        return {tag for image in api.images() for tag in image["RepoTags"] or () if tag.startswith("operato-runner:")}


@pytest.fixture
def unbuilt():
    """Remove the images that a test builds."""
    before = built_images()
    yield before
    with engines.client() as api:
        for tag in built_images() - before:
            api.remove_image(tag, force=True)


TINY = "import tiny\ndef handler(input): return [tiny.answer, input]"


async def test_requirements_are_installed_once(tmp_path, monkeypatch, unbuilt):
    index = Index(b"answer = 42 # %d\n" % os.getpid())
    async with file_server(index, heads={"/simple/": "text/html"}) as port:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://user:secret@127.0.0.1:{port}/simple")
        for round_ in (1, 2):
            async with open_rig(tmp_path / f"rig{round_}", images=tmp_path / "images") as rig:
                modules = [await rig.publish(TINY, name=n, requirements=("tiny",), **DOCKER) for n in ("a", "b")]
                values = []

                async def call(i, rig=rig, modules=modules, values=values):
                    values.append((await rig.call(modules[i % 2], i)).value)

                async with trio.open_nursery() as nursery:
                    for i in range(6):
                        nursery.start_soon(call, i)
                assert sorted(values) == [[42, i] for i in range(6)]

    assert len([path for path in index.asked if path.endswith(".whl")]) == 1, "it was built twice"
    (tag,) = built_images() - unbuilt
    key = tag.partition(":")[2]
    assert "Successfully installed tiny-1.0" in (tmp_path / "images" / ".logs" / f"{key}.log").read_text()
    assert "tiny==1.0" in (tmp_path / "images" / key / "requirements.lock").read_text()
    with engines.client() as api:
        kept = json.dumps([api.inspect_image(tag), api.history(tag)])
    assert "secret" not in kept, "how packages are fetched is in the image"


async def test_built_images_are_listed_rebuilt_and_removed_when_nobody_uses_them(tmp_path, monkeypatch, unbuilt):
    index = Index(b"answer = 42 # again %d\n" % os.getpid())
    async with file_server(index, heads={"/simple/": "text/html"}) as port:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        async with open_rig(tmp_path / "rig", images=tmp_path / "images") as rig:
            module = await rig.publish(TINY, requirements=("tiny",), **DOCKER)
            environment = rig.executors[Kind.DOCKER].environment
            assert (await rig.call(module, 1)).value == [42, 1]
            (tag,) = built_images() - unbuilt
            key = (await environment.known(module.spec)).key
            (found,) = await environment.stored()
            assert (found.key, found.kind, found.path) == (key, "docker", tag)
            assert found.size_bytes > 0
            assert found.in_use
            assert found.manifest["requirements"] == ["tiny"]
            assert await environment.remove(key) is False
            assert built_images() - unbuilt == {tag}

        async with open_rig(tmp_path / "other", images=tmp_path / "images") as rig:
            await rig.publish("def handler(input): return 1", **DOCKER)  # starts the kind; it has no image of ours
            environment = rig.executors[Kind.DOCKER].environment
            (found,) = await environment.stored()
            assert not found.in_use
            with engines.client() as api:
                before = api.inspect_image(tag)["Id"]
                builder = Watch()
                await environment.rebuild(module.spec, builder)
                assert api.inspect_image(tag)["Id"] != before
                assert "Successfully installed tiny-1.0" in builder.lines
                with pytest.raises(docker.errors.ImageNotFound):
                    api.inspect_image(before)
            environment.keep(())
            assert await environment.remove(key) is True
            assert await environment.stored() == []
            assert built_images() == unbuilt


async def test_what_cannot_be_installed_is_said_in_the_words_of_pip(rig, monkeypatch, unbuilt):
    async with file_server(Index()) as port:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        failure = (await rig.run(TINY, requirements=("no-such-package-of-operato",), **DOCKER)).failure

    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "requirements")
    assert "no-such-package-of-operato" in failure.message
    assert "No matching distribution" in failure.message
    assert built_images() == unbuilt


async def test_a_build_that_is_cut_off_leaves_nothing(tmp_path, monkeypatch, unbuilt):
    """The index never finishes its answer; the rig checks for remains."""
    async with file_server(lambda _path: bytes(10_000_000), pause=0.05) as port:
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{port}/simple")
        async with open_rig(tmp_path / "rig") as rig:
            failure = (await rig.run(TINY, requirements=("tiny",), build_timeout=2.0, **DOCKER)).failure

    assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "build_timeout")
    assert "installing 1 requirements" in failure.message
    assert built_images() == unbuilt


class Registry:
    """A registry with one image: the manifest, its configuration and its only layer."""

    def __init__(self, layer):
        configuration = json.dumps(
            {
                "architecture": "amd64",
                "os": "linux",
                "config": {},
                "rootfs": {"type": "layers", "diff_ids": [self.digest(layer)]},
            }
        ).encode()
        kind = "application/vnd.docker"
        self.manifest = json.dumps(
            {
                "schemaVersion": 2,
                "mediaType": f"{kind}.distribution.manifest.v2+json",
                "config": self.described(f"{kind}.container.image.v1+json", configuration),
                "layers": [self.described(f"{kind}.image.rootfs.diff.tar", layer)],
            }
        ).encode()
        self.blobs = {self.digest(data): data for data in (configuration, layer)}

    @staticmethod
    def digest(data):
        return "sha256:" + hashlib.sha256(data).hexdigest()

    def described(self, kind, data):
        return {"mediaType": kind, "size": len(data), "digest": self.digest(data)}

    def __call__(self, path):
        if path == "/v2/":
            return b"{}"
        return self.manifest if "/manifests/" in path else self.blobs.get(path.rpartition("/")[2])


KINDS = {"/manifests/": "application/vnd.docker.distribution.manifest.v2+json"}


def make_layer(size):
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        info = tarfile.TarInfo("large.bin")
        info.size = size
        tar.addfile(info, io.BytesIO(os.urandom(size)))
    return data.getvalue()


async def test_a_pull_says_how_far_it_is(rig):
    await rig.publish(ECHO, **DOCKER)
    environment = rig.executors[Kind.DOCKER].environment
    async with file_server(Registry(make_layer(1_500_000)), heads=KINDS, pause=0.006) as port:
        name = f"127.0.0.1:{port}/some/image:1"
        watch = Watch()
        try:
            with pytest.raises(RunnerError, match="has no Python"):
                await environment.prepare(ModuleSpec(name="m", env=Kind.DOCKER, image=name), watch)
        finally:
            with engines.client() as api:
                api.remove_image(name, force=True)

    lines = watch.lines
    assert lines[0] == f"pulling {name}"
    assert any(line.startswith(f"pulling {name}: ") and line.endswith("of 1.5 MB") for line in lines), lines
    assert any("Pull complete" in line for line in lines), lines


async def test_a_pull_that_is_cut_off(tmp_path):
    async with file_server(Registry(make_layer(5_000_000)), heads=KINDS, pause=0.05) as port:
        name = f"127.0.0.1:{port}/some/image:1"
        async with open_rig(tmp_path / "rig") as rig:
            failure = (await rig.run("", image=name, build_timeout=1.5, **DOCKER)).failure

        assert (failure.kind, failure.field) == (ErrorKind.ENVIRONMENT_FAILED, "build_timeout")
        assert f"pulling {name}" in failure.message
    with engines.client() as api:
        assert not api.images(name)


# -- engines that go and come ------------------------------------------------------------------------------------------

ECHO = "def handler(input): return input"


@pytest.fixture
async def proxied(tmp_path, images):
    """Executors that see the engine through a way that can be cut."""
    path = tmp_path / "engine.sock"
    async with unix_proxy(path, SOCKET) as proxy:
        settings = engines.settings(host=f"unix://{path}")
        async with open_rig(tmp_path / "rig", docker=settings, images=images) as rig:
            rig.proxy = proxy
            yield rig
            await proxy.open()  # the remains behind the cut proxy are removed before the rig checks


async def succeeds(rig, module, value):
    """Wait until a call succeeds: the engine is asked again every two seconds."""
    with trio.fail_after(PATIENCE):
        while (ran := await rig.call(module, value)).outcome.failure is not None:
            assert ran.kind is ErrorKind.UNAVAILABLE, ran.failure
            await trio.sleep(0.1)
    return ran.value


async def test_an_engine_that_is_started_after_the_runner(tmp_path, images):
    path = tmp_path / "engine.sock"
    async with unix_proxy(path, SOCKET) as proxy:
        settings = engines.settings(host=f"unix://{path}")
        async with open_rig(tmp_path / "rig", docker=settings, images=images) as rig:
            module = await rig.publish(ECHO, **DOCKER)
            ran = await rig.call(module, 1)
            assert (ran.kind, ran.failure.field) == (ErrorKind.UNAVAILABLE, "env")
            assert f"unix://{path}" in ran.failure.message
            assert "start one" in ran.failure.message
            await proxy.open()

            assert await succeeds(rig, module, 2) == 2


async def test_an_address_that_cannot_be_spoken_to(tmp_path):
    async with open_rig(tmp_path / "rig", docker=engines.settings(host="ssh://user@host")) as rig:
        failure = (await rig.run(ECHO, **DOCKER)).failure

    assert failure.kind is ErrorKind.UNAVAILABLE
    assert "ssh:// is not supported" in failure.message
    assert "unix://PATH" in failure.message


async def test_an_engine_that_goes_in_mid_call_and_comes_back(tmp_path, images):
    path = tmp_path / "engine.sock"
    code = """
    import time
    def handler(input):
        print("begun", flush=True)
        time.sleep(600 * input)
        return input
    """
    async with unix_proxy(path, SOCKET) as proxy:
        await proxy.open()
        settings = engines.settings(host=f"unix://{path}")
        async with open_rig(tmp_path / "rig", docker=settings, images=images) as rig:
            module = await rig.publish(code, timeout=60.0, **DOCKER)
            results = []

            async def call():
                results.append(await rig.call(module, 1, log=log))

            log = EventLog(limit=1000, keep=1000)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(call)
                await wait_until(lambda: log.printed, "the handler did not begin")
                proxy.cut()
                await trio.sleep(0.3)  # it is away while the call is ended
                await proxy.open()

            (ran,) = results
            assert ran.kind is ErrorKind.WORKER_CRASHED
            assert "engine" in ran.failure.message
            instance = (rig.path / "instance").read_text()
            await wait_until(lambda: not engines.containers(instance), "the container lives on")
            assert await succeeds(rig, module, 0) == 0


async def test_an_idle_container_that_somebody_removes(rig):
    module = await rig.publish(ECHO, **DOCKER)
    first = await rig.call(module, 1)
    with engines.client() as api:
        api.remove_container(first.pid, force=True)
    await rig.settled(rig.executors[Kind.DOCKER])

    second = await rig.call(module, 2)
    assert second.value == 2
    assert second.pid != first.pid


async def test_an_engine_over_tcp(tmp_path, images, monkeypatch):
    async with tcp_proxy(SOCKET) as port:
        monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
        async with open_rig(tmp_path / "rig", images=images) as rig:
            assert (await rig.run(ECHO, "x" * 1_000_000, **DOCKER)).value == "x" * 1_000_000
            monkeypatch.undo()  # the rig asks the engine itself


async def test_an_engine_over_tls(tmp_path, images, monkeypatch):
    folder = tmp_path / "certificates"
    with certificates(folder) as context:
        async with tcp_proxy(SOCKET, context) as port:
            monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
            monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
            monkeypatch.setenv("DOCKER_CERT_PATH", str(folder))
            async with open_rig(tmp_path / "rig", images=images) as rig:
                module = await rig.publish(ECHO, **DOCKER)
                for value in (1, "x" * 1_000_000):
                    assert (await rig.call(module, value)).value == value
                monkeypatch.undo()


async def test_a_certificate_of_somebody_else(tmp_path, monkeypatch):
    with certificates(tmp_path / "theirs") as context, certificates(tmp_path / "mine"):
        async with tcp_proxy(SOCKET, context) as port:
            monkeypatch.setenv("DOCKER_HOST", f"tcp://127.0.0.1:{port}")
            monkeypatch.setenv("DOCKER_TLS_VERIFY", "1")
            monkeypatch.setenv("DOCKER_CERT_PATH", str(tmp_path / "mine"))
            async with open_rig(tmp_path / "rig") as rig:
                failure = (await rig.run(ECHO, **DOCKER)).failure
                monkeypatch.undo()

    assert failure.kind is ErrorKind.UNAVAILABLE
    assert "certificate" in failure.message.lower()


# -- ends ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.01, 0.03, 0.06, 0.1, 0.2, 0.3, 0.4, 0.6])
async def test_a_start_that_is_cut_off_anywhere_leaves_nothing(tmp_path, images, seconds):
    """The rig checks for remains when it closes."""
    async with open_rig(tmp_path / "rig", images=images) as rig:
        module = await rig.publish(ECHO, isolation=Isolation.FRESH, **DOCKER)
        with trio.move_on_after(seconds):
            await rig.call(module, 1)
        assert (await rig.call(module, 2)).value == 2
        await rig.settled(rig.executors[Kind.DOCKER])
        now = rig.executors[Kind.DOCKER].statistics()
        assert (now.busy, now.starting, now.waiting) == (0, 0, 0)


@pytest.mark.parametrize("seconds", [0.01, 0.1, 0.2, 0.3, 0.5])
async def test_closing_during_a_start_leaves_nothing(tmp_path, images, seconds):
    async with open_rig(tmp_path / "rig", images=images) as rig, trio.open_nursery() as nursery:
        module = await rig.publish(ECHO, **DOCKER)
        nursery.start_soon(rig.call, module, 1)
        await trio.sleep(seconds)
        nursery.cancel_scope.cancel()


async def test_spares_are_containers_that_wait(tmp_path, images):
    async with open_rig(tmp_path / "rig", images=images, spares=1) as rig:
        module = await rig.publish(ECHO, isolation=Isolation.FRESH, **DOCKER)
        executor = rig.executors[Kind.DOCKER]
        await rig.wait_until(lambda: executor.statistics().spares, "no spare is kept")
        for i in range(3):
            assert (await rig.call(module, i)).value == i
    assert executor.statistics().spares == 0


RUNNER = """
import sys
from pathlib import Path
import trio
from protocol.model import Kind
from tests.support import open_rig

CODE = "import time\\ndef handler(input):\\n    print('begun', flush=True)\\n    while input: pass"

async def main(path):
    async with open_rig(path, images=path.parent / "images") as rig, trio.open_nursery() as nursery:
        idle = await rig.publish(CODE, name="idle", env=Kind.DOCKER)
        await rig.call(idle, 0)
        busy = await rig.publish(CODE, name="busy", env=Kind.DOCKER, timeout=600.0)
        nursery.start_soon(rig.call, busy, 1)
        await rig.wait_until(lambda: rig.executors[Kind.DOCKER].statistics().busy, "it is not busy")
        print("READY", flush=True)
        await trio.sleep_forever()

trio.run(main, Path(sys.argv[1]))
"""


async def test_the_death_of_the_runner_ends_its_containers_and_the_next_one_removes_them(tmp_path):
    path = tmp_path / "rig"
    argv = [sys.executable, "-c", RUNNER, str(path)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, argv, check=False, stdout=subprocess.PIPE))
        with trio.fail_after(PATIENCE):
            while b"READY" not in await process.stdout.receive_some():
                pass
            instance = (path / "instance").read_text()
            assert len(engines.containers(instance)) == 2
            process.send_signal(signal.SIGKILL)
            await process.wait()

    def running():
        with engines.client() as api:
            return api.containers(filters={"label": f"{INSTANCE}={instance}"})

    await wait_until(lambda: not running(), "containers outlive their runner")
    assert len(engines.containers(instance)) == 2, "they have ended and are still there"
    # The directory of the dead runner, as the next start of the same one finds it.
    (path / "work").rename(tmp_path / "old")
    async with open_rig(path, images=tmp_path / "images") as rig:
        assert (await rig.run(ECHO, 1, **DOCKER)).value == 1
        assert len(engines.containers(instance)) == 1
