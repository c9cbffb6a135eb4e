"""Repeating executions that have ended, one or those of a list; and cancelling those of a list."""

from runner.api.reruns.cancels import Cancelled, Cancels
from runner.api.reruns.reruns import ACTIVE, SAME, Again, Reruns, seen, shown

__all__ = ["ACTIVE", "SAME", "Again", "Cancelled", "Cancels", "Reruns", "seen", "shown"]
