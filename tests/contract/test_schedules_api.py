"""Contract: schedules over REST and gRPC: made, changed, paused, started, shown, audited, and bound to scopes."""

from __future__ import annotations

import json
import time

import pytest
import trio
from attrs import evolve

from actors.starts import STARTS_FILE
from config.settings import AuthSettings
from config.timing import read_schedule
from protocol.errors import RunnerError
from protocol.rpc.operato.runner import v1
from runner.auth.tokens import Verifier, sign
from runner.grpc.executions import make_methods
from tests.contract.test_streams import ECHO, SECRET, Site, open_site
from tests.grpc_client import open_door
from tests.support import inline, wait_until

SCHEDULES = "/operato.runner.v1.ScheduleService/"
DAILY = evolve(ECHO, name="daily", schedules=(read_schedule({"name": "night", "cron": "@daily", "input": [1]}),))
PICKY = inline("picky", "def handler(input: dict[str, int]): return input")
ORDER = {"module": "echo", "name": "hourly", "cron": "0 * * * *", "timezone": "Asia/Seoul", "input": {"a": 1}}


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO, DAILY, PICKY)) as opened:
        yield opened


def limited(site, scopes, modules=()):
    token = sign(SECRET, subject="lim", scopes=scopes, expires_seconds=60, modules=modules)
    return Site(site.service, site.server, token)


async def test_a_schedule_from_its_creation_to_its_end(site):
    status, headers, body = await site.ask("POST", "/schedules", ORDER)
    made = json.loads(body)

    assert (status, headers[b"location"]) == (201, b"/schedules/hourly")
    assert (made["id"], made["module"], made["version"], made["source"]) == ("hourly", "echo", None, "api")
    assert (made["cron"], made["timezone"], made["input"]) == ("0 * * * *", "Asia/Seoul", {"a": 1})
    assert (made["overlap"], made["misfire"], made["jitter"]) == ("skip", "skip", 0)
    assert (made["created_by"], made["paused"], made["last"], made["problem"]) == ("kim", False, None, None)
    assert 0 < made["next"] - time.time() <= 3600
    assert await site.json("GET", "/schedules/hourly") == made

    changed = json.loads((await site.ask("PATCH", "/schedules/hourly", {"every": "10m", "input": None}))[2])
    assert (changed["cron"], changed["every"], changed["timezone"], changed["input"]) == (None, 600, "Asia/Seoul", None)
    changed = json.loads((await site.ask("PATCH", "/schedules/hourly", {"overlap": "queue"}))[2])
    assert (changed["every"], changed["overlap"]) == (600, "queue")

    assert (await site.ask("DELETE", "/schedules/hourly"))[0] == 204
    assert (await site.ask("GET", "/schedules/hourly"))[0] == 404
    assert [each["id"] for each in (await site.json("GET", "/schedules"))["items"]] == ["daily:night"]


async def test_a_name_is_made_from_module_and_content(site):
    order = {name: value for name, value in ORDER.items() if name != "name"}
    made = await site.json("POST", "/schedules", order)

    assert made["id"].startswith("echo.")
    status, _, body = await site.ask("POST", "/schedules", order)
    assert (status, json.loads(body)["field"]) == (409, "name")


async def test_the_next_instants_are_in_the_time_zone(site):
    await site.json("POST", "/schedules", ORDER)
    found = await site.json("GET", "/schedules/hourly/next?count=3")

    assert found["timezone"] == "Asia/Seoul"
    assert len(found["items"]) == 3
    assert all(each["local"].endswith(":00:00+09:00") for each in found["items"])
    assert found["items"][1]["at"] - found["items"][0]["at"] == 3600


async def test_pause_and_resume(site):
    await site.json("POST", "/schedules", ORDER)
    paused = await site.json("POST", "/schedules/hourly/pause")
    assert (paused["paused"], paused["paused_by"], paused["next"]) == (True, "kim", None)
    assert (await site.json("POST", "/schedules/hourly/pause"))["paused"]
    resumed = await site.json("POST", "/schedules/hourly/resume")
    assert (resumed["paused"], resumed["next"] > time.time()) == (False, True)


async def test_fire_now(site):
    await site.json("POST", "/schedules", ORDER)
    status, headers, body = await site.ask("POST", "/schedules/hourly/fire")
    accepted = json.loads(body)

    assert (status, headers[b"location"].decode()) == (202, f"/executions/{accepted['id']}")
    await wait_until(lambda: site.service.runs.find(accepted["id"]) is None, "it ended")
    ended = await site.json("GET", f"/executions/{accepted['id']}")
    assert (ended["result"], ended["schedule"], ended["scheduled_for"], ended["subject"]) == (
        {"a": 1},
        "hourly",
        None,
        "kim",
    )
    found = await site.json("GET", "/executions?schedule=hourly")
    assert [each["id"] for each in found["items"]] == [accepted["id"]]
    assert (await site.json("GET", "/schedules/hourly"))["last"] == {"execution": accepted["id"], "scheduled_for": None}


async def test_a_schedule_of_a_module_is_paused_and_started_but_changed_in_the_module(site):
    shown = await site.json("GET", "/schedules/daily:night")
    assert (shown["source"], shown["created_by"], shown["cron"]) == ("module", None, "@daily")
    assert (await site.json("POST", "/schedules/daily:night/pause"))["paused"]
    assert (await site.ask("POST", "/schedules/daily:night/fire"))[0] == 202
    for method, body in (("PATCH", {"every": "1h"}), ("DELETE", b"")):
        status, _, answer = await site.ask(method, "/schedules/daily:night", body)
        problem = json.loads(answer)
        assert (status, problem["field"]) == (409, "id")
        assert "belongs to the module 'daily'; change it there" in problem["detail"]


@pytest.mark.parametrize(
    ("fields", "status", "field", "text"),
    [
        ({"cron": "0 0 30 2 *"}, 400, "cron", "month 2 has no day 30"),
        ({"timezone": "Seoul"}, 400, "timezone", "did you mean 'Asia/Seoul'"),
        ({"module": "ehco"}, 404, "module", "did you mean echo"),
        ({"version": "v9"}, 404, "version", "has no version 'v9'"),
        ({"module": "picky", "input": {"a": "x"}}, 400, "input", "the module refuses this input"),
        ({"every": "1h"}, 400, "every", "gives cron and every"),
        ({"cron": None}, 400, "$", "does not say when"),
        ({"cron": None, "at": "2020-01-01T00:00:00Z"}, 400, "at", "has passed"),
        ({"name": "a/b"}, 400, "name", "a name"),
        ({"name": "daily:night"}, 400, "name", "a name"),
        ({"module": 7}, 400, "module", "the name of a module"),
        ({"overlap": "no"}, 400, "overlap", "skip, queue, cancel, parallel"),
        ({"when": 1}, 400, "when", "unknown field"),
        (b"[" * 60_000, 400, "$", ""),
        (b"\xff", 400, "$", ""),
        (b"[]", 400, "$", "not an object"),
        (b" " * 140_000, 413, "$", "the limit is"),
    ],
)
async def test_a_mistake_makes_no_schedule(site, fields, status, field, text):
    found, _, body = await site.ask("POST", "/schedules", fields if isinstance(fields, bytes) else {**ORDER, **fields})
    problem = json.loads(body)

    assert (found, problem["field"]) == (status, field), problem
    assert text in problem["detail"]
    assert [each["id"] for each in (await site.json("GET", "/schedules"))["items"]] == ["daily:night"]


async def test_an_unknown_schedule_is_answered_with_similar_names(site):
    status, _, body = await site.ask("GET", "/schedules/daily:nihgt")

    assert status == 404
    assert "did you mean daily:night" in json.loads(body)["detail"]


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", ""), ("PATCH", "/hourly"), ("DELETE", "/hourly"), *(("POST", f"/hourly/{v}") for v in ("pause", "fire"))],
)
async def test_changes_need_their_scope(site, method, path):
    await site.json("POST", "/schedules", ORDER)
    reader = limited(site, ["schedules:read", "executions:run", "modules:write"])

    assert (await reader.ask(method, f"/schedules{path}", {"overlap": "skip"}))[0] == 403
    assert (await reader.ask("GET", "/schedules/hourly"))[0] == 200
    assert (await limited(site, ["executions:read"]).ask("GET", "/schedules"))[0] == 403


async def test_schedules_of_other_modules_do_not_exist_for_a_limited_token(site):
    await site.json("POST", "/schedules", ORDER)
    other = limited(site, ["schedules:read", "schedules:write"], ["daily"])

    assert [each["id"] for each in (await other.json("GET", "/schedules"))["items"]] == ["daily:night"]
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/fire"), ("GET", "/next")):
        assert (await other.ask(method, f"/schedules/hourly{path}"))[0] == 404
    status, _, body = await other.ask("POST", "/schedules", {**ORDER, "name": "mine"})
    assert (status, json.loads(body)["field"]) == (404, "module")


async def test_publishing_schedules_needs_their_scope(site):
    module = {"name": "timed", "env": "inline", "code": "def handler(input): return 1", "schedules": [{"every": "1h"}]}
    status, _, body = await limited(site, ["modules:write"]).ask("POST", "/modules", module)
    assert (status, json.loads(body)["field"]) == (403, "schedules")

    assert (await site.ask("POST", "/modules", module))[0] == 201
    await wait_until(lambda: len(site.service.starts.all()) == 2, "its schedule is known")
    assert (await site.ask("DELETE", "/modules/timed"))[0] == 204
    await wait_until(lambda: len(site.service.starts.all()) == 1, "its schedule has gone")


async def test_lists_have_pages(site):
    for number in range(5):
        await site.json("POST", "/schedules", {**ORDER, "name": f"s{number}"})
    first = await site.json("GET", "/schedules?limit=2")
    second = await site.json("GET", f"/schedules?limit=2&cursor={first['cursor']}")
    of_echo = await site.json("GET", "/schedules?module=echo")

    assert [each["id"] for each in first["items"] + second["items"]] == ["daily:night", "s0", "s1", "s2"]
    assert [each["id"] for each in of_echo["items"]] == [f"s{number}" for number in range(5)]


async def test_changes_are_in_the_audit_log_and_counts_in_the_metrics(site):
    await site.json("POST", "/schedules", ORDER)
    await site.ask("PATCH", "/schedules/hourly", {"every": 60})
    await site.ask("POST", "/schedules/hourly/pause")
    text = (await site.ask("GET", "/metrics"))[2].decode()
    await site.ask("POST", "/schedules/hourly/resume")
    await site.ask("POST", "/schedules/hourly/fire")
    await site.ask("DELETE", "/schedules/hourly")
    found = (await site.json("GET", "/audit"))["items"]

    assert 'operato_schedules{state="active"} 1.0' in text
    assert 'operato_schedules{state="paused"} 1.0' in text
    assert 'operato_schedule_instants_total{outcome="missed"} 0.0' in text
    assert [each["action"].removeprefix("schedule_") for each in found] == [
        "delete",
        "resume",
        "pause",
        "change",
        "create",
    ]
    assert {(each["subject"], each["module"], each["detail"]["schedule"]) for each in found} == {
        ("kim", "echo", "hourly")
    }


async def test_a_damaged_database_of_schedules_shows(tmp_path):
    async with open_site(tmp_path, (ECHO,)) as site:
        await site.json("POST", "/schedules", ORDER)
    (tmp_path / "data" / STARTS_FILE).write_bytes(b"noise" * 5000)
    async with open_site(tmp_path, (ECHO,)) as site:
        assert (await site.json("GET", "/readyz"))["damaged"] == ["schedules"]
        assert (await site.json("GET", "/schedules"))["items"] == []
        assert 'operato_damaged{part="schedules"} 1.0' in (await site.ask("GET", "/metrics"))[2].decode()


async def test_schedules_over_grpc(site):
    async with open_door(make_methods(site.service, Verifier(AuthSettings(), secret=SECRET))) as door:
        client = await door.connect()

        async def ask(method, request, answer):
            metadata = {"authorization": f"Bearer {site.token}"}
            response = await client.call(SCHEDULES + method, request, metadata=metadata)
            assert response.status == 0, response.said
            return response.message(answer)

        made = await ask("CreateSchedule", v1.CreateScheduleRequest(json.dumps(ORDER)), v1.ScheduleResponse)
        assert (made.schedule.id, made.schedule.module_name) == ("hourly", "echo")
        assert made.schedule.next_at > time.time() * 1000
        assert json.loads(made.schedule.schedule_json)["timezone"] == "Asia/Seoul"
        got = await ask("GetSchedule", v1.GetScheduleRequest("hourly", count=2), v1.GetScheduleResponse)
        assert got.next[1] - got.next[0] == 3_600_000
        patched = await ask("PatchSchedule", v1.PatchScheduleRequest("hourly", '{"every": 60}'), v1.ScheduleResponse)
        assert json.loads(patched.schedule.schedule_json)["every"] == 60
        paused = await ask("PauseSchedule", v1.PauseScheduleRequest("hourly"), v1.ScheduleResponse)
        assert (paused.schedule.paused, paused.schedule.next_at) == (True, 0)
        resumed = await ask("PauseSchedule", v1.PauseScheduleRequest("hourly", resume=True), v1.ScheduleResponse)
        assert not resumed.schedule.paused
        fired = await ask("FireSchedule", v1.FireScheduleRequest("hourly"), v1.FireScheduleResponse)
        assert fired.execution.module_name == "echo"
        listed = await ask("ListSchedules", v1.ListSchedulesRequest(module_name="echo"), v1.ListSchedulesResponse)
        assert [each.id for each in listed.schedules] == ["hourly"]
        assert listed.schedules[0].last_execution == fired.execution.id
        await ask("DeleteSchedule", v1.DeleteScheduleRequest("hourly"), v1.DeleteScheduleResponse)
        assert site.service.starts.get("hourly") is None


async def test_of_two_callers_with_one_name_the_second_is_refused(site):
    """The first one's schedule could be of a module that the second may not use."""
    answers = []

    async def create() -> None:
        answers.append((await site.ask("POST", "/schedules", ORDER))[0])

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(create)

    assert sorted(answers) == [201, 409, 409]


async def test_a_change_does_not_bring_a_deleted_schedule_back(site):
    await site.json("POST", "/schedules", ORDER)
    schedules = site.service.schedules.schedules
    schedule = schedules.get("hourly")
    await schedules.remove(schedule)

    with pytest.raises(RunnerError, match="was changed by another caller"):
        await schedules.put(schedule.stored, schedule.spec, schedule.stored)
