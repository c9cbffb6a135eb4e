"""Unit: the Helm chart, rendered by the real engine: valid objects, and refused values."""

from __future__ import annotations

import base64
import json
import re
import tomllib

import kubernetes_validate
import pytest
import yaml
from helm_python import lint
from helm_python.errors import HelmError

from config.load import SETTINGS, load_settings
from tests.chart import CHART, KEY, VALUES, Rendered, merged, values_of

ROOT = CHART.parents[1]
SETS = {path.stem.removeprefix("values-"): values_of(path) for path in VALUES}
SECRET = "a secret that is long enough for HS256"
PEM = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
EVERYTHING = {
    "auth": {"jwtSecret": SECRET, "publicKey": PEM, "issuer": "me", "audience": "you"},
    "replicas": 3,
    "cluster": {
        "servers": "nats://a.nats, b.nats:4223,c.nats",
        "credentials": {"existingSecret": "nats-user"},
        "tls": {"existingSecret": "nats-tls", "clientCertificate": True},
    },
    "autoscaling": {"enabled": True},
    "modules": {"files": {"job.py": "def handler(input): return 1\n"}},
    "moduleSecrets": [{"name": "DB", "secretName": "database", "key": "password"}],
    "settings": {"max_workers": 12, "max_frame": 10000000, "jwt_leeway": "5s", "offline": False, "docker_cpus": 1.5},
    "env": [{"name": "DOCKER_HOST", "value": "tcp://engine:2376"}],
    "tls": {"existingSecret": "certificate"},
    "ingress": {"rest": {"enabled": True, "host": "a.b"}, "grpc": {"enabled": True, "host": "c.d", "tlsSecret": "t"}},
    "serviceMonitor": {"enabled": True, "labels": {"release": "p"}, "tokenSecret": {"name": "metrics"}},
    "networkPolicy": {
        "enabled": True,
        "ingressFrom": [{"podSelector": {}}],
        "egress": [{"ports": [{"port": 5432, "protocol": "TCP"}]}],
    },
    "serviceAccount": {"annotations": {"a": "b"}},
    "imagePullSecrets": [{"name": "registry"}],
    "image": {"digest": "sha256:" + "0" * 64},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "jobs", "operator": "Exists"}],
    "affinity": {"podAntiAffinity": {}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "ScheduleAnyway"}],
    "priorityClassName": "high",
    "podLabels": {"team": "jobs"},
    "podAnnotations": {"note": "x"},
    "extraVolumes": [{"name": "ca", "secret": {"secretName": "engine-ca"}}],
    "extraVolumeMounts": [{"name": "ca", "mountPath": "/certs"}],
    "service": {"annotations": {"a": "b"}},
    "persistence": {"data": {"annotations": {"a": "b"}, "storageClass": "fast"}},
}
CASES = {**SETS, "least": KEY, "everything": EVERYTHING}


def test_there_is_a_set_for_each_stage():
    assert set(SETS) == {"dev", "staging", "prod"}


def test_the_documented_command_names_objects_after_the_release():
    """`helm install operato-runner packaging/operato-runner -f values.yaml`."""
    rendered = Rendered(SETS["dev"], name="operato-runner")

    assert CHART == ROOT / "packaging" / "operato-runner"
    assert rendered.one("StatefulSet")["metadata"]["name"] == "operato-runner"


# -- objects --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_linter_accepts_it(case):
    report = lint(CHART, CASES[case], strict=True)

    assert report["errors"] == []
    assert [message["error"] for message in report["messages"]] == ["icon is recommended"]


@pytest.mark.parametrize("version", ["1.27", "1.32", "1.37"])
@pytest.mark.parametrize("case", CASES)
def test_the_objects_are_valid(case, version):
    rendered = Rendered(CASES[case])

    for found in rendered.objects:
        if found["kind"] != "ServiceMonitor":  # of a definition that not every cluster has
            assert kubernetes_validate.validate(found, version, strict=True)


def test_the_validator_finds_a_wrong_field():
    """Otherwise the test above could not fail."""
    found = Rendered(KEY).one("StatefulSet")
    found["spec"]["template"]["spec"]["containers"][0]["readynessProbe"] = {}

    with pytest.raises(kubernetes_validate.ValidationError, match="readynessProbe"):
        kubernetes_validate.validate(found, "1.37", strict=True)


def test_all_objects_are_rendered_when_enabled():
    kinds = {found["kind"] for found in Rendered(EVERYTHING).objects}

    assert kinds == {
        *("ConfigMap", "Secret", "ServiceAccount", "Service", "StatefulSet", "Ingress"),
        *("HorizontalPodAutoscaler", "PodDisruptionBudget", "ServiceMonitor", "NetworkPolicy"),
    }


def test_the_versions_are_those_of_the_project():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())

    assert (chart["version"], chart["appVersion"]) == (version, version)
    assert f"ARG VERSION={version}\n" in (ROOT / "Dockerfile").read_text()
    assert SETS["prod"]["image"]["tag"] == version
    assert Rendered(KEY).container["image"] == f"operato/runner:{version}"


@pytest.mark.parametrize("case", CASES)
def test_the_runner_accepts_its_variables(case, tmp_path):
    rendered = Rendered(CASES[case])
    file = tmp_path / "modules.yaml"
    for name, text in rendered.one("ConfigMap")["data"].items():
        (tmp_path / name).write_text(text)
    loaded = load_settings({"config": file}, {**rendered.environ, "OPERATO_CONFIG": str(file)})

    server, store = loaded.settings.server, loaded.settings.store
    assert server.host == "0.0.0.0"
    assert (server.rest_port, server.grpc_port) == (8000, 50051)
    mounts = {mount["mountPath"] for mount in rendered.container["volumeMounts"]}
    for path in (store.data_dir, store.venv_path, store.conda_path, server.ready_file):
        assert f"/{path.parts[1]}" in mounts, f"{path} would be in the read-only root"
    for name, value in CASES[case].get("settings", {}).items():
        setting = SETTINGS[name]
        found = getattr(getattr(loaded.settings, setting.section), setting.attribute.name)
        if isinstance(value, bool | int | float):
            assert found == value, name
        assert loaded.sources[setting.dotted] == f"environment {setting.variable}"
    grace = rendered.pod["spec"]["terminationGracePeriodSeconds"]
    assert grace >= server.drain_timeout_seconds + CASES[case].get("preStopSeconds", 5) + 15


def test_settings_of_the_schema_are_those_of_the_runner():
    """Except for those that the chart sets."""
    schema = json.loads((CHART / "values.schema.json").read_text())
    own = {name.removeprefix("OPERATO_").lower() for name in Rendered(EVERYTHING).environ if name in VARIABLES}
    own -= set(EVERYTHING["settings"])
    keys = {"jwt_secret", "jwt_jwks_url", "tls_client_ca_file", "node"}

    assert set(schema["properties"]["settings"]["properties"]) == set(SETTINGS) - own - keys


VARIABLES = {setting.variable for setting in SETTINGS.values()}


def test_the_schema_is_closed_and_names_every_value():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())

    def hold(part, value, where):
        assert part.get("additionalProperties") is False, where
        free = {"global"} if where == "" else {"initialDelaySeconds"} if where.startswith("probes.") else set()
        if where != "settings":
            assert set(part["properties"]) - free == set(value), where
        for name, below in part["properties"].items():
            if "properties" in below:
                hold(below, value[name], f"{where}.{name}".lstrip("."))

    hold(schema, values, "")


def test_every_value_has_a_comment():
    lines = (CHART / "values.yaml").read_text().splitlines()
    above = dict(zip(lines[1:], lines, strict=False))

    assert [line for line in lines if re.match("[a-zA-Z]", line) and not above[line].startswith("#")] == []


# -- changes ---------------------------------------------------------------------------------------------------------


def checksum(values):
    return Rendered(values).pod["metadata"].get("annotations", {}).get("checksum/modules")


def test_a_change_of_modules_restarts_the_runner():
    first = checksum(KEY)
    text = yaml.safe_load((CHART / "values.yaml").read_text())["modules"]["inline"]

    assert checksum(KEY) == first
    assert checksum(merged(KEY, {"modules": {"inline": text + "# other\n"}})) != first
    assert checksum(merged(KEY, {"modules": {"files": {"job.py": "1"}}})) != first
    assert checksum(merged(KEY, {"modules": {"files": {"job.py": "1"}}})) != checksum(
        merged(KEY, {"modules": {"files": {"job.py": "2"}}})
    )
    assert checksum(merged(KEY, {"settings": {"max_workers": 3}})) == first


def test_modules_can_be_reloaded_without_a_restart():
    values = merged(KEY, {"modules": {"rollOnChange": False}})

    assert checksum(values) is None
    mounts = [mount for mount in Rendered(values).container["volumeMounts"] if mount["name"] == "modules"]
    assert "subPath" not in mounts[0], "a file that is mounted by its path never changes"


def test_a_change_of_the_secret_restarts_the_runner():
    def rendered(secret):
        return Rendered({"auth": {"jwtSecret": secret}}).pod["metadata"]["annotations"]["checksum/keys"]

    assert rendered(SECRET) != rendered(SECRET + "2")
    assert SECRET not in json.dumps(Rendered({"auth": {"jwtSecret": SECRET}}).pod)


# -- secrets ---------------------------------------------------------------------------------------------------------


def test_secrets_are_only_in_the_secret():
    rendered = Rendered(EVERYTHING)
    secret = rendered.one("Secret")

    assert base64.b64decode(secret["data"]["jwt-secret"]).decode() == SECRET
    assert base64.b64decode(secret["data"]["jwt-public-key.pem"]).decode() == PEM
    others = json.dumps([found for found in rendered.objects if found is not secret])
    assert SECRET not in others
    assert secret["data"]["jwt-secret"] not in others
    assert SECRET not in rendered.notes
    (password,) = [each for each in rendered.container["env"] if each["name"] == "OPERATO_SECRET_DB"]
    assert password["valueFrom"]["secretKeyRef"] == {"name": "database", "key": "password"}


def test_an_existing_secret_is_mounted_as_a_file():
    values = {"auth": {"existingSecret": "keys", "secretKey": "hs", "publicKeyKey": "pem"}}
    rendered = Rendered(values)

    assert rendered.all("Secret") == []
    (volume,) = [each for each in rendered.pod["spec"]["volumes"] if each["name"] == "keys"]
    assert volume["secret"]["secretName"] == "keys"
    assert volume["secret"]["defaultMode"] == 0o440
    paths = {each["key"]: each["path"] for each in volume["secret"]["items"]}
    (mount,) = [each for each in rendered.container["volumeMounts"] if each["name"] == "keys"]
    assert rendered.environ["OPERATO_JWT_SECRET_FILE"] == f"{mount['mountPath']}/{paths['hs']}"
    assert rendered.environ["OPERATO_JWT_PUBLIC_KEY_FILE"] == f"{mount['mountPath']}/{paths['pem']}"


# -- clusters --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("servers", ["nats://a,b:4223,c", ["nats://a", "b:4223", "c"]], ids=["text", "list"])
def test_runners_of_a_cluster(servers, tmp_path):
    rendered = Rendered(merged(KEY, {"cluster": {"servers": servers}, "replicas": 3}))

    assert rendered.one("StatefulSet")["spec"]["replicas"] == 3
    (tmp_path / "modules.yaml").write_text("modules: []")
    given = {"OPERATO_CLUSTER": rendered.environ["OPERATO_CLUSTER"]}
    cluster = load_settings({"config": tmp_path / "modules.yaml"}, given).settings.cluster
    assert cluster.servers == ("nats://a:4222", "nats://b:4223", "nats://c:4222")
    assert "OPERATO_NODE" not in rendered.environ, "each data directory keeps its own"
    claims = rendered.one("StatefulSet")["spec"]["volumeClaimTemplates"]
    assert {claim["metadata"]["name"] for claim in claims} == {"data", "environments"}
    (spread,) = rendered.pod["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    assert spread["labelSelector"]["matchLabels"].items() <= rendered.pod["metadata"]["labels"].items()
    assert rendered.one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_one_name_of_a_server_is_one_copy():
    warning = "WARNING: cluster.servers has one name"

    assert warning in Rendered(merged(KEY, {"cluster": {"servers": "nats://nats"}})).notes
    assert warning not in Rendered(merged(KEY, CLUSTER)).notes


def test_files_for_the_servers_of_a_cluster_are_mounted_from_secrets():
    rendered = Rendered(EVERYTHING)
    volumes = {each["name"]: each["secret"] for each in rendered.pod["spec"]["volumes"] if "secret" in each}
    mounts = {each["name"]: each["mountPath"] for each in rendered.container["volumeMounts"]}
    files = {
        f"{mounts[name]}/{item['path']}"
        for name in ("cluster", "cluster-tls")
        for item in volumes[name]["items"]
        if volumes[name]["defaultMode"] == 0o440
    }

    names = [f"OPERATO_CLUSTER_{name}" for name in ("CREDENTIALS", "CA", "CERT", "KEY")]
    assert {rendered.environ[name] for name in names} == files
    assert (volumes["cluster"]["secretName"], volumes["cluster-tls"]["secretName"]) == ("nats-user", "nats-tls")
    alone = Rendered(merged(KEY, CLUSTER, {"cluster": {"tls": {"existingSecret": "nats-tls"}}}))
    assert [name for name in names if name in alone.environ] == ["OPERATO_CLUSTER_CA"]


# -- walls -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", CASES)
def test_the_pod_has_few_rights(case):
    pod, container = Rendered(CASES[case]).pod["spec"], Rendered(CASES[case]).container

    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False, "OPERATO_*_SERVICE_HOST would keep the runner from starting"
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["runAsUser"] == 10001
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert "OPERATO_JWT_SECRET" not in {each["name"] for each in container["env"]}


def test_the_network_policy_allows_the_named_peers_only():
    spec = Rendered(EVERYTHING).one("NetworkPolicy")["spec"]

    assert spec["ingress"] == [{"ports": [{"port": "rest"}, {"port": "grpc"}], "from": [{"podSelector": {}}]}]
    ports = [port["port"] for rule in spec["egress"] for port in rule["ports"]]
    assert ports == [53, 53, 80, 443, 4222, 4223, 5432]
    closed = Rendered(merged(KEY, {"networkPolicy": {"enabled": True, "allowPackageIndexes": False}}))
    assert [rule["ports"][0]["port"] for rule in closed.one("NetworkPolicy")["spec"]["egress"]] == [53]


# -- doors -----------------------------------------------------------------------------------------------------------


def probes(**values):
    container = Rendered(merged(KEY, values)).container
    found = [container[f"{name}Probe"] for name in ("startup", "liveness", "readiness")]
    numbers = {"periodSeconds", "timeoutSeconds", "failureThreshold"}
    return [{name: what for name, what in probe.items() if name not in numbers} for probe in found]


def http(path, scheme="HTTP"):
    return {"httpGet": {"path": path, "port": "rest", "scheme": scheme}}


PROGRAM = {"exec": {"command": ["/opt/operato/bin/python", "-m", "runner.health", "/tmp/operato-ready.json"]}}
GRPC = {"grpc": {"port": 50051}}
TLS = {"existingSecret": "certificate"}


def test_probes_fit_doors_and_tls():
    assert probes() == [GRPC, http("/healthz"), http("/readyz")]
    assert probes(grpc={"enabled": False}) == [http("/healthz"), http("/healthz"), http("/readyz")]
    assert probes(rest={"enabled": False}) == [GRPC] * 3
    secure = [http(path, "HTTPS") for path in ("/healthz", "/healthz", "/readyz")]
    assert probes(tls=TLS) == secure, "the kubelet cannot ask gRPC over TLS"
    assert probes(tls=TLS, rest={"enabled": False}) == [PROGRAM] * 3
    assert probes(tls={**TLS, "clientCa": True}) == [PROGRAM] * 3, "the kubelet has no client certificate"


def test_probe_and_image_use_the_same_program():
    dockerfile = (ROOT / "Dockerfile").read_text()
    command = json.loads(re.search(r"HEALTHCHECK .*\n\s+CMD (\[.*\])", dockerfile)[1])

    assert command == PROGRAM["exec"]["command"]
    assert f"OPERATO_READY_FILE={command[-1]}" in dockerfile
    assert Rendered(KEY).environ["OPERATO_READY_FILE"] == command[-1]
    for path in ("/opt/operato/bin/python", "USER 10001:10001"):
        assert path in dockerfile


def test_names_of_ports_match():
    rendered = Rendered(EVERYTHING)
    ports = {port["name"]: port["containerPort"] for port in rendered.container["ports"]}

    assert ports == {"rest": 8000, "grpc": 50051}
    doors, pods = rendered.all("Service")
    for service in (doors, pods):
        assert {port["targetPort"] for port in service["spec"]["ports"]} == set(ports)
        assert service["spec"]["selector"].items() <= rendered.pod["metadata"]["labels"].items()
    assert rendered.one("StatefulSet")["spec"]["serviceName"] == pods["metadata"]["name"]
    for ingress in rendered.all("Ingress"):
        ((rule,),) = [ingress["spec"]["rules"]]
        service = rule["http"]["paths"][0]["backend"]["service"]
        assert service["name"] == doors["metadata"]["name"]
        assert service["port"]["name"] in ports
    monitor = rendered.one("ServiceMonitor")["spec"]
    assert monitor["selector"]["matchLabels"].items() <= doors["metadata"]["labels"].items()
    assert not monitor["selector"]["matchLabels"].items() <= pods["metadata"]["labels"].items(), "asked twice"
    assert (monitor["endpoints"][0]["port"], monitor["endpoints"][0]["path"]) == ("rest", "/metrics")


def test_an_autoscaler_replaces_replicas():
    spec = Rendered(EVERYTHING).one("StatefulSet")["spec"]

    assert "replicas" not in spec
    assert Rendered(KEY).one("StatefulSet")["spec"]["replicas"] == 1


def test_a_single_runner_does_not_block_the_drain_of_its_node():
    assert Rendered(KEY).one("PodDisruptionBudget")["spec"]["maxUnavailable"] == 1


def test_names_fit_for_every_name_of_a_release():
    rendered = Rendered(merged(EVERYTHING, {"nameOverride": "n" * 63}), name="r" * 53)

    assert all(len(found["metadata"]["name"]) <= 63 for found in rendered.objects)
    assert Rendered(KEY, name="operato-runner").one("StatefulSet")["metadata"]["name"] == "operato-runner"


def test_the_notes_show_how_to_get_a_token():
    assert "exec jobs-operato-runner-0 -- operato-runner token" in Rendered(KEY).notes
    assert "WARNING: auth.ownSecret" in Rendered(SETS["dev"]).notes
    assert "WARNING: persistence.data" in Rendered(SETS["dev"]).notes
    assert "exec" not in Rendered(SETS["prod"]).notes, "it has no key to sign with"
    assert "exec jobs-operato-runner-0 -- operato-runner doctor" in Rendered(EVERYTHING).notes
    assert "doctor" not in Rendered(KEY).notes


# -- what is refused -------------------------------------------------------------------------------------------------

CLUSTER = {"cluster": {"servers": "nats://a,b,c"}}
REFUSED = {
    "no key": ({"auth": {"existingSecret": ""}}, "auth: no key for tokens. Set auth.existingSecret"),
    "two secrets": ({"auth": {"jwtSecret": SECRET}}, "auth.existingSecret: give the keys in this Secret or as"),
    "no key of the secret": ({"auth": {"secretKey": ""}}, "auth.secretKey: name a key of the Secret"),
    "public key and JWKS": ({"auth": {"publicKeyKey": "p", "jwksUrl": "https://a"}}, "give a public key or a JWKS"),
    "own secret beside keys": ({"auth": {"ownSecret": True}}, "auth.ownSecret: is for a runner without keys"),
    "own secrets": (
        {"auth": {"existingSecret": "", "ownSecret": True}, "replicas": 2, **CLUSTER},
        "auth.ownSecret: every runner would make a secret of its own",
    ),
    "short secret": ({"auth": {"existingSecret": "", "jwtSecret": "short"}}, "/auth/jwtSecret"),
    "two histories": (
        {"replicas": 2},
        "Set cluster.servers to the addresses of NATS servers (docs/cluster.md), or replicas",
    ),
    "scaled histories": ({"autoscaling": {"enabled": True}}, "replicas: more than one runner needs a cluster"),
    "credentials alone": (
        {"cluster": {"credentials": {"existingSecret": "a"}}},
        "existingSecret: needs cluster.servers",
    ),
    "TLS alone": ({"cluster": {"tls": {"existingSecret": "a"}}}, "cluster.tls.existingSecret: needs cluster.servers"),
    "certificate alone": (
        {"cluster": {"servers": "a", "tls": {"clientCertificate": True}}},
        "cluster.tls.clientCertificate: needs cluster.tls.existingSecret",
    ),
    "password in an address": ({"cluster": {"servers": "nats://me:pass@a"}}, "/cluster/servers"),
    "scales": (
        {**CLUSTER, "autoscaling": {"enabled": True, "minReplicas": 5, "maxReplicas": 2}},
        "autoscaling.minReplicas: must not be above autoscaling.maxReplicas",
    ),
    "no door": ({"rest": {"enabled": False}, "grpc": {"enabled": False}}, "there is no door"),
    "ingress without host": ({"ingress": {"rest": {"enabled": True}}}, "ingress.rest.host: is needed"),
    "ingress without door": (
        {"grpc": {"enabled": False}, "ingress": {"grpc": {"enabled": True, "host": "a"}}},
        "ingress.grpc.enabled: needs grpc.enabled",
    ),
    "metrics without door": (
        {"rest": {"enabled": False}, "serviceMonitor": {"enabled": True}},
        "serviceMonitor.enabled: metrics are served by REST",
    ),
    "client CA alone": ({"tls": {"clientCa": True}}, "tls.clientCa: needs tls.existingSecret"),
    "client CA and metrics": (
        {"tls": {**TLS, "clientCa": True}, "serviceMonitor": {"enabled": True}},
        "Prometheus has no client certificate",
    ),
    "no YAML": ({"modules": {"inline": "modules: ["}}, "modules.inline: is not YAML"),
    "secret in the open": (
        {"modules": {"inline": f"runner:\n  jwt_secret: {SECRET}\nmodules: []\n"}},
        "modules.inline: runner.jwt_secret would be in a ConfigMap",
    ),
    "typing error": ({"replica": 1}, "replica"),
    "typing error below": ({"ingress": {"rest": {"enable": True}}}, "/ingress/rest"),
    "unknown setting": ({"settings": {"max_worker": 1}}, "max_worker"),
    "setting of the chart": ({"settings": {"data_dir": "/x"}}, "data_dir"),
    "setting as variable": ({"env": [{"name": "OPERATO_HOST", "value": "::"}]}, "/env/0/name"),
    "shared volume": ({"persistence": {"data": {"accessMode": "ReadWriteMany"}}}, "/persistence/data/accessMode"),
    "budget of nothing": ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable"),
    "text for a number": ({"replicas": "two"}, "/replicas"),
    "modules file as a file": ({"modules": {"files": {"modules.yaml": ""}}}, "modules.files: modules.yaml itself"),
    "name of a file": ({"modules": {"files": {"a/b.py": ""}}}, "/modules/files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_invalid_values_are_refused_with_a_reason(case):
    values, word = REFUSED[case]

    with pytest.raises(HelmError) as caught:
        Rendered(merged(KEY, values))

    assert word in str(caught.value), str(caught.value)


def test_a_refusal_does_not_show_the_secret():
    with pytest.raises(HelmError) as caught:
        Rendered(merged(KEY, {"auth": {"jwtSecret": SECRET}}))

    assert SECRET not in str(caught.value)
