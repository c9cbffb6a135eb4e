"""Unit: the settings of a cluster, labels and needs of them, and the name of a runner."""

from __future__ import annotations

import base64
import hashlib
import re
import socket
from pathlib import Path

import pytest

from actors.cluster import NODE_FILE, find_node, node_name
from actors.registry.code_store import content_digest
from config.cluster import (
    MAX_LABELS,
    cluster_rules,
    missing_labels,
    read_credentials,
    read_labels,
    read_needs,
    read_node,
    read_servers,
    rules,
)
from config.load import describe, load_settings
from config.mistakes import ConfigError, Wrong
from config.modules import ModuleSpec, spec_from_mapping
from config.settings import ClusterSettings, Settings
from protocol.errors import RunnerError
from protocol.model import Kind
from runner.serve import cluster_mistakes
from tests.certificates import Authority
from tests.nats_users import Account


@pytest.fixture(autouse=True)
def _installed(monkeypatch):
    """Do as if the extra were installed."""
    monkeypatch.setattr(rules, "find_spec", lambda _: object())


def load(folder: Path, runner: str = "", environ: dict | None = None):
    file = folder / "modules.yaml"
    file.write_text("modules: []\nrunner:\n  offline: false\n" + "".join(f"  {line}\n" for line in runner.splitlines()))
    return load_settings({"config": file}, environ or {})


def mistakes(folder: Path, runner: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(folder, runner)
    return [str(mistake).removeprefix(f"{folder}/modules.yaml:4: runner.") for mistake in caught.value.mistakes]


# -- servers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("nats://a,b,c", ("nats://a:4222", "nats://b:4222", "nats://c:4222")),
        ("a:4223 b", ("nats://a:4223", "nats://b:4222")),
        (["tls://a.example.org:4443/", "b"], ("tls://a.example.org:4443", "tls://b:4222")),
        ("nats://[::1]:4222", ("nats://[::1]:4222",)),
        ("nats://a,a:4222", ("nats://a:4222",)),
        (None, ()),
        ("", ()),
    ],
)
def test_servers(given, expected):
    assert read_servers(given) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("http://a", "'http://a' is not one of the addresses of NATS servers, such as nats://one,two,three"),
        ("nats://a:0", "is not one of the addresses"),
        ("nats://a:70000", "is not one of the addresses"),
        ("nats://a,tls://b", "has nats:// and tls://; give all servers by one of them"),
        (["nats://a"] * 33, "has 33 servers; the limit is 32"),
        (5, "5 is not a list"),
    ],
)
def test_wrong_servers(given, expected):
    with pytest.raises(Wrong, match=re.escape(expected)):
        read_servers(given)


@pytest.mark.parametrize("address", ["nats://me:hunter2@a", "nats://a,hunter2@b"])
def test_credentials_in_an_address_are_refused_and_not_shown(tmp_path, address):
    (mistake,) = mistakes(tmp_path, f"cluster: {address}")

    assert "hunter2" not in mistake
    assert mistake.endswith("put credentials into `cluster_credentials`")


# -- rules between settings --------------------------------------------------------------------------------------------


def test_all_settings_of_a_cluster(tmp_path):
    authority = Authority(tmp_path)
    signed = authority.sign("runner")
    (tmp_path / "runner.creds").write_text(Account().user().credentials)
    text = f"""\
cluster: nats://one,two,three
cluster_name: blue
node: runner-1
labels: {{gpu: true, zone: eu, cores: 8}}
redelivery: 20s
cluster_credentials: runner.creds
cluster_ca: {authority.file}
cluster_cert: {signed.certificate}
cluster_key: {signed.key}
cluster_monitor: [http://one:8222, "http://two:8222/"]"""

    loaded = load(tmp_path, text)

    assert loaded.settings.cluster == ClusterSettings(
        servers=("nats://one:4222", "nats://two:4222", "nats://three:4222"),
        name="blue",
        node="runner-1",
        labels=("gpu", "zone=eu", "cores=8"),
        redelivery_seconds=20.0,
        credentials=tmp_path / "runner.creds",
        ca=authority.file,
        cert=signed.certificate,
        key=signed.key,
        monitor=("http://one:8222", "http://two:8222"),
    )
    assert cluster_mistakes(loaded.settings) == []
    shown = {name: value for name, value, _ in describe(loaded)}
    assert shown["cluster"] == "nats://one:4222, nats://two:4222, nats://three:4222"
    assert shown["cluster_credentials"] == str(tmp_path / "runner.creds")


def test_variables_of_the_environment(tmp_path):
    environ = {"OPERATO_CLUSTER": "nats://one,two", "OPERATO_LABELS": "gpu, zone=eu", "OPERATO_NODE": "runner-1"}

    cluster = load(tmp_path, environ=environ).settings.cluster

    assert cluster.servers == ("nats://one:4222", "nats://two:4222")
    assert (cluster.labels, cluster.node, cluster.name) == (("gpu", "zone=eu"), "runner-1", "operato")


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("cluster_name: Blue", "cluster_name: 'Blue' is not a name: 1 to 32 of a-z, 0-9, '_' and '-', a letter first"),
        ("cluster_name: a.b", "cluster_name: 'a.b' is not a name"),
        ("node: runner.1", "node: 'runner.1' is not the name of a runner"),
        ("redelivery: 0", "redelivery: 0s is out of range; it must be from 1s to 1h"),
        ("cluster_monitor: one:8222", "cluster_monitor: 'one:8222' is not an address of a web server"),
        ("labels: {gpu: false}", "labels: 'gpu' is false; leave out a label that the runner does not have"),
        ("labels: [zone=eu, zone=us]", "labels: zone is given twice; a runner has one value of a label"),
        ("labels: ['=']", "labels: '=' is not a label: a name such as gpu, or a name with a value such as zone=eu"),
    ],
)
def test_wrong_values(tmp_path, setting, expected):
    (mistake,) = mistakes(tmp_path, setting)

    assert mistake.startswith(expected)


@pytest.mark.parametrize(("given", "needed"), [("cert", "key"), ("key", "cert")])
def test_a_certificate_and_its_key_need_each_other(tmp_path, given, needed):
    text = f"cluster_{given}: {tmp_path}/file"

    assert mistakes(tmp_path, f"{text}\ncluster: nats://one") == [f"cluster_{given}: needs cluster_{needed}"]
    assert load(tmp_path, text).settings.cluster.servers == ()


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("credentials: NONE", "NONE: No such file or directory"),
        ("credentials: FILE", "FILE: has no user JWT with its seed; give a file as `nsc generate creds` writes it"),
        ("ca: NONE", "NONE: No such file or directory"),
        ("ca: FILE", "FILE: has no certificate in PEM form"),
        ("cert: FILE, key: FILE", "FILE: it and FILE are no certificate and key in plain PEM form"),
        ("cert: NONE, key: NONE", "NONE, NONE: No such file or directory"),
    ],
)
def test_files_that_a_cluster_cannot_use(tmp_path, setting, expected):
    (tmp_path / "file").write_text("nothing\n")
    names = {"FILE": tmp_path / "file", "NONE": tmp_path / "none"}
    files = {name: names[file] for name, file in re.findall(r"(\w+): (\w+)", setting)}

    (mistake,) = cluster_mistakes(Settings(cluster=ClusterSettings(servers=("nats://one:4222",), **files)))
    assert mistake.field == f"cluster_{setting.partition(':')[0]}"
    assert mistake.message == re.sub("FILE|NONE", lambda match: str(names[match[0]]), expected)
    assert cluster_mistakes(Settings(cluster=ClusterSettings(**files))) == []


def test_a_key_of_another_certificate(tmp_path):
    authority = Authority(tmp_path)
    certificate, other = authority.sign("one").certificate, authority.sign("two").key
    cluster = ClusterSettings(servers=("nats://one:4222",), cert=certificate, key=other)

    (mistake,) = cluster_mistakes(Settings(cluster=cluster))

    assert str(mistake) == f"cluster_cert: {certificate}: {other} is not its key"


def test_a_key_with_a_password_is_refused_without_a_question(tmp_path):
    signed = Authority(tmp_path).sign("one", password=b"hunter2")
    cluster = ClusterSettings(servers=("nats://one:4222",), cert=signed.certificate, key=signed.key)

    (mistake,) = cluster_mistakes(Settings(cluster=cluster))

    assert "are no certificate and key in plain PEM form" in mistake.message


def test_without_the_extra_the_remedy_is_the_line_that_installs_it(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(rules, "find_spec", asked.append)

    assert load(tmp_path).settings.cluster.servers == ()
    assert mistakes(tmp_path, "cluster: nats://one") == [
        "cluster: needs the extra `cluster`, which is not installed: pip install 'operato-runner[cluster]'"
    ]
    assert asked == ["nats"]
    assert list(cluster_rules({"cluster.servers": ()})) == []


# -- credentials -------------------------------------------------------------------------------------------------------


def test_credentials_sign_as_their_user_and_are_not_shown(tmp_path):
    user = Account().user()
    (tmp_path / "runner.creds").write_text(user.credentials)

    found = read_credentials(tmp_path / "runner.creds")

    assert found.jwt == user.jwt
    user.key.public_key().verify(base64.b64decode(found.sign(b"a nonce")), b"a nonce")
    assert repr(found) == "Credentials()"


def test_damaged_credentials_are_refused_without_showing_them(tmp_path):
    user, account = Account().user(), Account()
    seed = re.search("SU[A-Z2-7]{56}", user.credentials)[0]
    swapped = seed[:20] + ("A" if seed[20] != "A" else "B") + seed[21:]
    file = tmp_path / "runner.creds"
    for other, reason in (
        (swapped, "its seed is damaged"),
        (seed[:-8], "its seed is damaged"),
        (account.seed, "its seed is not that of a user"),
        ("?", "has no user JWT with its seed"),
    ):
        file.write_text(user.credentials.replace(seed, other))
        with pytest.raises(Wrong, match=reason) as caught:
            read_credentials(file)
        assert other not in str(caught.value) or other == "?"


# -- labels and needs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("needs", "labels", "missing"),
    [
        ((), (), ()),
        (("gpu",), ("gpu",), ()),
        (("gpu",), ("gpu=a100",), ()),
        (("gpu=a100",), ("gpu",), ("gpu=a100",)),
        (("gpu=a100", "zone=eu"), ("zone=eu", "gpu=t4"), ("gpu=a100",)),
        (("gpu", "zone"), (), ("gpu", "zone")),
        (("gp",), ("gpu",), ("gp",)),
    ],
)
def test_needs_are_met_by_labels(needs, labels, missing):
    assert missing_labels(needs, labels) == missing


def test_labels_in_every_form():
    assert read_labels({"gpu": True, "cores": 8, "zone": "eu"}) == ("gpu", "cores=8", "zone=eu")
    assert read_labels(["gpu", "gpu"]) == read_labels("gpu") == ("gpu",)
    assert read_labels(None) == ()
    with pytest.raises(Wrong, match=f"has {MAX_LABELS + 1} labels; the limit is {MAX_LABELS}"):
        read_labels([f"l{n}" for n in range(MAX_LABELS + 1)])


def test_equal_needs_are_written_alike():
    assert read_needs(["zone=eu", "gpu", "gpu"]) == read_needs(["gpu", "zone=eu"]) == ("gpu", "zone=eu")
    assert read_needs(None) == ()


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("gpu", "needs: 'gpu' is not a list of labels; write [gpu]"),
        ({"gpu": 1}, "needs: a mapping is not a list of labels"),
        (["g p"], "needs: 'g p' is not a label"),
        ([""], "needs: is empty"),
        ([f"l{n}" for n in range(MAX_LABELS + 1)], f"needs: has {MAX_LABELS + 1} labels; the limit is {MAX_LABELS}"),
    ],
)
def test_wrong_needs_of_a_module(given, expected):
    data = {"name": "m", "env": "inline", "code": "def handler(input): ...", "needs": given}
    with pytest.raises(ConfigError) as caught:
        spec_from_mapping(data, base=None, allow_path=False)

    assert str(caught.value.mistakes[0]).startswith(expected)


def test_needs_are_content_and_defaults_are_not():
    """So a release with one more field gives modules the same version, and runners of both serve them."""
    plain = ModuleSpec("m", Kind.INLINE, code="x")
    needing = ModuleSpec("m", Kind.INLINE, code="x", needs=("gpu",))
    others = [ModuleSpec("m", Kind.VENV, code="x"), ModuleSpec("n", Kind.INLINE, code="x")]

    digests = {content_digest(spec, {}) for spec in (plain, needing, *others)}

    assert len(digests) == 4
    assert content_digest(plain, {}) == hashlib.sha256(b'{"name": "m", "secrets": []}').hexdigest()


# -- the name of a runner ----------------------------------------------------------------------------------------------


def test_a_made_name_is_kept_by_the_data_directory(tmp_path, monkeypatch):
    monkeypatch.setattr(socket, "gethostname", lambda: "worker_1.example.org")
    data, other = tmp_path / "data", tmp_path / "other"
    assert find_node(ClusterSettings(), data) is None

    name = node_name(ClusterSettings(), data)

    assert re.fullmatch(r"worker-1-[0-9a-f]{6}", name)
    assert read_node(name) == name
    monkeypatch.setattr(socket, "gethostname", lambda: "elsewhere")
    assert node_name(ClusterSettings(), data) == find_node(ClusterSettings(), data) == name
    assert node_name(ClusterSettings(), other) != name
    assert [path.name for path in data.iterdir()] == [NODE_FILE]


@pytest.mark.parametrize("host", ["", "...", "-", "x" * 300, "서버"])
def test_every_host_gives_a_name(tmp_path, monkeypatch, host):
    monkeypatch.setattr(socket, "gethostname", lambda: host)

    name = node_name(ClusterSettings(), tmp_path)

    assert read_node(name) == name


def test_a_given_name_is_not_stored(tmp_path):
    assert node_name(ClusterSettings(node="one"), tmp_path) == "one"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("content", [b"", b"a b", b"\xff", b"x" * 5000])
def test_a_damaged_name_is_refused_with_the_remedy(tmp_path, content):
    (tmp_path / NODE_FILE).write_bytes(content)

    with pytest.raises(RunnerError, match=r"it holds no name.*; give the setting `node`"):
        node_name(ClusterSettings(), tmp_path)
