"""Limits of memory, CPU and processes: what this machine can enforce, and one worker put under them."""

from environments.limits.limits import WATCH_SECONDS, Hold, LimitKeeper, Limits, memory_exceeded
from environments.limits.memory import MachineMemory

__all__ = ["WATCH_SECONDS", "Hold", "LimitKeeper", "Limits", "MachineMemory", "memory_exceeded"]
