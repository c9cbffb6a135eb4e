"""The files of a starter: a module that runs as it is, and says what can be changed."""

from __future__ import annotations

import json
from collections.abc import Mapping

from config.modules.spec import name_of_module
from protocol.model import Kind

_FIELDS = """\
# What this module is. Every field is optional but the name and `env`; unknown ones are mistakes.
# Durations are seconds or text (250ms, 30s, 5m), sizes bytes or text (256MB, 1GiB).
name: {quoted}
{env_line}# inline, venv, conda or docker
description: Greets whoever is named in the input.
tags: [starter]
handler: handler              # the function to call; `file:function` picks another file
# version: 1.0.0              # without it, the version is derived from the content
{environment}
# How it runs.
timeout: 30s                  # of one call; then the handler is stopped
# isolation: warm             # warm: the worker is kept; fork: fresh state for each call; fresh: a new interpreter
# concurrency: 4              # calls at a time, each in a worker of its own
# workers: {{min: 1, idle: 10m, max_calls: 1000}}    # kept ready; ended when idle; replaced after so many calls
# memory: 256MiB              # a worker and all its processes together
# cpus: 1
# processes: 16
# output: 16MiB               # what one call may print
# queue_timeout: 30s          # waiting for a worker
# start_timeout: 30s          # import and init()
# build_timeout: 10m          # building the environment

# When a call fails.
# retry: {{attempts: 3, "on": [timeout, worker_crashed], backoff: {{initial: 1s, factor: 2, max: 30s}}}}

# What it sees.
# variables: {{GREETING: Hello}}
# secrets: [API_KEY]          # a variable with the value of the runner's OPERATO_SECRET_API_KEY

# What it takes: a JSON Schema. A call with another input is refused before it runs.
input_schema:
  type: [object, "null"]      # an empty body is null
  properties:
    name: {{type: string, maxLength: 100}}
"""

_ENVIRONMENTS: Mapping[Kind, str] = {
    Kind.INLINE: """
# inline is the runner's own Python with the standard library only. For packages take `env: venv` and list them in
# requirements.txt.
""",
    Kind.VENV: """
# The packages it needs, locked once; or a list: ["requests>=2,<3"].
requirements: requirements.txt
# python: "3.12"              # another Python that is installed where the runner is
""",
    Kind.CONDA: """
# The packages it needs, solved once; or a list: [numpy, "pandas>=2"].
dependencies: environment.yml
# channels: [conda-forge]
# requirements: [tabulate]    # what conda does not have
# python: "3.12"
""",
    Kind.DOCKER: """
# The packages it needs, installed into the base image once; or a list: ["requests>=2,<3"].
requirements: requirements.txt
# python: "3.12"              # of the base image
# image: python:3.12-slim     # an image of your own with Python, instead of the base image
# network: true               # closed unless this opens it
""",
}

_HANDLER = '''\
"""Greets whoever is named in the input."""

from __future__ import annotations

GREETING = "Hello"


def init() -> None:
    """Prepare what all calls of a worker share, such as a model or a connection. Leave it out if there is nothing."""


def handler(input, context):
    """Return the greeting. `input` is the JSON of the call, and the return value becomes that of the answer."""
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

| file | what it is |
| --- | --- |
| `handler.py` | the code: `handler(input, context)` is called with the JSON of each call |
| `module.yaml` | the fields of the module, with a word on each |
{table}
To register it at a running server, from the folder that it is in:

```sh
operato-runner modules push {name}
operato-runner call {name} '{{"name": "Ada"}}'
```

To serve this folder from a modules file instead, put this into it:

```yaml
modules:
  - name: {quoted}
    env: {env}
    path: ./{name}
{line}```

`module.yaml` counts where the folder is sent as an archive. In a modules file its fields are written there.
"""


_FILES: Mapping[Kind, tuple[str, str, str]] = {
    Kind.VENV: ("requirements.txt", "requirements", _REQUIREMENTS),
    Kind.DOCKER: ("requirements.txt", "requirements", _REQUIREMENTS),
    Kind.CONDA: ("environment.yml", "dependencies", _CONDA),
}
"""The file that says what packages a kind of environment has, and the field that names it."""


def starter(name: str, kind: Kind) -> dict[str, bytes]:
    """Return the files of a module of this name and kind of environment, by their names in its folder.

    Raises `Wrong` for what is no name of a module.
    """
    quoted = json.dumps(name_of_module(name))  # a name may look like a number or a truth
    env_line = f"env: {kind.value}".ljust(30)
    fields = _FIELDS.format(quoted=quoted, env_line=env_line, environment=_ENVIRONMENTS[kind])
    files = {"handler.py": _HANDLER, "module.yaml": fields}
    table = line = ""
    if kind in _FILES:
        file, field, text = _FILES[kind]
        files[file] = text
        table, line = f"| `{file}` | the packages it needs |\n", f"    {field}: ./{name}/{file}\n"
    files["README.md"] = _README.format(name=name, quoted=quoted, env=kind.value, table=table, line=line)
    return {file: text.encode() for file, text in files.items()}
