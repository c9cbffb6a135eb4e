"""Contract: `GET /metrics` over a real connection, read by the parsers of Prometheus' own library."""

from __future__ import annotations

import os
import re
import shutil
import time
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families

from config.settings import AuthSettings
from runner.auth.tokens import Verifier, sign
from runner.rest.app import make_app
from runner.version import release
from tests.contract.test_nodes_shown import Clustered
from tests.contract.test_streams import SECRET, Site
from tests.http_support import serving
from tests.support import WAIT_FOR, inline, open_service, wait_until

ROOT = Path(__file__).resolve().parents[2]
ECHO = inline("echo", "def handler(input): return input", concurrency=1)
FAILS = inline("fails", "def handler(input): raise ValueError(input)")
HELD = inline("held", WAIT_FOR + "def handler(input): wait_for(input)", concurrency=1)


@asynccontextmanager
async def site(path, metrics="token", **settings):
    async with open_service(path, (ECHO, FAILS, HELD), **settings) as service:
        server = attrs.evolve(service.settings.server, metrics=metrics)
        service.settings = attrs.evolve(service.settings, server=server)
        app = make_app(service, Verifier(AuthSettings(), secret=SECRET))
        async with serving(app, budget=service.budget) as opened:
            yield Site(service, opened, token("admin"))


def token(*scopes, **claims):
    return sign(SECRET, subject="prometheus", scopes=list(scopes), expires_seconds=3600, **claims)


class Scrape:
    """The samples of one answer."""

    def __init__(self, text, parse=text_string_to_metric_families):
        self.families = {family.name: family for family in parse(text)}
        self.samples = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families.values()
            for sample in family.samples
        }

    def __call__(self, name, **labels):
        return self.samples.get((name, frozenset(labels.items())))

    def of(self, name):
        return {key for key in self.samples if key[0] == name}


async def scrape(at, **headers):
    status, told, body = await at.ask("GET", "/metrics", **headers)
    assert status == 200, body
    assert told[b"content-type"].startswith(b"text/plain; version=")
    return Scrape(body.decode())


async def test_damage_and_missing_files_are_shown(tmp_path):
    async with site(tmp_path) as at:
        await at.json("POST", "/modules/execute/echo", 1)
    (database,) = tmp_path.rglob("history.db")
    database.write_bytes(database.read_bytes()[:4096] + bytes(40_000))
    async with site(tmp_path) as at:
        _, _, body = await at.ask("GET", "/readyz")
        assert b'"damaged":["history"]' in body
        now = await scrape(at)
        assert [now("operato_damaged", part=part) for part in ("history", "journal", "modules", "code")] == [1, 0, 0, 0]
        assert now("operato_history_writable") == 1

        shutil.move(database.parent, tmp_path / "elsewhere")
        await wait_until(lambda: at.service.history.statistics().refusing, "it was not noticed")
        status, told, body = await at.ask("GET", "/readyz")
        assert (status, told[b"retry-after"]) == (503, b"5")
        assert b"deleted" in body
        assert (await scrape(at))("operato_history_writable") == 0
        assert (await at.ask("POST", "/modules/execute/echo", 1))[0] == 503
        shutil.move(tmp_path / "elsewhere", database.parent)
        await wait_until(lambda: not at.service.history.statistics().refusing, "it was not noticed")
        assert await at.json("POST", "/modules/execute/echo", 1)


async def test_the_numbers_count_the_executions(tmp_path):
    flag = tmp_path / "flag"
    async with site(tmp_path, max_queued=1) as at:
        before = await scrape(at)
        for _ in range(3):
            await at.json("POST", "/modules/execute/echo", 1)
        for _ in range(2):
            await at.ask("POST", "/modules/execute/fails", 1)
        for _ in range(2):
            await at.json("POST", "/executions", {"module": "held", "input": str(flag)})
            await wait_until(lambda: at.service.executors[HELD.env].statistics().busy == 1, "the first one runs")
        assert (await at.ask("POST", "/executions", {"module": "held"}))[0] == 429
        now = await scrape(at)
        flag.touch()
        await wait_until(lambda: not at.service.runs.statistics().live, "all have ended")
        at_last = await scrape(at)

    ended = "operato_executions_ended_total"
    assert before.of(ended) == set()
    assert now(ended, module="echo", status="succeeded", kind="") == 3
    assert now(ended, module="fails", status="failed", kind="handler_error") == 2
    assert at_last(ended, module="held", status="succeeded", kind="") == 2
    assert now("operato_executions_refused_total", kind="overloaded") == 1
    assert (now("operato_executions_live"), now("operato_executions_queued")) == (2, 1)
    assert (at_last("operato_executions_live"), at_last("operato_executions_accepted_total")) == (0, 2)
    assert now("operato_workers", env="inline", state="busy") == 1
    assert now("operato_workers", env="inline", state="idle") == 2
    assert now("operato_workers_started_total", env="inline") == 3
    assert now("operato_environment_available", env="inline") == 1
    assert now("operato_modules") == 3
    assert [now("operato_notices_unsent", state=state) for state in ("pending", "dead")] == [0, 0]
    assert now("operato_history_writable") == 1
    assert now("operato_history_journal_bytes") + now("operato_history_committed_rows_total") > 0
    assert at_last("operato_execution_duration_seconds_count", env="inline") == 7
    assert now("operato_execution_phase_seconds_count", env="inline", phase="run") == 5
    assert now("operato_execution_phase_seconds_count", env="inline", phase="import") == 2
    assert now("operato_execution_phase_seconds_bucket", env="inline", phase="run", le="+Inf") == 5


async def test_bodies_that_are_still_arriving_are_counted(tmp_path):
    async with site(tmp_path) as at:
        upload = await at.server.connect()
        head = at.head("POST", "/modules/execute/echo", length=302)
        await upload.send(head + b"[" + b"1" * 199)
        await wait_until(lambda: at.service.budget.taken == 200, "the first bytes have arrived")
        assert (await scrape(at))("operato_buffered_bytes") == 200
        await upload.send(b"1" * 101 + b"]")
        assert (await upload.response())[0] == 200
        assert (await scrape(at))("operato_buffered_bytes") == 0
        assert at.service.budget.limit == at.service.settings.server.max_buffered_bytes


async def test_the_process_and_its_release_have_metrics(tmp_path):
    async with site(tmp_path) as at:
        found = await scrape(at)

    (info,) = found.families["operato_build_info"].samples
    assert (info.labels["version"], info.value) == (release(), 1)
    assert 10**6 < found("process_resident_memory_bytes") < 10**11
    assert 0 < found("process_open_fds") <= len(os.listdir("/proc/self/fd")) + 50
    assert abs(found("process_start_time_seconds") - time.time()) < 86400


async def test_the_names_follow_the_documents_and_the_conventions(tmp_path):
    async with site(tmp_path, "open") as at:
        await at.json("POST", "/modules/execute/echo", 1)
        await at.ask("POST", "/executions", {"module": "held", "input": "/"})
        at.service.runs.owners = Clustered(at.service.runs)
        found = await scrape(at)

    for name, family in found.families.items():
        assert family.documentation, name
        assert all(sample.name.endswith("_total") for sample in family.samples) == (family.type == "counter"), name
    own = {
        f"{name}_total" if family.type == "counter" else name
        for name, family in found.families.items()
        if name.startswith("operato_")
    }
    page = (ROOT / "docs/operating.md").read_text()
    assert set(re.findall(r"operato_[a-z_]+(?![a-z_-])", page)) == own


async def test_a_scraper_may_ask_for_open_metrics(tmp_path):
    async with site(tmp_path, "open") as at:
        await at.json("POST", "/modules/execute/echo", 1)
        accept = "application/openmetrics-text; version=1.0.0"
        status, headers, body = await at.ask("GET", "/metrics", Accept=accept)

    assert (status, headers[b"content-type"].split(b";")[0]) == (200, b"application/openmetrics-text")
    found = Scrape(body.decode(), open_metrics)
    assert found("operato_executions_ended_total", module="echo", status="succeeded", kind="") == 1


@pytest.mark.parametrize(
    ("setting", "authorization", "status"),
    [
        ("token", "", 401),
        ("token", f"Bearer {token('modules:read', 'executions:read')}", 403),
        ("token", f"Bearer {token('metrics:read')}", 200),
        ("open", "", 200),
        ("off", f"Bearer {token('admin')}", 404),
    ],
)
async def test_a_setting_opens_closes_or_protects_the_metrics(tmp_path, setting, authorization, status):
    async with site(tmp_path, setting) as at:
        assert (await at.ask("GET", "/metrics", Authorization=authorization))[0] == status
        if status == 200:
            assert (await at.ask("GET", "/metrics?x=1", Authorization=authorization))[0] == 400


async def test_a_token_for_some_modules_sees_those(tmp_path):
    async with site(tmp_path) as at:
        await at.json("POST", "/modules/execute/echo", 1)
        await at.ask("POST", "/modules/execute/fails", 1)
        limited = token("metrics:read", modules=["e*"])
        found = await scrape(at, Authorization=f"Bearer {limited}")

    ((_, labels),) = found.of("operato_executions_ended_total")
    assert dict(labels)["module"] == "echo"
