"""Module definitions: the fields of one module, the modules file, uploaded modules, and the files of a starter.

Everything that an author or operator writes about a module is read here, with all mistakes at once.
"""

from config.modules.endpoints import (
    PREFIX,
    TOLERANCE_SECONDS,
    Algorithm,
    Auth,
    Encoding,
    EndpointSpec,
    Method,
    Scheme,
    Signature,
    clashes,
    conflict_text,
)
from config.modules.file import ModulesFile, read_modules, read_runner, read_script
from config.modules.on_end import OnEnd, loop_from, loop_text, origin_of, telling
from config.modules.policies import MOST_CALLS, WORKERS, GroupPolicy, RetryPolicy, ToolPolicy, limit_of
from config.modules.spec import (
    ModuleSpec,
    as_written,
    crowding,
    fields_by_kind,
    module_shape,
    name_of_module,
    read_spec,
    spec_from_mapping,
    spec_to_mapping,
)
from config.modules.template import starter
from config.modules.upload import DESCRIPTIONS, Description, module_from_archive, name_in_block, read_module

__all__ = [
    "DESCRIPTIONS",
    "MOST_CALLS",
    "PREFIX",
    "TOLERANCE_SECONDS",
    "WORKERS",
    "Algorithm",
    "Auth",
    "Description",
    "Encoding",
    "EndpointSpec",
    "GroupPolicy",
    "Method",
    "ModuleSpec",
    "ModulesFile",
    "OnEnd",
    "RetryPolicy",
    "Scheme",
    "Signature",
    "ToolPolicy",
    "as_written",
    "clashes",
    "conflict_text",
    "crowding",
    "fields_by_kind",
    "limit_of",
    "loop_from",
    "loop_text",
    "module_from_archive",
    "module_shape",
    "name_in_block",
    "name_of_module",
    "origin_of",
    "read_module",
    "read_modules",
    "read_runner",
    "read_script",
    "read_spec",
    "spec_from_mapping",
    "spec_to_mapping",
    "starter",
    "telling",
]
