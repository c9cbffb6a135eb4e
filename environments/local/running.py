"""`operato` and the arguments of handlers for calls in the runner's own process."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from importlib.machinery import ModuleSpec
from typing import Any, Final

from attrs import frozen

from environments.local.values import BadValueError
from protocol import authors
from protocol.values import BadInput

_plan: Final[Callable[[Callable[..., Any]], Any]] = authors.plan


class BadArgumentError(BadValueError):
    """A value of the input that does not fit the handler; `path` is its place."""


@frozen
class Running:
    """One call: what its handler gets from `operato`, and what its arguments are made from."""

    context: Any
    files: Mapping[str, str]
    """The paths of the files in the input, by their id."""


_mine: ContextVar[Running | None] = ContextVar("running", default=None)
_live: list[Running] = []


class _Calls:
    """The running calls, where `operato` finds its own one; and the last finder of imports."""

    operato_call = True

    @property
    def context(self) -> Any:
        """The context of the running call; in a thread of user code, of the only one."""
        found = self._found()
        return None if found is None else found.context

    @property
    def files(self) -> Mapping[str, str]:
        """The files of the running call."""
        found = self._found()
        return {} if found is None else found.files

    @staticmethod
    def _found() -> Running | None:
        return _mine.get() or (_live[0] if len(_live) == 1 else None)

    @staticmethod
    def find_spec(name: str, *_: object) -> ModuleSpec | None:
        """Return the spec of `operato`, where no other finder has found one."""
        path = sys.modules[authors.File.__module__].__file__
        return importlib.util.spec_from_file_location(name, path) if name == "operato" else None


_CALLS: Final = _Calls()


def plan(handler: Callable[..., Any]) -> Any:
    """Return the plan of a handler, which `arguments` reads."""
    return _plan(handler)


def arguments(planned: Any, value: Any, call: Running) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return positional arguments and arguments by name for an input. Raises BadArgumentError."""
    try:
        args, named = planned.arguments(value, call)
    except BadInput as problem:
        raise BadArgumentError(problem.path, problem) from None
    return args, named


def serve_operato() -> None:
    """Let modules import `operato`."""
    if _CALLS not in sys.meta_path:
        sys.meta_path.append(_CALLS)


@contextlib.contextmanager
def running(context: Any, files: Mapping[str, str]) -> Iterator[Running]:
    """Have a call that runs in this thread, and in the tasks that it starts."""
    call = Running(context, files)
    token = _mine.set(call)
    _live.append(call)
    try:
        yield call
    finally:
        _live.remove(call)
        _mine.reset(token)
