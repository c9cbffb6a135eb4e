"""The turns of accepted executions: which one of a module runs next, and on which terms it was submitted.

`Backlog` has those that wait, `Groups` and `Rates` what else holds them back, `Terms` what a caller asks for. Pure: no
tasks, no clock, no disk.
"""

from actors.turns.backlog import Backlog
from actors.turns.groups import Groups, Rates, group_of
from actors.turns.terms import AT_ONCE, Terms, terms_of

__all__ = ["AT_ONCE", "Backlog", "Groups", "Rates", "Terms", "group_of", "terms_of"]
