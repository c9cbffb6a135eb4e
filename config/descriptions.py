"""What each setting is, in the words of `--help`."""

from __future__ import annotations

from collections.abc import Mapping

DESCRIPTIONS: Mapping[str, str] = {
    "host": "address to listen on; beyond loopback a key must be configured",
    "rest": "serve REST",
    "rest_port": "port of REST; 0 takes a free one",
    "grpc": "serve gRPC",
    "grpc_port": "port of gRPC; 0 takes a free one",
    "ready_file": "file to write once the doors are open, with process id and addresses as one line of JSON",
    "max_frame": "largest body, input and result",
    "max_connections": "connections at a time",
    "drain_timeout": "how long work that runs may go on after the first signal",
    "keep_alive": "how long an idle connection is kept",
    "body_timeout": "how long a body may take to arrive",
    "send_timeout": "how long a client may take nothing of its answer",
    "reload": "publish again when the modules file or what it names changes",
    "data_dir": "folder of history, code, locks and the runner's own secret",
    "venv_path": "folder of virtual environments; may be shared by runners",
    "offline": "build environments from the installer's cache only",
    "jwt_secret": "HS256 secret of 32 bytes or more; better given by variable than here",
    "jwt_public_key_file": "PEM file of a public key that verifies tokens",
    "jwt_jwks_url": "URL of the keys that verify tokens",
    "jwt_issuer": "claim `iss` that tokens must have",
    "jwt_audience": "claim `aud` that tokens must have",
    "jwt_leeway": "how far clocks may differ",
    "max_workers": "workers of each kind of environment at most",
    "max_waiting": "callers that may wait for a worker of one kind",
    "max_builds": "environments that are built at a time",
    "spares": "interpreters kept started for each environment in use",
    "idle": "how long a worker without calls is kept",
    "max_age": "how long a worker is used",
    "grace": "time for `finally` between the soft stop of a handler and its kill",
    "kept_output": "how much of its output is kept with an execution",
    "history_database": "SQLAlchemy URL; else history.db in the data directory",
    "history_durability": "`process`: records survive the runner's death; `disk`: also a loss of power",
    "history_retention": "how long ended executions are kept",
    "history_max_pending": "records that may wait to be written",
    "log_format": "`console` for people, `json` for machines",
    "log_level": "`debug`, `info`, `warning` or `error`",
}
"""By flat name. A test holds that none is missing."""
