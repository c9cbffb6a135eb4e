"""Endpoints of modules, called hooks in the code: requests below `/http` that run a module and get its own answer.

`Hooks` finds the module by the routes of the registry's snapshot, checks the caller or the signature, and executes it
by the verbs of every door. The request goes to the handler as JSON, and its answer comes as JSON.
"""

from runner.rest.hooks.door import Hooks
from runner.rest.hooks.signatures import Refusal

__all__ = ["Hooks", "Refusal"]
