"""Contract: modules registered over HTTP: versions, rollback, conditions, deletion, and refusals."""

from __future__ import annotations

import json
import sys

import pytest
import trio

from config.code.archive import pack
from protocol.model import Kind
from runner.api.management import merged
from runner.auth.tokens import sign
from tests.contract.test_streams import SECRET, open_site
from tests.support import PATIENCE, inline, wait_until

FILED = inline("filed", "def handler(input): return 'of the file'")
ONE = {"env": "inline", "code": "def handler(input): return 1"}
TWO = {"env": "inline", "code": "def handler(input): return 2"}
HANGS = {"env": "inline", "code": "import time\ndef handler(input): time.sleep(600)", "timeout": 600}


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (FILED,)) as opened:
        yield opened


async def put(site, name, body, query="", **headers):
    status, head, answer = await site.ask("PUT", f"/modules/{name}{query}", body, **headers)
    assert status in (200, 201), answer
    return json.loads(answer) | {"status": status, "etag": head[b"etag"].decode()}


async def call(site, name, query=""):
    return (await site.json("POST", f"/modules/execute/{name}{query}"))["result"]


async def refused(site, method, path, body=None, **headers):
    status, head, answer = await site.ask(method, path, body, **headers)
    assert head[b"content-type"] == b"application/problem+json", answer
    problem = json.loads(answer)
    assert problem["status"] == status
    return status, problem.get("field"), problem["detail"]


async def versions(site, name):
    return await site.json("GET", f"/modules/{name}/versions")


async def test_a_registered_module_can_be_called_and_its_last_version_is_active(site):
    status, head, answer = await site.ask("POST", "/modules", {"name": "m", **ONE})
    assert (status, head[b"location"]) == (201, b"/modules/m/versions/" + json.loads(answer)["version"].encode())
    assert await call(site, "m") == 1
    assert (await put(site, "m", TWO))["active"] is True
    assert await call(site, "m") == 2

    found = await versions(site, "m")
    assert [each["active"] for each in found["items"]] == [True, False]
    assert found["active"] == found["items"][0]["version"]
    old = found["items"][1]["version"]
    assert await call(site, "m", f"?version={old}") == 1
    assert (await site.json("GET", f"/modules/m?version={old}"))["published_by"] == "kim"


async def test_a_rollback_is_one_call_and_names_the_version(site):
    first = await put(site, "m", ONE)
    await put(site, "m", TWO)
    answer = await site.json("POST", f"/modules/m/versions/{first['version']}/activate")
    assert (answer["version"], answer["active"]) == (first["version"], True)
    assert await call(site, "m") == 1


async def test_a_version_can_wait_for_its_activation(site):
    await put(site, "m", ONE)
    second = await put(site, "m", TWO, "?activate=false")
    assert second["active"] is False
    assert await call(site, "m") == 1
    assert await call(site, "m", f"?version={second['version']}") == 2
    waiting = await put(site, "lone", ONE | {"activate": False})
    assert await refused(site, "POST", "/modules/execute/lone") == (
        409,
        "version",
        f"module 'lone' has no active version; activate one of {waiting['version']}",
    )


async def test_the_same_content_is_the_same_version(site):
    first = await put(site, "m", ONE)
    again = await put(site, "m", ONE)
    assert (first["status"], again["status"]) == (201, 200)
    assert first["etag"] == again["etag"]
    named = await put(site, "m", ONE | {"version": "1.0"})
    assert named["version"] == "1.0"
    status, field, detail = await refused(site, "PUT", "/modules/m", TWO | {"version": "1.0"})
    assert (status, field) == (409, "version")
    assert "versions do not change" in detail


async def test_a_patch_changes_some_fields_and_keeps_the_code(site):
    await put(site, "m", ONE | {"version": "1.0", "tags": ["a"], "retry": {"attempts": 3}})
    status, _, body = await site.ask("PATCH", "/modules/m", {"timeout": "5s", "tags": None, "retry": {"on": ["lost"]}})
    patched = json.loads(body)
    assert (status, patched["timeout"], patched["tags"]) == (201, 5.0, [])
    assert (patched["retry"]["attempts"], patched["retry"]["on"]) == (3, ["lost"])
    assert patched["version"] not in ("1.0", None)
    assert await call(site, "m") == 1
    assert (await refused(site, "PATCH", "/modules/m", {"name": "n"}))[1] == "name"
    assert (await refused(site, "PATCH", "/modules/nothing", {"timeout": 5}))[0] == 404


async def test_a_change_of_an_outdated_state_is_refused(site):
    first = await put(site, "m", ONE)
    second = await put(site, "m", TWO, If_Match=first["etag"])
    status, field, detail = await refused(site, "PUT", "/modules/m", ONE, If_Match=first["etag"])
    assert (status, field) == (412, "if-match")
    assert "look at it again" in detail
    assert (await refused(site, "DELETE", "/modules/m", If_Match=first["etag"]))[0] == 412
    path = f"/modules/m/versions/{first['version']}/activate"
    assert (await refused(site, "POST", path, If_Match=first["etag"]))[0] == 412
    _, head, _ = await site.ask("GET", "/modules/m")
    assert head[b"etag"].decode() == second["etag"]
    assert (await refused(site, "PUT", "/modules/m", ONE, If_None_Match="*"))[0] == 412
    assert (await refused(site, "PUT", "/modules/other", ONE, If_Match="*"))[0] == 412
    for malformed in ("W/abc", 'W/"1"', '"1", "2"', '""', '"'):
        assert (await refused(site, "PUT", "/modules/m", ONE, If_Match=malformed))[:2] == (400, "if-match")
    for of_another in ('"0"', '"a1b2c3d4e5f60718"', f'"{"9" * 30}"'):
        assert (await refused(site, "PUT", "/modules/m", ONE, If_Match=of_another))[:2] == (412, "if-match")
    assert (await site.ask("PUT", "/modules/m", ONE, If_Match="*"))[0] == 200


async def test_of_many_changes_of_the_same_state_one_succeeds(site):
    first = await put(site, "m", ONE)
    statuses = []

    async def change(number):
        body = {"env": "inline", "code": f"def handler(input): return {number}"}
        statuses.append((await site.ask("PUT", "/modules/m", body, If_Match=first["etag"]))[0])

    async with trio.open_nursery() as nursery:
        for number in range(10, 18):
            nursery.start_soon(change, number)
    assert sorted(statuses) == [201, *[412] * 7]
    assert len((await versions(site, "m"))["items"]) == 2


async def test_statistics_outlive_a_module_and_an_unknown_name_has_none(site):
    await put(site, "m", ONE)
    assert (await site.json("GET", "/modules/m/stats"))["total"] == 0
    await call(site, "m")
    assert (await site.ask("DELETE", "/modules/m"))[0] == 204
    assert (await site.json("GET", "/modules/m/stats"))["total"] == 1
    status, field, detail = await refused(site, "GET", "/modules/file/stats")
    assert (status, field) == (404, "name")
    assert "did you mean filed?" in detail


async def test_modules_of_the_file_cannot_be_changed_over_the_api(site):
    for method, path, body in (
        ("PUT", "/modules/filed", ONE),
        ("POST", "/modules", {"name": "filed", **ONE}),
        ("PATCH", "/modules/filed", {"timeout": 3}),
        ("DELETE", "/modules/filed", None),
    ):
        status, field, detail = await refused(site, method, path, body)
        assert (status, field) == (409, "name")
        assert "operator's file" in detail
    etag = (await site.ask("GET", "/modules/filed"))[1][b"etag"].decode()
    status, field, _ = await refused(site, "PUT", "/modules/filed", ONE, If_Match=etag)
    assert (status, field) == (409, "name"), "its own etag makes no difference"
    assert await call(site, "filed") == "of the file"
    assert (await versions(site, "filed"))["items"][0]["active"] is True
    assert (await site.json("GET", "/modules/filed"))["source"] == "file"


async def test_a_module_of_the_file_overrides_a_registered_one_while_it_is_there(site):
    await put(site, "m", ONE)
    registry = site.service.registry
    await registry.publish([FILED, inline("m", "def handler(input): return 'filed'")])
    assert await call(site, "m") == "filed"
    assert len((await versions(site, "m"))["items"]) == 1
    await registry.publish([FILED])
    assert await call(site, "m") == 1
    entries = (await site.json("GET", "/audit?module=m"))["items"]
    assert [entry["action"] for entry in entries] == ["file_remove", "file_add", "register"]
    assert entries[0]["subject"] == "operator's file"


async def test_registered_modules_survive_a_restart(tmp_path):
    async with open_site(tmp_path, (FILED,)) as site:
        first = await put(site, "m", ONE)
        second = await put(site, "m", TWO)
        await put(site, "gone", ONE)
        assert (await site.ask("DELETE", "/modules/gone"))[0] == 204
    async with open_site(tmp_path, (FILED,)) as site:
        assert await call(site, "m") == 2
        assert await call(site, "m", f"?version={first['version']}") == 1
        assert (await site.ask("GET", "/modules/gone"))[0] == 404
        assert (await site.ask("GET", "/modules/m"))[1][b"etag"].decode() == second["etag"]
        again = await site.json("GET", "/modules/m")
        assert {name: again[name] for name in ("digest", "published_at", "published_by", "version")} == {
            name: second[name] for name in ("digest", "published_at", "published_by", "version")
        }


async def test_code_lost_on_the_disk_is_restored_from_the_catalog(tmp_path):
    async with open_site(tmp_path, ()) as site:
        await put(site, "m", ONE)
        (folder,) = (tmp_path / "data" / "code").iterdir()
        (folder / "main.py").unlink()
        folder.rmdir()
    async with open_site(tmp_path, ()) as site:
        assert await call(site, "m") == 1


async def test_a_running_module_is_deleted_only_by_force_and_its_history_stays(site):
    await put(site, "m", HANGS)
    accepted = await site.json("POST", "/executions", {"module": "m"})
    path = f"/executions/{accepted['id']}"

    async def running():
        return (await site.json("GET", path))["status"] == "running"

    with trio.fail_after(PATIENCE):
        while not await running():
            await trio.sleep(0.01)
    status, field, detail = await refused(site, "DELETE", "/modules/m")
    assert (status, field) == (409, "force")
    assert "an execution of it runs or waits" in detail
    assert (await site.ask("DELETE", "/modules/m?force=true"))[0] == 204
    ended = await site.json("GET", path)
    assert (ended["status"], ended["error"]["message"]) == ("cancelled", "the module was deleted by kim")
    assert (await refused(site, "POST", "/modules/execute/m"))[0] == 404
    assert (await refused(site, "DELETE", "/modules/m"))[0] == 404


async def test_a_running_call_ends_on_its_version_and_later_calls_use_the_next(site):
    code = "import os, time\ndef handler(input):\n    open(input[0], 'w').close()\n"
    code += "    while not os.path.exists(input[1]): time.sleep(0.01)\n    return 'one'"
    await put(site, "m", {"env": "inline", "code": code})
    began, go = (site.service.settings.store.data_dir.parent / name for name in ("began", "go"))
    answers = []

    async def first():
        answers.append((await site.json("POST", "/modules/execute/m", [str(began), str(go)]))["result"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(first)
        await wait_until(began.exists, "the first call does not begin")
        await put(site, "m", TWO)
        assert await call(site, "m") == 2
        go.touch()
    assert answers == ["one"]


async def test_only_an_inactive_version_can_be_deleted_alone(site):
    first = await put(site, "m", ONE)
    second = await put(site, "m", TWO)
    status, field, _ = await refused(site, "DELETE", f"/modules/m/versions/{second['version']}")
    assert (status, field) == (409, "version")
    assert (await site.ask("DELETE", f"/modules/m/versions/{first['version']}"))[0] == 204
    assert (await refused(site, "POST", f"/modules/execute/m?version={first['version']}"))[0] == 404
    assert len((await versions(site, "m"))["items"]) == 1


async def test_old_versions_above_the_limit_are_removed_but_never_the_active_one(site):
    object.__setattr__(site.service.registry.settings, "max_versions", 3)
    made = [await put(site, "m", {"env": "inline", "code": f"def handler(input): return {n}"}) for n in range(3)]
    await site.json("POST", f"/modules/m/versions/{made[0]['version']}/activate")
    made += [
        await put(site, "m", {"env": "inline", "code": f"def handler(input): return {n}"}, "?activate=false")
        for n in (3, 4)
    ]
    found = [each["version"] for each in (await versions(site, "m"))["items"]]
    assert found == [made[4]["version"], made[3]["version"], made[0]["version"]]


@pytest.mark.parametrize(
    ("body", "field", "words"),
    [
        ({"env": "inline"}, None, "has no code"),
        ({"env": "inline", "code": "def handler(input) return 1"}, "code", "line 1"),
        ({"env": "inlin", "code": ONE["code"]}, "env", "did you mean 'inline'"),
        ({**ONE, "tiemout": 3}, "tiemout", "did you mean 'timeout'"),
        ({**ONE, "isolation": "none"}, "isolation", "only for the operator's modules file"),
        ({"env": "inline", "path": "/etc"}, "path", "only for the operator's modules file"),
        ({**ONE, "input_schema": {"type": "nothing"}}, "input_schema.type", "nothing"),
        ({**ONE, "prepare": "yes"}, "prepare", "true or false"),
        ({**ONE, "name": "other"}, "name", "the path names"),
        ({"env": "inline", "code": "def handle(input): pass"}, "handler", "handle"),
        ([1], "$", "does not describe a module"),
        (b"{", "$", "not JSON"),
    ],
)
async def test_a_wrong_module_is_refused_with_its_field_and_changes_nothing(site, body, field, words):
    status, told, detail = await refused(site, "PUT", "/modules/m", body)
    assert (status, told or None) == (400, field)
    assert words in detail
    assert (await site.ask("GET", "/modules/m"))[0] == 404


async def test_with_prepare_a_module_that_cannot_be_imported_is_refused_and_a_good_one_is_warm(site):
    broken = {"env": "inline", "code": "import nothing_of_that_name\ndef handler(input): return 1"}
    status, _, detail = await refused(site, "PUT", "/modules/m?prepare=true", broken)
    assert (status, "nothing_of_that_name" in detail) == (424, True)
    assert (await site.ask("GET", "/modules/m"))[0] == 404
    await put(site, "m", ONE, "?prepare=true")
    statistics = site.service.executors[Kind.INLINE].statistics()
    assert (statistics.workers, statistics.idle) == (1, 1)
    timings = (await site.json("POST", "/modules/execute/m"))["timings"]
    assert (timings["start"], timings["import"]) == (0.0, 0.0)


async def test_impossible_requirements_are_refused_before_anything_is_registered(site):
    body = {
        "env": "venv",
        "code": ONE["code"],
        "requirements": ["nothing @ https://127.0.0.1:1/nothing-1-py3-none-any.whl"],
    }
    status, _, detail = await refused(site, "PUT", "/modules/m", body)
    assert (status, "nothing" in detail) == (424, True)
    assert (await site.ask("GET", "/modules/m"))[0] == 404


async def test_a_token_changes_and_sees_only_its_modules(site):
    await put(site, "mine-1", ONE)
    await put(site, "yours", ONE)
    scopes = ["modules:read", "modules:write", "executions:run"]
    site.token = sign(SECRET, subject="lee", scopes=scopes, expires_seconds=60, modules=["mine-*"])
    assert [each["name"] for each in (await site.json("GET", "/modules"))["items"]] == ["mine-1"]
    for method, path, body in (
        ("PUT", "/modules/yours", TWO),
        ("PUT", "/modules/nobodys", TWO),
        ("POST", "/modules", {"name": "theirs", **ONE}),
        ("GET", "/audit", None),
    ):
        assert (await refused(site, method, path, body))[0] == 403, path
    assert (await put(site, "mine-2", ONE))["published_by"] == "lee"
    for method, path in (("GET", "/modules/mine-yours"), ("DELETE", "/modules/mine-yours"), ("GET", "/modules/mine-3")):
        told = (await refused(site, method, path))[2]
        assert " yours" not in told.replace("mine-yours", ""), told
    site.token = sign(SECRET, subject="lee", scopes=["modules:read"], expires_seconds=60)
    assert (await refused(site, "PUT", "/modules/mine-2", TWO))[0] == 403
    site.token = sign(SECRET, subject="boss", scopes=["admin"], expires_seconds=60, modules=["mine-*"])
    assert {each["module"] for each in (await site.json("GET", "/audit"))["items"]} == {"mine-1", "mine-2"}


async def test_modules_are_found_by_several_kinds_and_tags(site):
    await put(site, "a", ONE | {"tags": ["x", "y"]})
    await put(site, "b", {"env": "venv", "code": ONE["code"], "tags": ["x"]})

    async def names(query):
        return [each["name"] for each in (await site.json("GET", f"/modules{query}"))["items"]]

    assert await names("?tag=x") == ["a", "b"]
    assert await names("?tag=x&tag=y") == ["a"]
    assert await names("?env=venv&env=docker") == ["b"]
    assert await names("?env=venv&env=inline&limit=2") == ["a", "b"]
    assert (await refused(site, "GET", "/modules?env=nothing"))[1] == "env"


async def test_the_audit_log_has_pages(site):
    first = await put(site, "m", ONE)
    await put(site, "m", TWO)
    await site.json("POST", f"/modules/m/versions/{first['version']}/activate")
    page = await site.json("GET", "/audit?limit=2")
    assert [(each["action"], each["subject"]) for each in page["items"]] == [("activate", "kim"), ("register", "kim")]
    rest = await site.json("GET", f"/audit?limit=2&cursor={page['cursor']}")
    assert [each["version"] for each in rest["items"]] == [first["version"]]
    assert rest["cursor"] is None
    assert (await refused(site, "GET", "/audit?action=nothing"))[1] == "action"
    assert (await refused(site, "GET", "/audit?cursor=-1"))[1] == "cursor"


async def test_a_version_that_cannot_be_served_does_not_stop_the_runner_from_starting(tmp_path):
    async with open_site(tmp_path, ()) as site:
        await put(site, "m", ONE)
        await put(site, "n", TWO)
        catalog = site.service.registry.catalog
        with catalog._engine.connect() as link, link.begin():
            link.exec_driver_sql('update versions set spec = \'{"name": "m", "env": "lost"}\' where module = \'m\'')
    async with open_site(tmp_path, ()) as site:
        assert await call(site, "n") == 2
        assert (await refused(site, "POST", "/modules/execute/m"))[0] == 409
        await put(site, "m", TWO)
        assert await call(site, "m") == 2


ZIP = {"Content_Type": "application/zip"}


async def test_a_template_can_be_uploaded_and_called(site):
    status, head, starter = await site.ask("GET", "/modules/template?name=started&env=inline")
    assert (status, head[b"content-type"]) == (200, b"application/zip")
    status, head, answer = await site.ask("POST", "/modules/upload?prepare=true", starter, **ZIP)
    assert status == 201, answer
    assert json.loads(answer)["name"] == "started"
    assert (await site.ask("POST", "/modules/execute/started", {"name": "you"}))[0] == 200


async def test_a_dry_run_of_an_upload_finds_all_mistakes_and_registers_nothing(site):
    good = pack({"handler.py": b"def handler(input): return 1"})
    assert (await site.ask("POST", "/modules/upload?name=m&dry_run=true", good, **ZIP))[::2] == (204, b"")
    bad = pack({"handler.py": b"def handler(input) return 1"})
    status, field, words = await refused(site, "POST", "/modules/upload?name=m&dry_run=true", bad, **ZIP)
    assert (status, field) == (400, "path")
    assert "handler.py:1" in words
    assert (await refused(site, "POST", "/modules/upload?name=filed&dry_run=true", good, **ZIP))[0] == 409
    assert (await refused(site, "POST", "/modules/upload?name=m&dry_run=true", good, If_Match='"7"', **ZIP))[0] == 412
    assert (await site.ask("GET", "/modules/m"))[0] == 404


async def test_an_uploaded_module_keeps_its_files_after_a_restart_and_a_patch(tmp_path):
    code = b"import pathlib\ndef handler(input): return pathlib.Path(__file__).with_name('data.txt').read_text()\n"
    archive = pack({"handler.py": code, "data.txt": b"said", "module.yaml": b"tags: [x]\ndescription: d\n"})
    async with open_site(tmp_path, ()) as site:
        status, head, answer = await site.ask("POST", "/modules/upload?name=m", archive, **ZIP)
        assert (status, json.loads(answer)["tags"]) == (201, ["x"]), answer
        assert await call(site, "m") == "said"
        etag = head[b"etag"].decode()
        assert (await site.ask("POST", "/modules/upload?name=m", archive, If_Match=etag, **ZIP))[0] == 200
        assert (await site.ask("PATCH", "/modules/m", {"tags": ["y"]}))[0] == 201
        assert await call(site, "m") == "said"
    async with open_site(tmp_path, ()) as site:
        assert await call(site, "m") == "said"
        assert (await site.json("GET", "/modules/m"))["tags"] == ["y"]
        assert (await site.ask("PATCH", "/modules/m", {"code": ONE["code"]}))[0] == 201
        assert await call(site, "m") == 1


@pytest.mark.parametrize(
    ("files", "query", "status", "field", "words"),
    [
        (b"no zip at all", "?name=m", 400, "archive", ""),
        ({"handler.py": b"def handler(input): pass"}, "", 400, "name", "is missing"),
        ({"handler.py": b"def handler(input) pass"}, "?name=m", 400, "path", "handler.py:1"),
        ({"handler.py": b"def other(input): pass"}, "?name=m", 400, "handler", "other"),
        (
            {"handler.py": b"handler = print", "module.yaml": b"name: m\ntiemout: 3"},
            "",
            400,
            "tiemout",
            "module.yaml:2",
        ),
        ({"handler.py": b"def handler(input): pass"}, "?name=filed", 409, "name", "operator's file"),
        ({"handler.py": b"def handler(input): pass"}, "?name=template", 400, "name", "reserved for routes"),
        (
            {"handler.py": b"def handler(input): pass", "module.yaml": b"isolation: none"},
            "?name=m",
            400,
            "isolation",
            "",
        ),
    ],
)
async def test_an_archive_without_a_module_is_refused_with_the_place(site, files, query, status, field, words):
    data = files if isinstance(files, bytes) else pack(files)
    told = await refused(site, "POST", f"/modules/upload{query}", data, **ZIP)
    assert told[:2] == (status, field), told
    assert words in told[2]
    assert (await site.ask("GET", "/modules/m"))[0] == 404


async def test_an_upload_is_the_zip_itself_and_its_name_is_allowed_by_the_token(site):
    status, field, detail = await refused(site, "POST", "/modules/upload", b"--x", Content_Type="text/plain")
    assert (status, field) == (415, "content-type")
    assert "--data-binary" in detail
    assert "curl -F" in detail
    site.token = sign(SECRET, subject="lee", scopes=["modules:write"], expires_seconds=60, modules=["mine-*"])
    archive = pack({"handler.py": b"def handler(input): pass"})
    assert (await refused(site, "POST", "/modules/upload?name=yours", archive, **ZIP))[0] == 403


async def test_source_is_checked_under_the_python_that_will_run_it(site):
    later = f"3.{sys.version_info.minor + 1}"
    if await site.service.executors[Kind.VENV].environment.find(later) is None:
        pytest.skip(f"there is no Python {later} on this machine")
    body = {"env": "venv", "python": later, "code": "def handler(input) return 1"}
    status, field, detail = await refused(site, "PUT", "/modules/m", body)
    assert (status, field, "line 1" in detail) == (400, "code", True)


async def test_large_source_is_checked_in_another_process(site):
    """Compiling takes up to the square of the size, so it has a process of its own and a time limit."""
    filler = "".join(f"x{number} = [{number}]\n" for number in range(2000))
    good = filler + ONE["code"]
    assert await call(site, (await put(site, "m", {"env": "inline", "code": good}))["name"]) == 1
    told = await refused(site, "PUT", "/modules/n", {"env": "inline", "code": filler + "def handle(input): pass"})
    assert (told[:2], "handle" in told[2]) == ((400, "handler"), True)
    told = await refused(site, "PUT", "/modules/n", {"env": "inline", "code": filler + "def handler(input) pass"})
    assert (told[:2], "line 2001" in told[2]) == ((400, "code"), True)


async def test_refused_and_deleted_versions_leave_no_code(site):
    def kept():
        return sorted(path.name.rpartition("-")[0] for path in (site.service.registry.publisher.code_dir).iterdir())

    await put(site, "m", ONE | {"version": "1"})
    for number in range(3):
        other = {"env": "inline", "code": f"def handler(input): return {number} + 10", "version": "1"}
        assert (await refused(site, "PUT", "/modules/m", other))[0] == 409
    assert kept() == ["filed", "m"]
    first = (await versions(site, "m"))["active"]
    await put(site, "m", TWO)
    assert kept() == ["filed", "m", "m"]
    assert (await site.ask("DELETE", f"/modules/m/versions/{first}"))[0] == 204
    assert kept() == ["filed", "m"]
    assert await call(site, "m") == 2
    assert (await site.ask("DELETE", "/modules/m"))[0] == 204
    assert kept() == ["filed"]


async def test_a_failed_load_does_not_prevent_the_same_without_prepare(site):
    raises = {"env": "inline", "code": "raise ValueError(1)\ndef handler(input): return 1"}
    assert (await refused(site, "PUT", "/modules/m?prepare=true", raises))[0] == 424
    assert (await put(site, "m", raises))["status"] == 201


@pytest.mark.parametrize("number", ["9" * 5000, "1e999"])
async def test_numbers_out_of_every_range_are_bad_input(site, number):
    body = b'{"env": "inline", "code": "def handler(input): pass", "timeout": %s}' % number.encode()
    assert (await refused(site, "PUT", "/modules/m", body))[0] == 400
    hex_number = pack({"handler.py": b"handler = print", "module.yaml": b"timeout: 0x" + b"f" * 4000})
    assert (await refused(site, "POST", "/modules/upload?name=m", hex_number, **ZIP))[0] == 400


def test_fields_of_a_module_are_merged_by_rfc_7396():
    assert merged({"a": 1, "b": {"c": 2, "d": 3}}, {"b": {"c": None, "e": {"f": None}}, "g": 4}) == {
        "a": 1,
        "b": {"d": 3, "e": {}},
        "g": 4,
    }
    assert merged({"a": [1, 2]}, {"a": [3]}) == {"a": [3]}
