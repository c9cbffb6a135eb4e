"""The runner's settings: one frozen class for each consumer, units in the names, checked when made."""

from __future__ import annotations

import os
from pathlib import Path

from attrs import field, frozen, validators

MIB = 1024 * 1024


def default_workers() -> int:
    """Return how many workers one kind of environment may have when nothing is configured: 4 a CPU, 8 at least."""
    return max(8, 4 * (os.cpu_count() or 1))


@frozen
class ServerSettings:
    """The doors and the switch."""

    host: str = "127.0.0.1"
    rest: bool = True
    rest_port: int = field(default=8000, validator=[validators.ge(0), validators.le(65535)])
    grpc: bool = True
    grpc_port: int = field(default=50051, validator=[validators.ge(0), validators.le(65535)])
    tls_certificate_file: Path | None = None
    """PEM, the server's own certificate first; with `tls_key_file` both doors speak TLS."""
    tls_key_file: Path | None = None
    """PEM, without a password."""
    tls_client_ca_file: Path | None = None
    """PEM; clients must show a certificate that one of these signed."""
    ready_file: Path | None = None
    max_frame_bytes: int = field(default=16 * MIB, validator=[validators.ge(1024), validators.le(1024 * MIB)])
    max_connections: int = field(default=1000, validator=validators.gt(0))
    drain_timeout_seconds: float = field(default=30.0, validator=validators.ge(0))
    keep_alive_seconds: float = field(default=75.0, validator=validators.gt(0))
    body_timeout_seconds: float = field(default=60.0, validator=validators.gt(0))
    send_timeout_seconds: float = field(default=30.0, validator=validators.gt(0))
    reload: bool = True
    """Watch the modules file and the code that it names, and publish what changed."""
    metrics: str = field(default="token", validator=validators.in_(("open", "token", "off")))
    """Who may read `GET /metrics`, which names modules: anybody, tokens with `metrics:read`, or nobody."""


@frozen
class StoreSettings:
    """Where things are kept."""

    data_dir: Path = Path("data")
    venv_path: Path = Path("venvs")
    conda_path: Path = Path("condas")
    conda_exe: Path | None = None
    """An installed micromamba, mamba or conda to be used instead of the library."""
    offline: bool = False
    """Never reach for a package index: build from the installer's cache only."""


@frozen
class DockerSettings:
    """The `docker` kind: where the engine is, and the walls of a container that its module does not move."""

    host: str | None = None
    """`unix://PATH` or `tcp://HOST:PORT`; None takes DOCKER_HOST, else the usual socket."""
    base_image: str = "python:{python}-slim"
    """For modules without `image`; `{python}` is the module's `python`, else 3.12."""
    build_network: str = "bridge"
    """The engine's network in which requirements are installed; containers of modules have none of their own accord."""
    user: str = "65534:65534"
    memory_bytes: int = field(default=512 * MIB, validator=validators.ge(16 * MIB))
    cpus: float = field(default=1.0, validator=validators.gt(0))
    processes: int = field(default=64, validator=validators.ge(1))
    scratch_bytes: int = field(default=64 * MIB, validator=validators.ge(MIB))
    """Size of /tmp, and of the directory with the code and HOME; both are in memory and count as memory."""


@frozen
class AuthSettings:
    """How tokens are verified. With none of secret, key and JWKS a random secret is made in the data directory."""

    secret: str | None = field(default=None, repr=False)
    secret_file: Path | None = None
    """A file with the secret, for what hands secrets over as files (containers, service managers)."""
    own_secret: bool = False
    """Listen beyond loopback with the random secret too: for containers, whose loopback nobody can reach."""
    public_key_file: Path | None = None
    jwks_url: str | None = None
    issuer: str | None = None
    audience: str | None = None
    leeway_seconds: float = field(default=10.0, validator=[validators.ge(0), validators.le(300)])


@frozen
class ExecutorSettings:
    """One executor supervisor; every kind of environment has its own with these limits."""

    max_workers: int = field(factory=default_workers, validator=validators.gt(0))
    max_waiting: int = field(default=1000, validator=validators.ge(0))
    """Callers that may wait for a worker of one kind; one more is answered `overloaded`."""
    max_queued: int = field(default=10_000, validator=validators.ge(0))
    """Asynchronous executions that may be accepted before their turn comes; one more is answered `overloaded`."""
    max_builds: int = field(default=2, validator=validators.gt(0))
    spares: int = field(default=1, validator=validators.ge(0))
    """Interpreters kept started for each environment in use, so that a first call finds one running."""
    idle_seconds: float = field(default=300.0, validator=validators.gt(0))
    """A worker without a call for this long is retired (never below the module's `workers.min`)."""
    max_age_seconds: float = field(default=3600.0, validator=validators.gt(0))
    grace_seconds: float = field(default=1.0, validator=validators.ge(0))
    """Time between the soft stop of a handler and the kill of its process tree."""
    kept_output_bytes: int = field(default=MIB, validator=validators.gt(0))
    """Output kept with an execution; more than that is counted, not kept."""


@frozen
class HistorySettings:
    """The record of executions."""

    database: str | None = None
    """SQLAlchemy URL; default is `history.db` in the data directory."""
    durability: str = field(default="process", validator=validators.in_(("process", "disk")))
    """`process`: an answered execution survives the death of the runner; `disk`: also the loss of power."""
    retention_seconds: float = field(default=30 * 86400.0, validator=validators.gt(0))
    """Executions that ended longer ago are deleted; so are the oldest of more than `max_rows` or `max_bytes`."""
    max_rows: int = field(default=1_000_000, validator=validators.ge(1000))
    max_bytes: int = field(default=4096 * MIB, validator=validators.ge(MIB))
    max_pending: int = field(default=10_000, validator=validators.gt(0))
    idempotency_seconds: float = field(default=86400.0, validator=validators.gt(0))
    """For how long the same idempotency key of the same caller means the same execution."""


@frozen
class RegistrySettings:
    """Modules that are registered over the API."""

    max_modules: int = field(default=1000, validator=validators.gt(0))
    max_versions: int = field(default=50, validator=validators.gt(0))
    """Versions of one module that are kept; beyond that the oldest goes that is not active."""


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
    log: LogSettings = field(factory=LogSettings)
