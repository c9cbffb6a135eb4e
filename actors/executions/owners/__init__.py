"""Executions that have not ended, on whichever runner they are: the doors find, cancel and decide about them here."""

from actors.executions.owners.owners import Here, Owners

__all__ = ["Here", "Owners"]
