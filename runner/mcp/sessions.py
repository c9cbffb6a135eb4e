"""Sessions of the revisions with a handshake: what a client said at its beginning, and its calls that run.

They are a convenience of the client: one that is gone is begun again by `initialize`. Their number is bounded; of the
sessions of one caller the one without a request for the longest time ends first, then that of any caller.
"""

from __future__ import annotations

import secrets
from collections import OrderedDict
from typing import Final

from attrs import define, field

from runner.mcp.forms import Client, Id

MAX_SESSIONS: Final = 4096
MAX_OWN_SESSIONS: Final = 256
"""Of one caller."""
MAX_CALLS: Final = 256
"""Of one session that can be cancelled."""


@define(eq=False)
class Session:
    """One client."""

    subject: str
    client: Client | None
    level: str | None = None
    """The least level of log messages."""
    calls: dict[Id, str] = field(factory=dict, init=False)
    """The executions of its requests that were not answered, by the id of the request."""


@define(eq=False)
class Sessions:
    """All sessions, by their ids; the one that was used last is last."""

    _known: OrderedDict[str, Session] = field(factory=OrderedDict, init=False)

    def open(self, subject: str, client: Client | None) -> str:
        """Begin a session and return its id."""
        own = [name for name, session in self._known.items() if session.subject == subject]
        if len(own) >= MAX_OWN_SESSIONS:
            del self._known[own[0]]
        elif len(self._known) >= MAX_SESSIONS:
            self._known.popitem(last=False)
        name = secrets.token_urlsafe(24)
        self._known[name] = Session(subject, client)
        return name

    def find(self, name: str, subject: str) -> Session | None:
        """Return a session of this caller."""
        found = self._known.get(name)
        if found is None or found.subject != subject:
            return None
        self._known.move_to_end(name)
        return found

    def close(self, name: str, subject: str) -> bool:
        """End a session; return whether there was one."""
        if self.find(name, subject) is None:
            return False
        del self._known[name]
        return True
