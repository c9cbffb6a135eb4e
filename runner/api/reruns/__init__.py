"""Repeating executions that have ended, cancelling those of a list, and deciding about those that wait for a person."""

from runner.api.reruns.cancels import Cancelled, Cancels
from runner.api.reruns.decisions import Decisions
from runner.api.reruns.reruns import ACTIVE, SAME, Again, Reruns, seen, shown

__all__ = ["ACTIVE", "SAME", "Again", "Cancelled", "Cancels", "Decisions", "Reruns", "seen", "shown"]
