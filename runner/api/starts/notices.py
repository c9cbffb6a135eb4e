"""The verbs for notices about ended executions, without transport types."""

from __future__ import annotations

from attrs import define, evolve

from actors.history import History
from actors.starts import Notice, NoticePage, NoticeQuery, Outbox
from protocol.errors import ErrorKind, error
from runner.auth import Principal, Scope, require


@define(eq=False)
class NoticeVerbs:
    """Lists notices, and sends them again."""

    outbox: Outbox

    @classmethod
    def of(cls, outbox: Outbox | None, history: History) -> NoticeVerbs:
        """Return the verbs for an outbox, or for the notices of a history."""
        return cls(outbox or Outbox(history))

    async def list(self, principal: Principal, query: NoticeQuery) -> NoticePage:
        """Return notices about executions that the principal may see, newest first.

        Raises RunnerError `forbidden`, `bad_input` for an unknown state or cursor, `unavailable`.
        """
        require(principal, Scope.EXECUTIONS_READ)
        return await self.outbox.list(evolve(query, modules=principal.modules))

    async def retry(self, principal: Principal, name: str) -> Notice:
        """Send a notice that is not delivered now, and for another day; return it.

        Raises RunnerError: `forbidden`, `not_found`, `conflict` when it is delivered, `unavailable`.
        """
        require(principal, Scope.EXECUTIONS_RUN)
        known = await self.outbox.get(name)
        if known is None or not principal.may_use(known.module):
            raise error(ErrorKind.NOT_FOUND, f"there is no notice {name!r:.80}", field="id")
        if not await self.outbox.retry(name):
            raise error(ErrorKind.CONFLICT, "the notice is delivered; there is nothing to send again", field="id")
        return await self.outbox.get(name) or known
