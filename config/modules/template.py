"""The files of a starter: a module that runs as it is, with a comment on every field."""

from __future__ import annotations

import json
from collections.abc import Mapping

from config.modules.spec import name_of_module
from protocol.model import Kind

_FIELDS = """\
# All fields but `name` and `env` are optional; unknown fields are mistakes.
# Durations are seconds or text (250ms, 30s, 5m), sizes bytes or text (256MB, 1GiB).
name: {quoted}
{env_line}# inline, venv, conda or docker
description: Greets the person named in the input.
tags: [starter]
handler: handler              # the function to call; `file:function` picks another file
# version: 1.0.0              # without it, the version is derived from the content
{environment}
# How it runs.
timeout: 30s                  # of one call; then the handler is stopped
# isolation: warm             # warm: the worker is kept; fork: fresh state for each call; fresh: a new interpreter
# calls: 1                    # calls at a time in one worker; more for `async def` handlers
# concurrency: 4              # simultaneous calls in all its workers
# workers: {{min: 1, idle: 10m, max_calls: 1000}}    # kept ready; idle limit; calls before it is replaced
# memory: 256MiB              # of a worker with all its processes
# cpus: 1
# processes: 16
# output: 16MiB               # most output of one call
# queue_timeout: 30s          # waiting for a worker
# start_timeout: 30s          # import and init()
# build_timeout: 10m          # building the environment
# rate: 10/s                  # most executions that begin
# group: {{key: $.name, concurrency: 1}}    # most with the same value of the input at a time
# needs: [gpu]                # labels that a runner must have to run it
# record: summary             # the history keeps sizes only, no inputs and results

# The modules that it calls, by names and globs: context.call("greeter", {{"name": "Ada"}}).
# calls_modules: [greeter]

# Where it is called besides /modules/execute: its requests come as operato.Request.
# endpoints: [{{path: "/hooks/{{event}}", methods: [POST], auth: token}}]

# How agents get it as a tool, over the Model Context Protocol; false: they do not get it.
# tool: {{title: Greeter, read_only: true, destructive: false, idempotent: true, confirm: false}}

# When it runs by itself.
# schedules: [{{cron: "30 3 * * mon-fri", timezone: Asia/Seoul, input: {{name: night}}, misfire: last}}]

# When a call fails.
# retry: {{attempts: 3, "on": [timeout, worker_crashed], backoff: {{initial: 1s, factor: 2, max: 30s}}}}

# Who hears of the end of a call.
# on_end: [{{url: "https://example.org/hooks/runner", when: [failed]}}]

# Its variables.
# variables: {{GREETING: Hello}}
# secrets: [API_KEY]          # the variable API_KEY gets the value of the runner's OPERATO_SECRET_API_KEY

# The input, as a JSON Schema. A call with another input is refused before it runs.
input_schema:
  type: [object, "null"]      # an empty body is null
  properties:
    name: {{type: string, maxLength: 100}}
"""

_ENVIRONMENTS: Mapping[Kind, str] = {
    Kind.INLINE: """
# inline is the runner's own Python with only the standard library. For packages, use `env: venv` and list them in
# requirements.txt.
""",
    Kind.VENV: """
# The packages it needs, locked once; or a list: ["requests>=2,<3"].
requirements: requirements.txt
# constraints: ["urllib3<3"]  # versions of packages that the requirements bring along
# python: "3.12"              # another Python on the runner's machine
""",
    Kind.CONDA: """
# The packages it needs, solved once; or a list: [numpy, "pandas>=2"].
dependencies: environment.yml
# channels: [conda-forge]
# requirements: [tabulate]    # packages that conda does not have
# python: "3.12"
""",
    Kind.DOCKER: """
# The packages it needs, installed into the base image once; or a list: ["requests>=2,<3"].
requirements: requirements.txt
# python: "3.12"              # of the base image
# image: python:3.12-slim     # an image of your own with Python, instead of the base image
# network: true               # closed by default
# shm: 64MiB                  # size of /dev/shm; without it as much as the memory limit
""",
}

_HANDLER = '''\
"""Greets the person named in the input."""

from __future__ import annotations

GREETING = "Hello"


def init() -> None:
    """Prepare what all calls of a worker share, such as a model or a connection. Optional."""


def handler(input, context):
    """Return the greeting. `input` is the JSON input of the call; the return value is its JSON result."""
    name = (input or {}).get("name", "world")
    print(f"greeting {name} (attempt {context.attempt})")
    context.progress(1, 1, "greeted")
    return {"message": f"{GREETING}, {name}!"}
'''

_REQUIREMENTS = """\
# One requirement a line, for example:
# requests>=2,<3
"""

_CONDA = """\
channels: [conda-forge]
dependencies:
  - python=3.12
  # - numpy
  # - pip: [tabulate]
"""

_README = """\
# {name}

A module for Operato Runner.

| file | content |
| --- | --- |
| `handler.py` | the code: `handler(input, context)` gets the JSON input of each call |
| `module.yaml` | the fields of the module, with comments |
{table}
To register it at a running server, run in the parent folder:

```sh
operato-runner modules push {name}
operato-runner call {name} '{{"name": "Ada"}}'
```

To serve this folder from a modules file instead, add:

```yaml
modules:
  - name: {quoted}
    env: {env}
    path: ./{name}
{line}```

`module.yaml` is read when the folder is sent as an archive. For a modules file, write its fields there.
"""


_FILES: Mapping[Kind, tuple[str, str, str]] = {
    Kind.VENV: ("requirements.txt", "requirements", _REQUIREMENTS),
    Kind.DOCKER: ("requirements.txt", "requirements", _REQUIREMENTS),
    Kind.CONDA: ("environment.yml", "dependencies", _CONDA),
}
"""The file with the packages of a kind of environment, the field that names it, and its text."""


def starter(name: str, kind: Kind) -> dict[str, bytes]:
    """Return the files of a module of this name and kind of environment, by their names in its folder.

    Raises `Wrong` for an invalid name.
    """
    quoted = json.dumps(name_of_module(name))  # YAML reads some names as numbers or booleans
    env_line = f"env: {kind.value}".ljust(30)
    fields = _FIELDS.format(quoted=quoted, env_line=env_line, environment=_ENVIRONMENTS[kind])
    files = {"handler.py": _HANDLER, "module.yaml": fields}
    table = line = ""
    if kind in _FILES:
        file, field, text = _FILES[kind]
        files[file] = text
        table, line = f"| `{file}` | the packages |\n", f"    {field}: ./{name}/{file}\n"
    files["README.md"] = _README.format(name=name, quoted=quoted, env=kind.value, table=table, line=line)
    return {file: text.encode() for file, text in files.items()}
