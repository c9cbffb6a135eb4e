"""Retries, the number of workers kept, groups, and tools for agents: values, readers and rules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from attrs import field, frozen
from cattrs import Converter
from cattrs.gen import make_dict_unstructure_fn, override

from config import units
from config.mistakes import Wrong, read_or_none, structure_hook
from config.shapes import object_shape, shaped
from config.units import Range, show
from protocol.errors import ErrorKind
from protocol.model import Isolation


@frozen
class Backoff:
    """Delay before attempt n+1: `initial * factor ** (n - 1)` seconds, at most `max`, times 1 +- `jitter`."""

    initial: float = 0.5
    factor: float = 2.0
    max: float = 30.0
    jitter: float = 0.1


@frozen
class RetryPolicy:
    """How often an execution is tried, and after which failures."""

    attempts: int = 1
    backoff: Backoff = field(factory=Backoff)
    on: tuple[ErrorKind, ...] = (
        ErrorKind.HANDLER_ERROR,
        ErrorKind.TIMEOUT,
        ErrorKind.WORKER_CRASHED,
        ErrorKind.OUT_OF_MEMORY,
        ErrorKind.LOST,
    )

    def allows(self, kind: ErrorKind, attempt: int) -> bool:
        """Return whether another attempt follows this failure; `attempt` counts from 1, the one that failed."""
        return attempt < self.attempts and kind in self.on


@frozen
class WorkersPolicy:
    """How many workers are kept, and for how long."""

    min: int = 0
    """Workers kept ready even when idle."""
    idle: float | None = None
    """Idle seconds after which a worker is retired; None means the runner's `idle_seconds`."""
    max_calls: int = 0
    """Calls after which a worker is replaced; 0 means no limit."""


@frozen
class GroupPolicy:
    """The executions whose inputs have the same value at `key` are a group, of which `concurrency` run at a time."""

    key: str
    """`$.customer`, or a JSON Pointer: `/customer`."""
    concurrency: int = 1


@frozen
class ToolPolicy:
    """How a module is offered to agents as a tool; agents see the hints, and nothing enforces them but `confirm`."""

    offered: bool = True
    title: str | None = None
    """The name that people see."""
    read_only: bool = False
    """It changes nothing outside of itself."""
    destructive: bool = True
    """It may overwrite or delete; without meaning if it is `read_only`."""
    idempotent: bool = False
    """A repeated call with the same input changes nothing more."""
    confirm: bool = False
    """Each execution waits until a person approves it, through any door."""


def limit_of(rate: str) -> tuple[int, float]:
    """Return how many executions may begin in how many seconds: `10/s` is 10 in 1."""
    number, _, unit = rate.partition("/")
    return int(number), float(units.DURATIONS[unit])


WORKERS = 4
"""Workers of a module, unless its `concurrency` says otherwise."""
MOST_CALLS = 1000
"""The highest `calls` and `concurrency`."""


def orders(data: Mapping[str, Any]) -> Iterator[Wrong]:
    """Check numbers that must not be larger than another one."""
    workers, retry = data.get("workers"), data.get("retry")
    backoff = retry.get("backoff") if isinstance(retry, Mapping) else None
    least = read_or_none(units.whole, workers.get("min")) if isinstance(workers, Mapping) else None
    calls = read_or_none(units.whole, data.get("calls", 1)) or 1
    most = read_or_none(units.whole, data.get("concurrency", min(MOST_CALLS, WORKERS * max(1, calls))))
    if least is not None and most is not None and calls > 0 and least > (workers := -(-most // calls)):
        text = f"{least} is more than concurrency, which is {most}" + (f", needs ({workers})" if calls > 1 else "")
        yield Wrong(text, ("workers", "min"), allowed=f"at most {workers}")
    if calls > 1 and data.get("isolation") not in (None, Isolation.WARM):
        text = f"is for isolation: warm, where calls share a worker, not for {data['isolation']}"
        yield Wrong(text, ("calls",), allowed="1, or isolation: warm")
    first = read_or_none(units.duration, backoff.get("initial", 0.5)) if isinstance(backoff, Mapping) else None
    last = read_or_none(units.duration, backoff.get("max", 30.0)) if isinstance(backoff, Mapping) else None
    if first is not None and last is not None and first > last:
        shown, most_shown = units.format_duration(first), units.format_duration(last)
        where = ("retry", "backoff", "initial")
        yield Wrong(f"{shown} is more than max, which is {most_shown}", where, allowed=f"at most {most_shown}")


TIMEOUT = units.seconds(Range(above=0, high=units.WEEK))
_DELAY = units.seconds(Range(0, 86400))

RATE = units.matching(r"[1-9][0-9]{0,3}/[smh]", "a number from 1 to 9999 and a unit: 10/s, 100/m or 1000/h")

_TOOL_READERS: Mapping[type, Mapping[str, Callable[[Any], Any]]] = {
    ToolPolicy: {
        "title": units.optional(
            units.matching(
                r"[^\s\x00-\x1f\x7f-\x9f]([^\x00-\x1f\x7f-\x9f]{0,98}\S)?", "a line of at most 100 characters"
            )
        ),
        **dict.fromkeys(("read_only", "destructive", "idempotent", "confirm"), units.flag),
    }
}


def read_tool(value: Any) -> ToolPolicy:
    """Read whether and how a module is a tool: true, false, or a mapping."""
    if value is None or isinstance(value, bool):
        return ToolPolicy(offered=value is not False)
    if not isinstance(value, Mapping):
        text = f"{show(value)} is neither true, false nor a mapping such as {{title: Send mail, confirm: true}}"
        raise Wrong(text, allowed="true, false, a mapping")
    found: ToolPolicy = _TOOLS.structure(value, ToolPolicy)
    return found


def _tool_shape() -> dict[str, Any]:
    shape = object_shape(ToolPolicy, {ToolPolicy: {"offered": units.flag, **_TOOL_READERS[ToolPolicy]}})
    del shape["properties"]["offered"]
    return {"anyOf": [{"type": "boolean"}, shape, {"type": "null"}]}


shaped(read_tool, _tool_shape)


def _tools() -> Converter:
    converter = Converter()
    omitted = override(omit=True)
    hook = structure_hook(converter, ToolPolicy, _TOOL_READERS[ToolPolicy], offered=omitted)
    converter.register_structure_hook(ToolPolicy, hook)
    write = make_dict_unstructure_fn(ToolPolicy, converter, _cattrs_omit_if_default=True, offered=omitted)
    converter.register_unstructure_hook(ToolPolicy, write)
    return converter


_TOOLS = _tools()


def write_tool(tool: ToolPolicy) -> Any:
    """Return what `read_tool` reads as the same value."""
    return _TOOLS.unstructure(tool) or True if tool.offered else False


READERS: Mapping[type, Mapping[str, Callable[[Any], Any]]] = {
    Backoff: {"initial": _DELAY, "factor": units.real(Range(1, 100)), "max": _DELAY, "jitter": units.real(Range(0, 1))},
    RetryPolicy: {"attempts": units.count(1, 100), "on": units.items(units.one_of(ErrorKind))},
    GroupPolicy: {
        "key": units.matching(
            r"\$(\.[^./\s]{1,64}){1,8}|(/[^/\s]{1,64}){1,8}",
            "a path into the input, such as $.customer or the JSON Pointer /customer",
        ),
        "concurrency": units.count(1, 1000),
    },
    WorkersPolicy: {"min": units.count(0), "idle": units.optional(TIMEOUT), "max_calls": units.count(0)},
}
"""The reader of each field."""
