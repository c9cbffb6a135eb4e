"""`Access`: who signs in, and how: the state of the dashboard that lives as long as the server."""

from __future__ import annotations

from attrs import define, field

from runner.auth import Principal, Verifier, authenticate
from runner.ui.sessions.links import Links
from runner.ui.sessions.sessions import Sessions


@define(eq=False)
class Access:
    """The sessions and links, and the verifier of what they hold."""

    verifier: Verifier
    sessions: Sessions = field(factory=Sessions)
    links: Links = field(factory=Links)

    async def owner(self, credential: str) -> Principal:
        """Return the owner of a token or API key, verified now. Raises RunnerError."""
        return await authenticate(self.verifier, f"Bearer {credential}")
