"""Variables that Python reads only when it starts. Workers start before they have a module, so these are refused."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from config.mistakes import Wrong

_HOLDS: Mapping[str, tuple[str, ...]] = {
    "PYTHONUTF8": ("1",),
    "PYTHONIOENCODING": ("utf-8", "utf8", "UTF-8", "UTF8"),
    "PYTHONHASHSEED": ("random",),
    "PYTHONNOUSERSITE": ("1",),
    "PYTHONSAFEPATH": ("1",),
}
"""The values with which these change nothing, because every worker runs so."""
_EARLY = {
    *("PYTHONHOME", "PYTHONPLATLIBDIR", "PYTHONSTARTUP", "PYTHONINSPECT", "PYTHONUSERBASE", "PYTHONEXECUTABLE"),
    *("PYTHONOPTIMIZE", "PYTHONDEBUG", "PYTHONVERBOSE", "PYTHONCASEOK", "PYTHONCOERCECLOCALE", "PYTHONDEVMODE"),
    *("PYTHONMALLOC", "PYTHONMALLOCSTATS", "PYTHONTRACEMALLOC", "PYTHONPROFILEIMPORTTIME", "PYTHONDUMPREFS"),
    *("PYTHONASYNCIODEBUG", "PYTHONBREAKPOINT", "PYTHONPYCACHEPREFIX", "PYTHONINTMAXSTRDIGITS"),
    *("PYTHONWARNDEFAULTENCODING", "PYTHONNODEBUGRANGES", "PYTHONPERFSUPPORT", "PYTHON_PERF_JIT_SUPPORT"),
    *("PYTHON_CPU_COUNT", "PYTHON_FROZEN_MODULES", "PYTHON_GIL", "PYTHON_JIT", "PYTHON_CONTEXT_AWARE_WARNINGS"),
    *("PYTHON_THREAD_INHERIT_CONTEXT", "PYTHON_DISABLE_REMOTE_DEBUG", "PYTHON_TLBC"),
    *_HOLDS,
}


def early(data: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check that no written variable or secret is one that would have no effect."""
    for field in ("variables", "secrets"):
        written = data.get(field)
        if isinstance(written, Mapping):
            entries = [(name, name, value) for name, value in written.items()]
        else:
            entries = [(place, name, None) for place, name in enumerate(written if isinstance(written, list) else ())]
        for place, name, value in entries:
            if isinstance(name, str) and name in _EARLY and str(value) not in ("", *_HOLDS.get(name, ())):
                holds = f"; workers have {_HOLDS[name][0]}" if name in _HOLDS else ""
                text = f"{name} has no effect: Python reads it when it starts, before the worker has a module{holds}"
                yield Wrong(f"{text}; child processes can have it with `env=`", (field, place))
