"""Contract: endpoints of registered modules: the scope for publishing them, conflicts, and where they are shown."""

from __future__ import annotations

import json

import pytest
import structlog
from openapi_spec_validator import validate

from config.modules import Auth, EndpointSpec
from config.settings import ServerSettings
from runner.auth.tokens import sign
from tests.contract.test_modules import put, refused
from tests.contract.test_streams import SECRET, open_site
from tests.support import inline

CODE = "def handler(input): return '{}'"


def module(path, *, text="one", auth="none", **fields):
    endpoint = {"path": path, "auth": auth, **fields}
    return {"env": "inline", "code": CODE.format(text), "endpoints": [endpoint]}


OWN = inline("own", CODE.format("own"), endpoints=(EndpointSpec("/own/{event}", auth=Auth.NONE),))


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (OWN,)) as opened:
        yield opened


async def answer(site, path):
    status, _, body = await site.ask("POST", f"/http{path}")
    return body.decode() if status == 200 else status


async def test_endpoints_are_served_while_their_version_is_active(site):
    first = await put(site, "m", module("/a"))
    assert await answer(site, "/a") == "one"
    await put(site, "m", module("/b", text="two"))
    assert (await answer(site, "/a"), await answer(site, "/b")) == (404, "two")

    await site.ask("POST", f"/modules/m/versions/{first['version']}/activate")
    assert (await answer(site, "/a"), await answer(site, "/b")) == ("one", 404)
    assert (await site.ask("DELETE", "/modules/m"))[0] == 204
    assert await answer(site, "/a") == 404


async def test_endpoints_need_a_scope_of_their_own(site):
    first = await put(site, "m", module("/a"))
    plain = await put(site, "m", {"env": "inline", "code": CODE.format("plain")})
    site.token = sign(SECRET, subject="lee", scopes=["modules:read", "modules:write"], expires_seconds=60)

    status, field, detail = await refused(site, "PUT", "/modules/n", module("/n"))
    assert (status, field) == (403, "endpoints")
    assert "modules:admin" in detail
    status, _, _ = await refused(site, "POST", f"/modules/m/versions/{first['version']}/activate")
    assert status == 403
    assert (await site.ask("PATCH", "/modules/m", {"timeout": 5}))[0] == 201, "it has no endpoints"
    assert (await site.ask("POST", f"/modules/m/versions/{plain['version']}/activate"))[0] == 200

    site.token = sign(SECRET, subject="lee", scopes=["modules:admin"], expires_seconds=60)
    assert (await refused(site, "PUT", "/modules/n", module("/n")))[0] == 403, "besides modules:write"
    both = ["modules:write", "modules:admin"]
    site.token = sign(SECRET, subject="lee", scopes=both, expires_seconds=60)
    await put(site, "n", module("/n"))


async def test_code_behind_an_endpoint_is_changed_by_its_owner_only(site):
    await put(site, "m", module("/a"))
    site.token = sign(SECRET, subject="lee", scopes=["modules:read", "modules:write"], expires_seconds=60)

    assert (await refused(site, "PATCH", "/modules/m", {"code": CODE.format("mine")}))[0] == 403
    assert await answer(site, "/a") == "one"


async def test_a_conflict_is_refused_and_names_both(site):
    status, field, detail = await refused(site, "PUT", "/modules/m", module("/own/push"))
    assert (status, field) == (409, "endpoints[0].path")
    assert "POST /own/push conflicts with POST /own/{event} of module 'own'" in detail
    assert (await site.ask("GET", "/modules/m"))[0] == 404

    await put(site, "m", module("/a"))
    assert (await refused(site, "PUT", "/modules/n", module("/{x}")))[0] == 409
    await put(site, "m", module("/{x}", text="two"))


async def test_a_conflict_names_no_module_that_the_caller_may_not_use(site):
    first = await put(site, "a", module("/a"))
    await put(site, "a", module("/b"))
    await put(site, "m", module("/a"))
    scopes = ["modules:write", "modules:admin"]
    site.token = sign(SECRET, subject="lee", scopes=scopes, expires_seconds=3600, modules=["a"])

    for method, path, body in (
        ("PUT", "/modules/a", module("/own/push")),
        ("PATCH", "/modules/a", {"endpoints": [{"path": "/own/push"}]}),
        ("POST", f"/modules/a/versions/{first['version']}/activate", None),
    ):
        status, _, detail = await refused(site, method, path, body)
        assert status == 409
        assert "conflicts with an endpoint of another module" in detail
        assert "'own'" not in detail


async def test_a_conflict_is_refused_when_a_version_is_activated(site):
    waiting = await put(site, "m", module("/a"), "?activate=false")
    await put(site, "n", module("/a", text="two"))

    status, _, detail = await refused(site, "POST", f"/modules/m/versions/{waiting['version']}/activate")
    assert (status, "of module 'n'" in detail) == (409, True)
    assert (await refused(site, "PUT", "/modules/m", module("/a")))[0] == 409, "the same, by its content"
    assert await answer(site, "/a") == "two"


async def test_the_file_wins_over_a_registered_module(site):
    await put(site, "m", module("/a"))
    added = inline("added", CODE.format("file"), endpoints=(EndpointSpec("/{name}", auth=Auth.NONE),))
    with structlog.testing.capture_logs() as logs:
        await site.service.registry.publish([OWN, added])
    assert await answer(site, "/a") == "file"
    [warned] = [entry for entry in logs if entry["event"] == "an endpoint is not served"]
    assert "of module 'added'" in warned["why"]

    await site.service.registry.publish([OWN])
    assert await answer(site, "/a") == "one"


async def test_routes_are_made_again_only_for_other_endpoints(site):
    routes = site.service.registry.snapshot.routes
    await put(site, "plain", {"env": "inline", "code": CODE.format("plain")})
    assert site.service.registry.snapshot.routes is routes
    await put(site, "m", module("/a"))
    assert site.service.registry.snapshot.routes is not routes


async def test_a_wrong_endpoint_is_bad_input(site):
    status, field, detail = await refused(site, "PUT", "/modules/m", module("a"))
    assert (status, field) == (400, "endpoints[0].path")
    assert "write '/a'" in detail


async def test_modules_are_shown_with_the_address_of_their_endpoints(tmp_path):
    server = ServerSettings(external_url="https://example.org/runner")
    async with open_site(tmp_path, (OWN,), server=server) as site:
        shown = (await site.json("GET", "/modules/own"))["endpoints"]
        listed = (await site.json("GET", "/modules"))["items"][0]["endpoints"]
        secret = {"scheme": "github", "secret": "HOOK"}
        body = module("/m/{rest...}", auth="signature", signature=secret, wait=False) | {"secrets": ["HOOK"]}
        status, _, refusal = await site.ask("PUT", "/modules/m", body)

    endpoint = {"path": "/own/{event}", "methods": ["POST"], "auth": "none", "wait": True}
    assert shown == listed == [{**endpoint, "url": "https://example.org/runner/http/own/{event}"}]
    assert status == 400, "the secret is not set"
    assert "OPERATO_SECRET_HOOK" in refusal.decode()


async def test_the_names_of_secrets_are_shown_and_no_values(site, monkeypatch):
    monkeypatch.setenv("OPERATO_SECRET_HOOK", "value of the secret")
    signature = {"scheme": "stripe", "secret": ["HOOK"], "tolerance": "1m"}
    body = module("/m", auth="signature", signature=signature, wait=False) | {"secrets": ["HOOK"]}
    added = await put(site, "m", body)

    shown = {"secret": ["HOOK"], "scheme": "stripe", "tolerance": 60.0}
    endpoint = {"path": "/m", "methods": ["POST"], "auth": "signature", "signature": shown, "wait": False}
    assert added["endpoints"] == [{**endpoint, "url": "/http/m"}]
    assert "value of the secret" not in json.dumps(added)


async def test_registered_endpoints_are_served_after_a_restart(tmp_path):
    async with open_site(tmp_path, (OWN,)) as site:
        await put(site, "m", module("/m/{rest...}", methods=["POST", "GET"]))
    async with open_site(tmp_path, (OWN,)) as site:
        assert await answer(site, "/m/a/b") == "one"
        patched = await site.json("PATCH", "/modules/m", {"timeout": 5})
        assert patched["endpoints"][0]["methods"] == ["POST", "GET"]
        assert await answer(site, "/m/a/b") == "one"


async def test_the_document_lists_endpoints(site):
    body = module("/m/{name}/{rest...}", auth="token", methods=["GET", "PUT"], wait=False)
    await put(site, "m", body)
    document = await site.json("GET", "/openapi.json")

    validate(document)
    own, listed = document["paths"]["/http/own/{event}"], document["paths"]["/http/m/{name}/{rest}"]
    assert (own.keys(), own["post"]["security"]) == ({"post"}, [])
    assert listed.keys() == {"get", "put"}
    assert [each["name"] for each in listed["get"]["parameters"]] == ["name", "rest"]
    assert "202" in listed["put"]["responses"]
    assert ("requestBody" in listed["get"], "requestBody" in listed["put"]) == (False, True)

    site.token = sign(
        SECRET, subject="lee", scopes=["executions:run", "modules:read"], expires_seconds=60, modules=["m"]
    )
    assert "/http/own/{event}" not in (await site.json("GET", "/openapi.json"))["paths"]
