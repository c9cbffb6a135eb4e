"""Limits of memory, CPU and processes: what this machine can enforce, and one worker put under them."""

from environments.limits.limits import WATCH_SECONDS, Hold, LimitKeeper, Limits, memory_exceeded

__all__ = ["WATCH_SECONDS", "Hold", "LimitKeeper", "Limits", "memory_exceeded"]
