"""Unit: settings by precedence with their sources, and the variables for user code and installers."""

from __future__ import annotations

import ast
import os
from pathlib import Path

import attrs
import pytest

from config import load, secrets
from config.descriptions import DESCRIPTIONS
from config.load import SETTINGS, Loaded, base_environment, describe, load_settings, secret_values
from config.mistakes import ConfigError, Mistake
from config.settings import MIB, Settings
from tests.certificates import Authority

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def _folder(tmp_path, monkeypatch):
    """Stand in an empty folder, so that relative names and messages are short."""
    monkeypatch.chdir(tmp_path)


def loaded(runner: str = "", options: dict | None = None, environ: dict | None = None) -> Loaded:
    """Load with this `runner:` section; each of its lines is one entry, the first in line 2 of modules.yaml."""
    Path("modules.yaml").write_text("runner:\n" + "".join(f"  {line}\n" for line in runner.splitlines()))
    return load_settings(options or {}, environ or {})


def check(*expected: str, runner: str = "", options: dict | None = None, environ: dict | None = None) -> None:
    """Expect exactly these mistakes; text that ends in `...` is compared up to there."""
    with pytest.raises(ConfigError) as caught:
        loaded(runner, options, environ)
    found = [str(mistake) for mistake in caught.value.mistakes]
    assert len(found) == len(expected), found
    for line, want in zip(found, expected, strict=True):
        assert line == want or (want.endswith("...") and line.startswith(want[:-3]))


def value_of(given: Loaded, dotted: str) -> object:
    section, _, name = dotted.partition(".")
    return getattr(getattr(given.settings, section), name)


# Names.


def test_every_setting_has_one_flat_name_of_its_own():
    leaves = sum(len(attrs.fields(section.type)) for section in attrs.fields(Settings) if attrs.has(section.type))

    assert len(SETTINGS) == leaves
    assert len({setting.variable for setting in SETTINGS.values()}) == leaves
    assert "config" not in SETTINGS


def test_a_build_ca_must_have_certificates(tmp_path):
    (tmp_path / "modules.yaml").write_text("modules: []\n")
    (tmp_path / "empty.pem").write_text("nothing\n")
    authority = Authority(tmp_path)
    for name, why in (("empty.pem", "has no certificate in PEM form"), ("none.pem", "No such file or directory")):
        with pytest.raises(ConfigError, match=rf"^build_ca: .*{name}: {why}"):
            load_settings({"config": str(tmp_path / "modules.yaml"), "build_ca": str(tmp_path / name)}, {})

    loaded = load_settings({"config": str(tmp_path / "modules.yaml"), "build_ca": str(authority.file)}, {})
    assert loaded.settings.store.build_ca == authority.file


def test_the_flat_names():
    assert {name: setting.dotted for name, setting in SETTINGS.items()} == {
        "host": "server.host",
        "rest": "server.rest",
        "rest_port": "server.rest_port",
        "grpc": "server.grpc",
        "grpc_port": "server.grpc_port",
        "tls_certificate_file": "server.tls_certificate_file",
        "tls_key_file": "server.tls_key_file",
        "tls_client_ca_file": "server.tls_client_ca_file",
        "ready_file": "server.ready_file",
        "max_frame": "server.max_frame_bytes",
        "max_buffered": "server.max_buffered_bytes",
        "max_connections": "server.max_connections",
        "drain_timeout": "server.drain_timeout_seconds",
        "keep_alive": "server.keep_alive_seconds",
        "body_timeout": "server.body_timeout_seconds",
        "send_timeout": "server.send_timeout_seconds",
        "ui": "server.ui",
        "reload": "server.reload",
        "metrics": "server.metrics",
        "cors_origins": "server.cors_origins",
        "external_url": "server.external_url",
        "trusted_proxies": "server.trusted_proxies",
        "data_dir": "store.data_dir",
        "venv_path": "store.venv_path",
        "conda_path": "store.conda_path",
        "conda_exe": "store.conda_exe",
        "offline": "store.offline",
        "build_ca": "store.build_ca",
        "docker_host": "docker.host",
        "docker_base_image": "docker.base_image",
        "docker_build_network": "docker.build_network",
        "docker_user": "docker.user",
        "docker_memory": "docker.memory_bytes",
        "docker_cpus": "docker.cpus",
        "docker_processes": "docker.processes",
        "docker_scratch": "docker.scratch_bytes",
        "jwt_secret": "auth.secret",
        "jwt_secret_file": "auth.secret_file",
        "jwt_own_secret": "auth.own_secret",
        "jwt_public_key_file": "auth.public_key_file",
        "jwt_jwks_url": "auth.jwks_url",
        "jwt_issuer": "auth.issuer",
        "jwt_audience": "auth.audience",
        "jwt_leeway": "auth.leeway_seconds",
        "roles_claim": "auth.roles_claim",
        "anonymous": "auth.anonymous",
        "max_workers": "executor.max_workers",
        "kept_memory": "executor.kept_memory_bytes",
        "max_waiting": "executor.max_waiting",
        "max_queued": "executor.max_queued",
        "approval_timeout": "executor.approval_timeout_seconds",
        "max_scheduled": "executor.max_scheduled",
        "max_builds": "executor.max_builds",
        "api_builds": "executor.api_builds",
        "spares": "executor.spares",
        "idle": "executor.idle_seconds",
        "max_age": "executor.max_age_seconds",
        "grace": "executor.grace_seconds",
        "kept_output": "executor.kept_output_bytes",
        "history_database": "history.database",
        "history_durability": "history.durability",
        "history_retention": "history.retention_seconds",
        "history_max_rows": "history.max_rows",
        "history_max_bytes": "history.max_bytes",
        "history_max_pending": "history.max_pending",
        "history_max_unwritten": "history.max_unwritten_bytes",
        "history_idempotency": "history.idempotency_seconds",
        "max_modules": "registry.max_modules",
        "max_versions": "registry.max_versions",
        "notices_allow": "notices.allow",
        "max_file": "files.max_file_bytes",
        "max_files_bytes": "files.max_files_bytes",
        "file_retention": "files.file_retention_seconds",
        "cluster": "cluster.servers",
        "cluster_name": "cluster.name",
        "node": "cluster.node",
        "labels": "cluster.labels",
        "redelivery": "cluster.redelivery_seconds",
        "cluster_credentials": "cluster.credentials",
        "cluster_ca": "cluster.ca",
        "cluster_cert": "cluster.cert",
        "cluster_key": "cluster.key",
        "cluster_monitor": "cluster.monitor",
        "log_format": "log.format",
        "log_level": "log.level",
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_every_default_is_allowed_and_every_setting_can_be_read(name):
    setting = SETTINGS[name]
    default = load.default_of(setting)

    given = loaded(options={} if default is None else {name: default})

    assert value_of(given, setting.dotted) == default
    assert load.limits_of(setting) is not None
    assert name in {row[0] for row in describe(given)}


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_says_what_it_is(name):
    assert DESCRIPTIONS[name]
    assert load.form_of(SETTINGS[name]) in ("", "DURATION", "SIZE", "NUMBER", "PATH", "TEXT")


def test_defaults_are_shown_as_people_write_them():
    shown = {
        name: load.shown_default(SETTINGS[name]) for name in ("grace", "max_frame", "rest", "data_dir", "jwt_secret")
    }

    assert shown == {"grace": "1s", "max_frame": "16MiB", "rest": "true", "data_dir": "data", "jwt_secret": None}


# Precedence.


def test_with_nothing_given_all_is_default(tmp_path):
    given = loaded()

    assert given.settings == Settings(
        config=tmp_path / "modules.yaml",
        store=attrs.evolve(
            Settings().store, data_dir=tmp_path / "data", venv_path=tmp_path / "venvs", conda_path=tmp_path / "condas"
        ),
    )
    assert set(given.sources.values()) == {"default"}
    assert given.sources.keys() == {setting.dotted for setting in SETTINGS.values()} | {"config"}
    assert given.modules.modules == ()


@pytest.mark.parametrize(
    ("layers", "port", "source"),
    [
        ("", 8000, "default"),
        ("file", 1, "modules.yaml:3"),
        ("file environ", 2, "environment OPERATO_REST_PORT"),
        ("file environ options", 3, "command line"),
        ("file options", 3, "command line"),
        ("environ", 2, "environment OPERATO_REST_PORT"),
    ],
)
def test_precedence(layers, port, source):
    given = loaded(
        "rest: true\nrest_port: 1" if "file" in layers else "",
        {"rest_port": 3 if "options" in layers else None},
        {"OPERATO_REST_PORT": "2"} if "environ" in layers else {},
    )

    assert (given.settings.server.rest_port, given.sources["server.rest_port"]) == (port, source)


def test_the_environment_is_that_of_the_process_when_none_is_given(monkeypatch):
    Path("modules.yaml").write_text("modules: []")
    for name in [name for name in os.environ if name.startswith("OPERATO_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("OPERATO_HOST", "::1")
    monkeypatch.setenv("OPERATO_SECRET_A", "b")

    assert load_settings({}).settings.server.host == "::1"
    assert secret_values(secrets.read(["A"])) == {"A": "b"}
    assert base_environment()["PATH"] == os.environ["PATH"]


# Values.


@pytest.mark.parametrize("word", ["off", "'off'", "OFF"])
def test_off_is_a_word_where_it_may_be_one(tmp_path, word):
    (tmp_path / "modules.yaml").write_text(f"modules: []\nrunner: {{metrics: {word}}}")

    assert load_settings({"config": str(tmp_path / "modules.yaml")}, {}).settings.server.metrics == "off"


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("REST", "no", False),
        ("REST", "TRUE", True),
        ("OFFLINE", "1", True),
        ("OFFLINE", "off", False),
        ("GRPC_PORT", " 0 ", 0),
        ("MAX_FRAME", "1MiB", MIB),
        ("IDLE", "2m", 120.0),
        ("IDLE", "2.5", 2.5),
        ("HISTORY_RETENTION", "7d", 7 * 86400.0),
        ("JWT_LEEWAY", "0", 0.0),
        ("HISTORY_DATABASE", "sqlite:///x.db", "sqlite:///x.db"),
        ("LOG_FORMAT", "json", "json"),
        ("JWT_SECRET", "123", "123"),
    ],
)
def test_text_of_variables(variable, text, expected):
    given = loaded(environ={f"OPERATO_{variable}": text})

    found = value_of(given, SETTINGS[variable.lower()].dotted)
    assert (found, type(found)) == (expected, type(expected))


def test_options_may_have_types():
    server = loaded(
        options={"rest": False, "drain_timeout": 2, "ready_file": Path("ready"), "reload": "off"}
    ).settings.server

    assert (server.rest, server.drain_timeout_seconds, server.reload) == (False, 2.0, False)
    assert server.ready_file == Path.cwd() / "ready"


def test_an_optional_setting_may_be_emptied_in_the_file():
    assert loaded("jwt_issuer: null").settings.auth.issuer is None


def test_relative_paths_are_relative_to_who_wrote_them(tmp_path):
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc" / "own.yaml").write_text("runner: {data_dir: var, venv_path: /abs, ready_file: ../ready}")

    given = load_settings({"jwt_public_key_file": "key.pem"}, {"OPERATO_CONFIG": "etc/own.yaml"})

    assert given.settings.config == tmp_path / "etc" / "own.yaml"
    assert given.settings.store.data_dir == tmp_path / "etc" / "var"
    assert given.settings.store.venv_path == Path("/abs")
    assert given.settings.server.ready_file == tmp_path / "etc" / ".." / "ready"
    assert given.settings.auth.public_key_file == tmp_path / "key.pem"
    assert given.sources["config"] == "environment OPERATO_CONFIG"
    assert given.sources["store.data_dir"] == "etc/own.yaml:1"


def test_the_command_line_names_the_file_before_the_environment(tmp_path):
    (tmp_path / "a.yaml").write_text("modules: []")

    given = load_settings({"config": Path("a.yaml")}, {"OPERATO_CONFIG": "gone.yaml"})

    assert (given.settings.config, given.sources["config"]) == (tmp_path / "a.yaml", "command line")


# Mistakes.


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"tls_certificate_file": "c.pem"}, "tls_certificate_file: needs tls_key_file"),
        ({"tls_key_file": "k.pem"}, "tls_key_file: needs tls_certificate_file"),
        ({"tls_client_ca_file": "a.pem"}, "tls_client_ca_file: needs tls_certificate_file"),
    ],
)
def test_settings_that_need_another_one(tmp_path, given, expected):
    (tmp_path / "modules.yaml").write_text("modules: []")

    with pytest.raises(ConfigError) as caught:
        load_settings(given, {"OPERATO_CONFIG": str(tmp_path / "modules.yaml")})

    assert [str(mistake) for mistake in caught.value.mistakes] == [expected]


def test_all_mistakes_are_told_at_once():
    Path("modules.yaml").write_text("runner:\n  rest_prt: 1\nmodules:\n  m: {env: inlin, code: handler = print}\n")

    with pytest.raises(ConfigError) as caught:
        load_settings({"grpc_port": 70000, "hue": "red"}, {"OPERATO_IDLE": "soon", "OPERATO_LOG_LEVL": "x"})

    assert [str(mistake).partition("; write")[0] for mistake in caught.value.mistakes] == [
        "modules.yaml:2: runner.rest_prt: unknown setting; did you mean 'rest_port'?",
        "modules.yaml:4: m.env: 'inlin' is not one of inline, venv, conda, docker; did you mean 'inline'?",
        "OPERATO_LOG_LEVL: unknown setting; did you mean 'OPERATO_LOG_LEVEL'?",
        "--hue: unknown setting",
        "OPERATO_IDLE: 'soon' is not a duration",
        "--grpc-port: 70000 is out of range; it must be from 0 to 65535",
    ]


def test_what_is_overridden_must_be_right_as_well():
    check(
        "modules.yaml:2: runner.rest_port: 'a' is not a whole number",
        "OPERATO_REST_PORT: 'b' is not a whole number",
        runner="rest_port: a",
        environ={"OPERATO_REST_PORT": "b"},
        options={"rest_port": 8000},
    )


MISTAKES_IN_SETTINGS = [
    ("rest: 1", "rest: 1 is neither true nor false"),
    ("rest: 'yes'", "rest: 'yes' is neither true nor false"),
    ("rest_port: '8000'", "rest_port: '8000' is not a whole number"),
    ("rest_port: -1", "rest_port: -1 is out of range; it must be from 0 to 65535"),
    ("rest_port: true", "rest_port: true is not a whole number"),
    ("rest_port:", "rest_port: nothing is not a whole number"),
    ("max_frame: 1k", "max_frame: 1000B is out of range; it must be from 1KiB to 1GiB"),
    ("max_buffered: 1k", "max_buffered: 1000B is out of range; it must be 1MiB or more"),
    ("max_connections: 0", "max_connections: 0 is out of range; it must be more than 0"),
    ("drain_timeout: -1", "drain_timeout: -1s is out of range; it must be 0s or more"),
    ("idle: 0", "idle: 0s is out of range; it must be more than 0s"),
    ("idle: .inf", "idle: inf is not a duration; write a number of seconds, or text such as ..."),
    ("cors_origins: [example.org]", "cors_origins: 'example.org' is not an origin: write a scheme and a host..."),
    ("cors_origins: ['https://a.org/path']", "cors_origins: 'https://a.org/path' is not an origin..."),
    ("cors_origins: 5", "cors_origins: 5 is not a list"),
    ("trusted_proxies: [10.0.0.0/33]", "trusted_proxies: '10.0.0.0/33' is not a network or an address, such as..."),
    ("notices_allow: [10.0.0.0/33]", "notices_allow: '10.0.0.0/33' is not a network, an address or the name..."),
    ("notices_allow: [300.1.1.1]", "notices_allow: '300.1.1.1' is not a network, an address or the name..."),
    ("external_url: example.org", "external_url: 'example.org' is not an address of a web server..."),
    ("external_url: 'https://me@example.org'", "external_url: 'https://me@example.org' is not an address..."),
    ("external_url: 'https://example.org/?x'", "external_url: 'https://example.org/?x' is not an address..."),
    ("jwt_leeway: 10m", "jwt_leeway: 10m is out of range; it must be from 0s to 5m"),
    ("host: 3", "host: 3 is not text; write it in quotes"),
    ("host: ' '", "host: is empty"),
    ("data_dir: ''", "data_dir: is empty"),
    ("data_dir: 3", "data_dir: 3 is not text; write it in quotes"),
    ("log_level: no", "log_level: false is not one of debug, info, warning, error; YAML reads no, off and..."),
    ("log_format: jsn", "log_format: 'jsn' is not one of console, json; did you mean 'json'?"),
    ("history_durability: none", "history_durability: 'none' is not one of process, disk"),
    ("config: x.yaml", "config: cannot be set in the file itself"),
    ("server: {host: x}", "server: unknown setting..."),
]


@pytest.mark.parametrize(("runner", "expected"), MISTAKES_IN_SETTINGS)
def test_a_setting_of_the_file_is_wrong(runner, expected):
    check(f"modules.yaml:2: runner.{expected}", runner=runner)


@pytest.mark.parametrize(
    ("variable", "text", "expected"),
    [
        ("OPERATO_REST_PORT", "eight", "'eight' is not a whole number"),
        ("OPERATO_REST_PORT", "", "'' is not a whole number"),
        ("OPERATO_REST", "maybe", "'maybe' is neither true nor false"),
        ("OPERATO_DATA_DIR", "", "is empty"),
        ("OPERATO_CONFIG", "", "is empty"),
        ("OPERATO_CONFG", "x", "unknown setting; did you mean 'OPERATO_CONFIG'?"),
        ("OPERATO_", "x", "unknown setting"),
    ],
)
def test_a_variable_is_wrong(variable, text, expected):
    check(f"{variable}: {expected}", environ={variable: text})


def test_secrets_and_foreign_variables_are_no_settings():
    loaded(environ={"OPERATO_SECRET_TOKEN": "x", "OPERATOR": "y", "PATH": "z"})


@pytest.mark.parametrize("runner", ["jwt_secret: 31415926", "jwt_secret: [hunter2]", 'jwt_secret: "hunter2\\0"'])
def test_a_mistake_does_not_tell_a_secret(runner):
    check("modules.yaml:2: runner.jwt_secret: must be text that is not empty", runner=runner)


def test_no_modules_file_has_a_remedy(tmp_path):
    with pytest.raises(ConfigError) as caught:
        load_settings({}, {"OPERATO_REST": "x"})

    assert caught.value.mistakes[0] == Mistake(
        f"there is no modules.yaml in {tmp_path}; name the file with --config or OPERATO_CONFIG",
        "modules.yaml",
        None,
        "config",
        "an existing modules file",
    )
    assert len(caught.value.mistakes) == 2


def test_a_modules_file_that_was_named_must_be_there():
    with pytest.raises(ConfigError, match=r"^gone.yaml: does not exist$"):
        load_settings({"config": "gone.yaml"}, {})


# What is shown.


def test_describe_shows_values_as_people_write_them_and_no_secrets(tmp_path):
    rows = {
        name: (value, source)
        for name, value, source in describe(
            loaded(
                "jwt_secret: hunter2hunter2\nmax_frame: 1MiB\nreload: false",
                {"idle": "90s"},
                {
                    "OPERATO_HISTORY_DATABASE": "postgresql://me:hunter2@db/x",
                    "OPERATO_JWT_JWKS_URL": "https://id:p@ss@host/keys",
                },
            )
        )
    }

    assert rows["config"] == (str(tmp_path / "modules.yaml"), "default")
    assert rows["jwt_secret"] == ("***", "modules.yaml:2")
    assert rows["max_frame"] == ("1MiB", "modules.yaml:3")
    assert rows["reload"] == ("false", "modules.yaml:4")
    assert rows["idle"] == ("90s", "command line")
    assert rows["history_database"] == ("postgresql://me:***@db/x", "environment OPERATO_HISTORY_DATABASE")
    assert rows["jwt_jwks_url"][0] == "https://id:***@host/keys"
    assert rows["ready_file"] == ("-", "default")
    assert rows["rest_port"] == ("8000", "default")
    assert rows["data_dir"] == (str(tmp_path / "data"), "default")
    assert "hunter2" not in str(rows)
    assert list(rows) == ["config", *SETTINGS]


# User code.


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}),
        ({"PATH": "", "LANG": ""}, {"PATH": "/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}),
        (
            {"PATH": "/bin", "LANG": "ko_KR.UTF-8", "HOME": "/root", "OPERATO_X": "y"},
            {"PATH": "/bin", "LANG": "ko_KR.UTF-8"},
        ),
    ],
)
def test_user_code_gets_a_path_and_a_language(environ, expected):
    assert base_environment(environ) == expected


def reads_the_environment(file: Path) -> bool:
    """Say whether a module names `environ` or `getenv` of `os`."""
    names = ("environ", "environb", "getenv", "getenvb")
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "os":
            if node.attr in names:
                return True
        elif isinstance(node, ast.ImportFrom) and node.module == "os" and any(n.name in names for n in node.names):
            return True
    return False


def test_only_one_module_reads_the_environment():
    folders = ("runner", "actors", "environments", "config", "protocol")
    files = [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]

    readers = [str(file.relative_to(ROOT)) for file in files if reads_the_environment(file)]

    programs = ("protocol/guest.py", "protocol/parts.py", "protocol/relay.py", "protocol/values.py")
    assert [name for name in readers if name not in programs] == ["config/load.py"]
