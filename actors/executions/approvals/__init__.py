"""Executions that wait for a person: asked before their first worker, approved, denied, or out of time."""

from actors.executions.approvals.approvals import WAITS, Approvals, decision_of, not_asked
from actors.executions.approvals.asking import Asking

__all__ = ["WAITS", "Approvals", "Asking", "decision_of", "not_asked"]
