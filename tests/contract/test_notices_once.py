"""Contract: of several runners that ended one execution, only that one sends notices whose end counts."""

from __future__ import annotations

from types import SimpleNamespace

import trio

from actors.starts import NoticeQuery, Notices, Outbox
from protocol.model import Recipient, Status, Telling
from tests.records import NOW, make, running, stored

ONE = Telling((Recipient((Status.SUCCEEDED,), "https://one.example/hook"),))
OTHER = Telling((Recipient((Status.SUCCEEDED,), "https://other.example/hook"),))


async def test_a_notice_is_sent_withdrawn_or_postponed_as_the_end_counts(tmp_path):
    ours, theirs, unknown = make(on_end=ONE), make(on_end=ONE), make(on_end=OTHER)
    counts = {ours.id: True, theirs.id: False, unknown.id: None}
    got, asked = [], set()

    async def post(url, headers, body):
        got.append(headers["webhook-id"])
        return 204

    async def confirm(execution):
        asked.add(execution)
        return counts[execution]

    async with running(tmp_path) as history:
        for execution in (ours, theirs, unknown):
            await history.finish(execution)
        await stored(history)
        outbox = Outbox(history, clock=lambda: NOW + 1)
        runs = SimpleNamespace(history=history, find_keyed=None, claims=None)
        async with trio.open_nursery() as nursery:
            await nursery.start(Notices(outbox, runs, None, post, 60.0, confirm=confirm).run)
            while asked != set(counts) or any(
                each.due_at <= NOW + 1 and each.state == "pending" for each in (await outbox.list(NoticeQuery())).items
            ):
                await trio.sleep(0.01)
            nursery.cancel_scope.cancel()

        found = {each.execution: each for each in (await outbox.list(NoticeQuery())).items}
        assert got == [f"msg_{ours.id}_0"]
        assert found.keys() == {ours.id, unknown.id}
        assert (found[ours.id].state, found[unknown.id].state) == ("delivered", "pending")
        assert (found[unknown.id].attempts, found[unknown.id].due_at) == (0, NOW + 2)
