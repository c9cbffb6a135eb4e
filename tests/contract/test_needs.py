"""Contract: labels that a module needs, on a runner that is alone."""

from __future__ import annotations

import pytest

from protocol.errors import ErrorKind, RunnerError
from protocol.model import Status
from tests.support import ANYBODY, inline, open_service, wait_until

NEEDY = inline("needy", "def handler(input): return input", needs=("gpu", "zone=eu"))


async def test_a_call_without_the_labels_is_refused(tmp_path):
    async with open_service(tmp_path, [NEEDY]) as service:
        service.runs.dispatcher.places.labels = ("gpu", "zone=us")
        for call in (service.execute, service.begin):
            with pytest.raises(RunnerError) as caught:
                await call(ANYBODY, "needy", b"1")

            assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.UNAVAILABLE, "needs")
            assert "zone=eu" in caught.value.failure.message
            assert "gpu" not in caught.value.failure.message


async def test_an_execution_waits_for_a_runner_with_the_labels(tmp_path):
    async with open_service(tmp_path, [NEEDY]) as service:
        name = (await service.submit(ANYBODY, "needy", b"1")).id
        waiting = (await service.get(ANYBODY, name)).waiting

        assert "this runner has no gpu, zone=eu, which the module `needs`" in waiting.reason
        service.runs.dispatcher.places.labels = ("gpu=a100", "zone=eu")
        other = (await service.submit(ANYBODY, "needy", b"2")).id
        for each in (name, other):
            await wait_until(lambda each=each: service.runs.find(each) is None, "it does not run with the labels")

        assert (await service.get(ANYBODY, name)).status is Status.SUCCEEDED
        assert (await service.execute(ANYBODY, "needy", b"3")).result == b"3"
