"""The time limit of a test on Trio: its tasks are cancelled, so that fixtures clean up and later tests can run.

pytest-timeout raises in a signal handler. Raised in Trio's own code, that breaks the loop for every later test of the
process.
"""

from __future__ import annotations

import signal
import traceback
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import trio

AGAIN_SECONDS = 15
"""After this time a test whose tasks do not end, or that never yields to Trio, gets the exception of pytest-timeout."""
LIBRARIES = {"trio", "pytest_trio"}
"""Their frames are left out of the message."""
STACKS = pytest.StashKey[str]()


@pytest.hookimpl(wrapper=True)
def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> Generator[None, Any, Any]:
    """Cancel the tasks of a test on Trio at its limit."""
    done = yield
    if settings.method == "signal" and item.get_closest_marker("trio") is not None:
        raising: Any = signal.getsignal(signal.SIGALRM)

        def cancel(number: int, frame: Any) -> None:
            try:
                token = trio.lowlevel.current_trio_token()
            except RuntimeError:
                raising(number, frame)
            signal.signal(signal.SIGALRM, raising)
            token.run_sync_soon(_cancel_all, item, settings.timeout)

        signal.signal(signal.SIGALRM, cancel)
        signal.setitimer(signal.ITIMER_REAL, settings.timeout, AGAIN_SECONDS)
    return done


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    """Fail a test whose tasks were cancelled, however it ended."""
    try:
        return (yield)
    finally:
        if STACKS in item.stash:
            pytest.fail(item.stash[STACKS], pytrace=False)


def _cancel_all(item: pytest.Item, seconds: float) -> None:
    root = trio.lowlevel.current_root_task()
    waiting = [root] if root else []
    parts = [f"the test exceeded its time limit of {seconds:g} s; its tasks waited here:"]
    while waiting:
        task = waiting.pop()
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]
        stack = traceback.StackSummary.extract(task.iter_await_frames())
        own = [frame for frame in stack if not LIBRARIES & {*Path(frame.filename).parts}]
        if own:
            parts.append("".join([f"{task.name}\n", *traceback.StackSummary.from_list(own).format()]))
        if task is not root:
            for nursery in task.child_nurseries:
                nursery.cancel_scope.cancel()
    item.stash[STACKS] = "\n".join(parts)
