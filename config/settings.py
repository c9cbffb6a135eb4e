"""The runner's settings: one frozen class for each consumer, with units in the names, validated when created."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import field, frozen, validators

from config import units
from config.cluster import read_cluster_name, read_labels, read_monitors, read_node, read_servers

MIB = 1024 * 1024


def default_workers() -> int:
    """Return the default number of workers of one kind of environment: 4 for each CPU, at least 8."""
    return max(8, 4 * (os.cpu_count() or 1))


@frozen
class ServerSettings:
    """The servers for REST and gRPC, and shutdown."""

    host: str = "127.0.0.1"
    rest: bool = True
    rest_port: int = field(default=8000, validator=[validators.ge(0), validators.le(65535)])
    grpc: bool = True
    grpc_port: int = field(default=50051, validator=[validators.ge(0), validators.le(65535)])
    tls_certificate_file: Path | None = None
    """PEM chain, the server's certificate first; with `tls_key_file`, REST and gRPC use TLS."""
    tls_key_file: Path | None = None
    """PEM, not encrypted."""
    tls_client_ca_file: Path | None = None
    """PEM; clients must present a certificate signed by one of these CAs."""
    ready_file: Path | None = None
    max_frame_bytes: int = field(default=16 * MIB, validator=[validators.ge(1024), validators.le(1024 * MIB)])
    max_buffered_bytes: int = field(default=256 * MIB, validator=validators.ge(MIB))
    """Memory for request bodies and messages that are not complete, of all callers at both doors together."""
    max_connections: int = field(default=1000, validator=validators.gt(0))
    drain_timeout_seconds: float = field(default=30.0, validator=validators.ge(0))
    keep_alive_seconds: float = field(default=75.0, validator=validators.gt(0))
    body_timeout_seconds: float = field(default=60.0, validator=validators.gt(0))
    send_timeout_seconds: float = field(default=30.0, validator=validators.gt(0))
    ui: bool = True
    """Serve the dashboard at `/ui/`."""
    reload: bool = True
    """Watch the modules file and the code that it names, and publish changes."""
    metrics: str = field(default="token", validator=validators.in_(("open", "token", "off")))
    """Access to `GET /metrics`, which names modules: `open`, `token` (with scope `metrics:read`), or `off`."""
    cors_origins: tuple[str, ...] = field(default=(), metadata={"read": units.origins})
    """Web sites whose pages may use REST in a browser; `*` allows all. REST only, as the next two."""
    external_url: str | None = field(default=None, metadata={"read": units.web_address})
    """The address of REST for clients, if a proxy changes it; a path in it is a prefix that the proxy removes."""
    trusted_proxies: tuple[str, ...] = field(default=(), metadata={"read": units.networks})
    """Networks of proxies whose `Forwarded` and `X-Forwarded-*` headers are believed."""


@frozen
class StoreSettings:
    """Directories."""

    data_dir: Path = Path("data")
    venv_path: Path = Path("venvs")
    conda_path: Path = Path("condas")
    conda_exe: Path | None = None
    """An installed micromamba, mamba or conda to use instead of the library."""
    offline: bool = False
    """Never contact a package index: build from the installer's cache only."""
    build_ca: Path | None = None
    """PEM; the CAs that installers trust, also in containers that build, instead of those of the machine."""


@frozen
class DockerSettings:
    """The `docker` kind: the engine, and the default limits of a container."""

    host: str | None = None
    """`unix://PATH` or `tcp://HOST:PORT`; None means DOCKER_HOST, else the default socket."""
    base_image: str = "python:{python}-slim"
    """The image of modules without `image`; `{python}` stands for the module's `python`, else 3.12."""
    build_network: str = "bridge"
    """The engine's network for installing requirements; containers of modules have no network by default."""
    user: str = "65534:65534"
    memory_bytes: int = field(default=512 * MIB, validator=validators.ge(16 * MIB))
    cpus: float = field(default=1.0, validator=validators.gt(0))
    processes: int = field(default=64, validator=validators.ge(1))
    scratch_bytes: int = field(default=64 * MIB, validator=validators.ge(MIB))
    """Size of /tmp, and of the directory with the code and HOME; both are in memory and count as memory."""


@frozen
class AuthSettings:
    """How tokens are verified. Without secret, key and JWKS, a random secret is created in the data directory."""

    secret: str | None = field(default=None, repr=False)
    secret_file: Path | None = None
    """A file with the secret, for containers and service managers that provide secrets as files."""
    own_secret: bool = False
    """Listen beyond loopback with the random secret too: for containers, whose loopback is unreachable from outside."""
    public_key_file: Path | None = None
    jwks_url: str | None = None
    issuer: str | None = None
    audience: str | None = None
    leeway_seconds: float = field(default=10.0, validator=[validators.ge(0), validators.le(300)])
    roles_claim: str | None = field(default=None, metadata={"name": "roles_claim"})
    """A claim whose text or list gives scopes too; with dots, a path into objects."""
    anonymous: tuple[str, ...] = field(default=(), metadata={"name": "anonymous", "read": units.words})
    """The scopes of callers without a token or key."""


@frozen
class ExecutorSettings:
    """Limits of one executor; every kind of environment has an executor of its own."""

    max_workers: int = field(factory=default_workers, validator=validators.gt(0))
    """Workers that start or run a call at a time."""
    kept_memory_bytes: int | None = field(default=None, validator=validators.optional(validators.ge(0)))
    """Memory of idle workers, beyond which no more than `max_workers` workers are kept; None means an eighth of all."""
    max_waiting: int = field(default=1000, validator=validators.ge(0))
    """Callers that may wait for a worker of one kind; more are refused with `overloaded`."""
    max_queued: int = field(default=10_000, validator=validators.ge(0))
    """Asynchronous executions that may wait for their turn; more are refused with `overloaded`."""
    max_scheduled: int = field(default=1_000_000, validator=validators.ge(0))
    """Asynchronous executions that may wait for their time (`run_at`); more are refused with `overloaded`."""
    approval_timeout_seconds: float = field(default=600.0, validator=validators.gt(0))
    """How long an execution waits for a person to approve it."""
    max_builds: int = field(default=2, validator=validators.gt(0))
    api_builds: str = field(default="any", validator=validators.in_(("any", "wheels")))
    """What modules that were registered over the API may install: packages of any form, or wheels only. To install any
    other form is to run its code as the user of the runner, before the module is called.
    """
    spares: int = field(default=1, validator=validators.ge(0))
    """Interpreters kept running for each environment in use, so that a first call need not start one."""
    idle_seconds: float = field(default=300.0, validator=validators.gt(0))
    """An idle worker is retired after this time (never below the module's `workers.min`)."""
    max_age_seconds: float = field(default=3600.0, validator=validators.gt(0))
    grace_seconds: float = field(default=1.0, validator=validators.ge(0))
    """Time between the soft stop of a handler and the kill of its process tree."""
    kept_output_bytes: int = field(default=MIB, validator=validators.gt(0))
    """Output kept with an execution; more is counted, not kept."""


@frozen
class HistorySettings:
    """The record of executions."""

    database: str | None = None
    """SQLAlchemy URL; the default is `history.db` in the data directory."""
    durability: str = field(default="process", validator=validators.in_(("process", "disk")))
    """`process`: answered executions survive a crash of the runner; `disk`: also a loss of power."""
    retention_seconds: float = field(default=30 * 86400.0, validator=validators.gt(0))
    """Executions that ended longer ago are deleted, and the oldest ones beyond `max_rows` or `max_bytes`."""
    max_rows: int = field(default=1_000_000, validator=validators.ge(1000))
    max_bytes: int = field(default=4096 * MIB, validator=validators.ge(MIB))
    max_pending: int = field(default=10_000, validator=validators.gt(0))
    max_unwritten_bytes: int = field(default=64 * MIB, validator=validators.ge(MIB))
    """Memory for records that wait for the database: inputs, results and events. Beyond it no handler is called."""
    idempotency_seconds: float = field(default=86400.0, validator=validators.gt(0))
    """How long an idempotency key of a caller refers to the same execution."""


@frozen
class FilesSettings:
    """The store of files."""

    max_file_bytes: int = field(default=1024 * MIB, validator=validators.ge(MIB))
    max_files_bytes: int = field(
        default=20 * 1024 * MIB, validator=validators.ge(MIB), metadata={"name": "max_files_bytes"}
    )
    """All files together; a file that would exceed it, or leave less than 256 MiB of the disk free, is refused."""
    file_retention_seconds: float = field(default=86400.0, validator=validators.gt(0))
    """How long a file is kept that no execution of the history uses."""


@frozen
class RegistrySettings:
    """Modules that are registered over the API."""

    max_modules: int = field(default=1000, validator=validators.gt(0))
    max_versions: int = field(default=50, validator=validators.gt(0))
    """Versions kept of one module; beyond that, the oldest inactive version is deleted."""


@frozen
class NoticeSettings:
    """Notices about ended executions."""

    allow: tuple[str, ...] = field(default=(), metadata={"read": units.destinations})
    """Networks, and names of hosts, to which notices may go though they are not public."""


@frozen
class ClusterSettings:
    """The cluster of this runner, by NATS JetStream. Without `servers` it is alone, and only its labels count."""

    servers: tuple[str, ...] = field(default=(), metadata={"name": "cluster", "read": read_servers})
    """Each as `nats://HOST:PORT` or `tls://HOST:PORT`."""
    name: str = field(default="operato", metadata={"read": read_cluster_name})
    """The first word of all subjects and, in upper case, of all streams: several clusters may share the servers."""
    node: str | None = field(default=None, metadata={"name": "node", "read": read_node})
    """The name of this runner; None means one of the host's name that the data directory keeps."""
    labels: tuple[str, ...] = field(default=(), metadata={"name": "labels", "read": read_labels})
    """What this runner has, for the field `needs` of modules: `gpu`, `zone=eu`."""
    redelivery_seconds: float = field(
        default=15.0, validator=[validators.ge(1), validators.le(3600)], metadata={"name": "redelivery"}
    )
    """After this silence of the runner that has an execution, another one decides about it."""
    credentials: Path | None = None
    """The file with the JWT of a user and its seed; never shown."""
    ca: Path | None = None
    """PEM; the CAs of the servers, instead of those of the machine."""
    cert: Path | None = None
    """PEM; the certificate that this runner shows to the servers."""
    key: Path | None = None
    """PEM, not encrypted."""
    monitor: tuple[str, ...] = field(default=(), metadata={"read": read_monitors})
    """Addresses of the servers' monitoring ports, which `doctor` asks."""


@frozen
class LogSettings:
    """Logging."""

    format: str = field(default="console", validator=validators.in_(("console", "json")))
    level: str = field(default="info", validator=validators.in_(("debug", "info", "warning", "error")))


@frozen
class Settings:
    """All settings of one runner, and the modules file it serves."""

    config: Path = Path("modules.yaml")
    server: ServerSettings = field(factory=ServerSettings)
    store: StoreSettings = field(factory=StoreSettings)
    docker: DockerSettings = field(factory=DockerSettings)
    auth: AuthSettings = field(factory=AuthSettings)
    executor: ExecutorSettings = field(factory=ExecutorSettings)
    history: HistorySettings = field(factory=HistorySettings)
    registry: RegistrySettings = field(factory=RegistrySettings)
    notices: NoticeSettings = field(factory=NoticeSettings)
    files: FilesSettings = field(factory=FilesSettings)
    cluster: ClusterSettings = field(factory=ClusterSettings)
    log: LogSettings = field(factory=LogSettings)
