"""Contract: every route of the table, its methods and its path; browsers, proxies, and the way from `/`."""

from __future__ import annotations

import json
import re
from collections import defaultdict

import pytest
import structlog
from trio_websocket import ConnectionRejected

from config.settings import ServerSettings
from runner.auth.tokens import sign
from runner.http import OUTSIDE, WEBSOCKET, Outside
from runner.rest.openapi.operations import OPERATIONS
from runner.rest.routing.paths import Paths, choose, methods
from runner.rest.routing.proxies import Proxies
from tests.contract.test_streams import ECHO, SECRET, messages_of, open_site
from tests.support import WAIT_FOR, inline

HOSTS = {"name": "echo", "id": "01a226eb-f63e-73f4-abed-a47be3219c89", "version": "1"}
PAGE = "https://app.example.org"
DASHBOARD = "http://localhost:5173"


def concrete(path):
    return re.sub(r"\{(\w+)\}", lambda found: HOSTS[found[1]], path)


def routes():
    """Return the methods of each path of the table, by the path."""
    found = defaultdict(set)
    for operation in OPERATIONS:
        found[operation.path].add(operation.method)
    return found


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (ECHO,)) as opened:
        yield opened


@pytest.fixture
async def browsed(tmp_path):
    server = ServerSettings(cors_origins=(PAGE, DASHBOARD))
    async with open_site(tmp_path, (ECHO,), server=server) as opened:
        yield opened


# -- methods ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", routes())
async def test_every_route_answers_options_and_other_methods_with_allow(site, path):
    given = {"GET" if method == WEBSOCKET else method for method in routes()[path]}
    at_least = given | {"OPTIONS"} | ({"HEAD"} if "GET" in given else set())

    status, headers, body = await site.ask("OPTIONS", concrete(path))
    allowed = set(headers[b"allow"].decode().upper().split(", "))
    assert (status, body) == (204, b"")
    assert b"content-length" not in headers
    assert at_least <= allowed

    refused = [method for method in ("GET", "PUT", "POST", "PATCH", "DELETE", "TRACE", "BREW") if method not in allowed]
    assert refused
    for method in refused:
        status, headers, body = await site.ask(method, concrete(path))
        problem = json.loads(body)
        assert (status, problem["status"]) == (405, 405), (method, path)
        assert set(headers[b"allow"].decode().upper().split(", ")) == allowed
        assert f"{method} is not possible at {concrete(path)}" in problem["detail"]


@pytest.mark.parametrize("path", [path for path, given in routes().items() if "GET" in given])
async def test_head_is_get_without_its_body(site, path):
    status, headers, body = await site.ask("GET", concrete(path)) if "/events" not in path else (404, {}, b"")
    client = await site.server.connect()
    async with client.stream:
        await client.send(site.head("HEAD", concrete(path)) + site.head("GET", "/healthz"))
        same, shown, nothing = await client.response(head_only=True)
        assert (same, nothing) == (status, b"")
        if body:
            assert shown[b"content-type"] == headers[b"content-type"]
        assert json.loads((await client.response())[2]) == {"status": "ok"}, "a body after all"


async def test_head_of_a_stream_has_its_head_and_starts_nothing(site):
    accepted = await site.json("POST", "/executions", {"module": "echo", "input": 1})
    client = await site.server.connect()
    async with client.stream:
        await client.send(site.head("HEAD", f"/executions/{accepted['id']}/events") + site.head("GET", "/healthz"))
        status, headers, _ = await client.response(head_only=True)
        assert (status, headers[b"content-type"]) == (200, b"text/event-stream")
        assert json.loads((await client.response())[2]) == {"status": "ok"}


async def test_options_of_the_server_names_all_methods(site):
    status, headers, _ = await site.ask("OPTIONS", "*")

    assert status == 204
    assert headers[b"allow"] == b"delete, get, head, options, patch, post, put"


async def test_a_websocket_route_tells_plain_http_to_upgrade(site):
    for method in ("GET", "HEAD"):
        client = await site.server.connect()
        async with client.stream:
            await client.send(site.head(method, "/modules/stream/echo"))
            status, headers, _ = await client.response(head_only=method == "HEAD")
            assert (status, headers[b"upgrade"]) == (426, b"websocket")


# -- paths -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "//modules",
        "/modules/",
        "/modules//",
        "/modules/echo/",
        "/modules//echo",
        "/modules/execute/",
        "/modules/execute//",
        "/modules/execute/a/b",
        "/modules/execute//batch",
        "/executions//events",
        "//executions/x",
        "/./modules",
        "/healthz/",
        "/nowhere",
    ],
)
async def test_nothing_of_a_path_is_skipped_or_joined(site, path):
    for method in ("GET", "POST"):
        status, headers, body = await site.ask(method, path)
        problem = json.loads(body)
        assert (status, "kind" in problem) == (404, False), (method, path)
        assert b"allow" not in headers


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/modules/..", ".."),
        ("/modules/a%2fb", "a/b"),
        ("/modules/a%2Fversions", "a/versions"),
        ("/modules/%2565cho", "%65cho"),
        ("/modules/%25252e", "%252e"),
        ("/modules/execute%2fecho", "execute/echo"),
        ("/modules/nothing%3fversion=1", "nothing?version=1"),
    ],
)
async def test_a_name_in_a_path_is_decoded_once(site, path, name):
    status, _, body = await site.ask("GET", path)

    problem = json.loads(body)
    assert (status, problem["kind"], problem["field"]) == (404, "not_found", "name")
    assert problem["detail"].startswith(f"there is no module {name!r}")


async def test_escapes_that_are_not_needed_mean_the_same(site):
    assert (await site.json("POST", "/m%6fdules/execute/e%63ho", 1))["result"] == 1
    assert (await site.json("GET", "/modules/%65cho"))["name"] == "echo"
    status, _, body = await site.ask("POST", "/modules/execute/a%2fb", 1)
    assert (status, json.loads(body)["detail"]) == (404, "there is no module 'a/b'")
    status, _, body = await site.ask("GET", "/executions/x%2foutput")
    assert (status, json.loads(body)["detail"]) == (404, "there is no execution 'x/output'")


@pytest.mark.parametrize(
    ("method", "path", "name"),
    [
        ("POST", "/modules/upload", "uploadModule"),
        ("GET", "/modules/upload", "getModule"),
        ("GET", "/modules/template", "getTemplate"),
        ("DELETE", "/modules/template", "deleteModule"),
        ("POST", "/modules/execute/batch", "execute"),
        ("POST", "/modules/execute/batch/batch", "executeBatch"),
        ("POST", "/modules/execute/prepare", "execute"),
        ("POST", "/modules/x/prepare", "prepareModule"),
        ("GET", "/modules/execute/stats", "getStats"),
        ("WEBSOCKET", "/modules/stream/stats", "stream"),
        ("GET", "/modules/stream/stats", "getStats"),
        ("HEAD", "/", "getIndex"),
    ],
)
def test_words_come_before_names(method, path, name):
    found = choose(Paths(OPERATIONS).find(path.encode()), method)

    assert found is not None
    assert found[0].name == name


def test_methods_of_a_path_are_those_of_all_its_operations():
    assert methods(Paths(OPERATIONS).find(b"/modules/upload")) == [
        *("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")
    ]
    assert Paths(OPERATIONS).find(b"host:443") == ()


# -- the way from / --------------------------------------------------------------------------------------------------


async def test_the_root_leads_browsers_to_the_page_and_others_to_links(site):
    status, headers, _ = await site.ask("GET", "/", Accept="text/html,application/xhtml+xml;q=0.9,*/*;q=0.8")
    assert (status, headers[b"location"], headers[b"vary"]) == (307, b"/docs", b"accept")

    index = json.loads((await site.ask("GET", "/?utm=x"))[2])
    assert index["name"] == "operato-runner"
    for path in index["links"].values():
        assert (await site.ask("GET", path))[0] == 200, path


# -- browsers --------------------------------------------------------------------------------------------------------


async def test_nothing_is_allowed_to_browsers_by_default(site):
    for method, path in (("GET", "/modules"), ("OPTIONS", "/modules"), ("GET", "/nowhere")):
        _, headers, _ = await site.ask(method, path, Origin=PAGE, Access_Control_Request_Method="GET")
        assert [name for name in headers if name.startswith(b"access-control") or name == b"vary"] == []


@pytest.mark.parametrize("path", routes())
async def test_a_preflight_allows_the_methods_and_headers_of_a_route(browsed, path):
    asked = {"Access_Control_Request_Method": "POST", "Access_Control_Request_Headers": "authorization, x-timeout"}
    status, headers, _ = await browsed.ask("OPTIONS", concrete(path), Authorization="", Origin=PAGE, **asked)

    assert status == 204
    assert headers[b"access-control-allow-origin"] == PAGE.encode()
    assert headers[b"access-control-allow-methods"] == headers[b"allow"]
    allowed = headers[b"access-control-allow-headers"].split(b", ")
    assert {b"authorization", b"content-type", b"x-timeout", b"idempotency-key", b"if-match"} <= set(allowed)
    assert b"access-control-allow-credentials" not in headers
    assert b"origin" in headers[b"vary"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/modules", 200),  # behind quart
        ("POST", "/modules/execute/echo", 200),  # ahead of it
        ("GET", "/nowhere", 404),
        ("PUT", "/modules/execute/echo", 405),
        ("GET", "/executions/x/events", 404),
    ],
)
async def test_pages_of_listed_origins_may_read_answers_and_failures(browsed, method, path, status):
    body = b"1" if method == "POST" else None
    found, headers, _ = await browsed.ask(method, path, body, Origin=PAGE)
    assert (found, headers[b"access-control-allow-origin"]) == (status, PAGE.encode())
    exposed = set(headers[b"access-control-expose-headers"].split(b", "))
    assert {b"location", b"retry-after", b"etag", b"x-request-id", b"x-execution-id"} <= exposed

    for other in ("https://evil.example.org", "null", f"{PAGE}.evil.org", PAGE.replace("https", "http")):
        found, headers, _ = await browsed.ask(method, path, body, Origin=other)
        assert found == status
        assert b"access-control-allow-origin" not in headers
        assert b"origin" in headers[b"vary"]


async def test_all_origins_without_credentials(tmp_path):
    async with open_site(tmp_path, (ECHO,), server=ServerSettings(cors_origins=("*",))) as site:
        _, headers, _ = await site.ask("GET", "/modules", Origin="null")
    assert headers[b"access-control-allow-origin"] == b"*"
    assert b"access-control-allow-credentials" not in headers


async def opens(site, path="/modules/stream/echo", subprotocols=(), headers=None, **more):
    """Return 101 and nothing, or the status and the problem of the refusal."""
    given = [("authorization", f"Bearer {site.token}")] if headers is None else headers
    try:
        async with site.socket(path, subprotocols=subprotocols or None, extra_headers=[*given, *more.items()]):
            return 101, {}
    except Exception as problem:
        found = problem
        while isinstance(found, BaseExceptionGroup):
            [found] = found.exceptions
        if not isinstance(found, ConnectionRejected):
            raise
        return found.status_code, json.loads(found.body)


async def test_a_websocket_is_for_pages_of_listed_origins_and_of_the_server(browsed):
    assert (await opens(browsed))[0] == 101, "a program"
    assert (await opens(browsed, origin=PAGE))[0] == 101
    assert (await opens(browsed, origin="http://127.0.0.1"))[0] == 101, "its own page"
    status, problem = await opens(browsed, origin="https://evil.example.org")
    assert (status, problem["kind"], problem["field"]) == (403, "forbidden", "origin")


async def test_a_websocket_is_for_every_page_with_a_token_by_default(site):
    assert (await opens(site, origin="https://evil.example.org"))[0] == 101
    assert (await opens(site, headers=[], origin="https://evil.example.org"))[0] == 401


# -- proxies ---------------------------------------------------------------------------------------------------------


def seen(trusted=("10.0.0.0/8", "127.0.0.1/32", "::1/128"), url=None, peer="127.0.0.1", **headers):
    """Return client, scheme and `Outside` of a request through proxies."""
    proxies = Proxies.of(ServerSettings(trusted_proxies=trusted, external_url=url))
    scope = {
        "type": "http",
        "scheme": "http",
        "client": (peer, 1234),
        "headers": [
            (name.lower().replace("_", "-").encode(), value.encode())
            for name, values in headers.items()
            for value in ([values] if isinstance(values, str) else values)
        ],
    }
    proxies.apply(scope)
    return scope["client"][0], scope["scheme"], scope.get(OUTSIDE)


FORWARDED = {
    "X_Forwarded_For": "198.51.100.7",
    "X_Forwarded_Proto": "https",
    "X_Forwarded_Host": "example.org",
    "X_Forwarded_Prefix": "/runner",
}
REACHED = ("198.51.100.7", "https", Outside("https://example.org/runner", "/runner"))


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        (FORWARDED, REACHED),
        (FORWARDED | {"X_Forwarded_Prefix": "/runner/"}, REACHED),
        (FORWARDED | {"X_Forwarded_For": "6.6.6.6, 198.51.100.7, 10.1.2.3"}, REACHED),
        (FORWARDED | {"X_Forwarded_For": ["6.6.6.6", "198.51.100.7"]}, REACHED),
        (FORWARDED | {"X_Forwarded_Host": "evil.org, example.org"}, REACHED),
        (FORWARDED | {"X_Forwarded_For": "198.51.100.7:5555"}, REACHED),
        (FORWARDED | {"Forwarded": "for=6.6.6.6;host=evil.org"}, REACHED),
        (
            {"Forwarded": 'for="[2001:db8::7]:4711";proto=https;host="example.org:8443"'},
            ("2001:db8::7", "https", Outside("https://example.org:8443", "")),
        ),
        (
            {"Forwarded": "for=6.6.6.6, for=198.51.100.7;proto=https;host=example.org, for=10.9.9.9;proto=http"},
            ("198.51.100.7", "https", Outside("https://example.org", "")),
        ),
        ({"Forwarded": "for=unknown;proto=https"}, ("127.0.0.1", "https", Outside("", ""))),
        ({"X_Forwarded_Prefix": "/runner"}, ("127.0.0.1", "http", Outside("/runner", "/runner"))),
        (
            {"X_Forwarded_Prefix": "/a/../b//evil", "X_Forwarded_Host": "a/b"},
            ("127.0.0.1", "http", Outside("", "")),
        ),
        ({"X_Forwarded_Prefix": "//evil.org"}, ("127.0.0.1", "http", Outside("", ""))),
        ({"X_Forwarded_Prefix": "/a/../../b"}, ("127.0.0.1", "http", Outside("", ""))),
        ({"X_Forwarded_Prefix": "/a/."}, ("127.0.0.1", "http", Outside("", ""))),
        ({"X_Forwarded_Prefix": "/.a/..b"}, ("127.0.0.1", "http", Outside("/.a/..b", "/.a/..b"))),
        ({"X_Forwarded_Proto": "javascript", "X_Forwarded_For": "<b>"}, ("127.0.0.1", "http", Outside("", ""))),
        ({"Forwarded": 'for="'}, ("127.0.0.1", "http", Outside("", ""))),
        ({}, ("127.0.0.1", "http", None)),
    ],
)
def test_a_trusted_proxy_is_believed(headers, expected):
    assert seen(**headers) == expected


def test_other_peers_are_not_believed():
    assert seen(peer="192.0.2.1", **FORWARDED) == ("192.0.2.1", "http", None)
    assert seen(trusted=(), **FORWARDED) == ("127.0.0.1", "http", None)
    assert seen(peer="::ffff:10.0.0.1", **FORWARDED) == REACHED, "an address of IPv4 on a socket of IPv6"


def test_the_external_url_wins_over_headers():
    fixed = Outside("https://fixed.example.org/x", "/x")
    assert seen(url=fixed.base, **FORWARDED) == ("198.51.100.7", "https", fixed)
    assert seen(trusted=(), url=fixed.base) == ("127.0.0.1", "http", fixed)


@pytest.mark.parametrize(
    ("server", "headers"),
    [
        (ServerSettings(external_url="https://example.org/runner"), {}),
        (ServerSettings(trusted_proxies=("127.0.0.1/32",)), FORWARDED),
    ],
    ids=["external_url", "trusted_proxies"],
)
async def test_links_lead_through_the_proxy(tmp_path, server, headers):
    async with open_site(tmp_path, (ECHO,), server=server) as site:
        order = {"module": "echo", "input": 1}
        ahead = await site.ask("POST", "/modules/execute/echo", 1, Prefer="respond-async", **headers)
        behind = await site.ask("POST", "/executions", order, **headers)
        for _, found, body in (ahead, behind):
            assert found[b"location"].decode() == f"/runner/executions/{json.loads(body)['id']}"
        document = json.loads((await site.ask("GET", "/openapi.json", **headers))[2])
        assert document["servers"] == [{"url": "https://example.org/runner"}]
        index = json.loads((await site.ask("GET", "/", **headers))[2])
        assert set(index["links"].values()) >= {"/runner/docs", "/runner/openapi.json"}
        assert (await site.ask("GET", "/", Accept="text/html", **headers))[1][b"location"] == b"/runner/docs"


async def test_without_a_proxy_headers_of_clients_change_nothing(site):
    _, headers, body = await site.ask("POST", "/executions", {"module": "echo", "input": 1}, **FORWARDED)
    assert headers[b"location"].decode() == f"/executions/{json.loads(body)['id']}"
    document = json.loads((await site.ask("GET", "/openapi.json", Host="evil.org", **FORWARDED))[2])
    assert "servers" not in document


async def test_the_log_has_the_client_behind_the_proxy(tmp_path, monkeypatch):
    async def broken(*_args, **_options):
        raise RuntimeError("a bug")

    server = ServerSettings(trusted_proxies=("127.0.0.1/32",))
    async with open_site(tmp_path, (ECHO,), server=server) as site:
        monkeypatch.setattr(type(site.service), "get", broken)
        with structlog.testing.capture_logs() as logs:
            await site.ask("GET", "/executions/x", **FORWARDED)
    assert [entry["client"] for entry in logs if entry["log_level"] == "error"] == ["198.51.100.7"]


# -- websockets ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "status", "kind"),
    [
        ("/modules/stream/nothing", 404, "not_found"),
        ("/modules/stream/echo?version=9", 404, "not_found"),
        ("/modules/stream/echo?colour=red", 400, "bad_input"),
        ("/executions/x/stream", 404, "not_found"),
        ("/executions/x/stream?from=-1", 400, "bad_input"),
        ("/nowhere", 404, "not_found"),
        ("/modules/execute/echo", 404, "not_found"),
        ("//modules/stream/echo", 404, "not_found"),
    ],
)
async def test_a_refused_handshake_is_a_problem(site, path, status, kind):
    found, problem = await opens(site, path)

    assert (found, problem["status"], problem["kind"]) == (status, status, kind)
    assert problem["detail"]


async def test_a_handshake_needs_one_token_with_the_scope(site):
    header, offered = ("authorization", f"Bearer {site.token}"), f"operato.bearer.{site.token}"
    assert (await opens(site, headers=[]))[0] == 401
    assert (await opens(site, headers=[("authorization", "Bearer x")]))[0] == 401
    assert (await opens(site, headers=[], subprotocols=[offered]))[0] == 101
    for subprotocols, headers in (([offered], [header]), ([offered, offered], []), ([], [header, header])):
        status, problem = await opens(site, headers=headers, subprotocols=subprotocols)
        assert (status, problem["kind"]) == (401, "unauthenticated")
        assert "several tokens" in problem["detail"]
    status, problem = await opens(site, headers=[header, ("idempotency-key", "k")])
    assert (status, problem["kind"]) == (400, "bad_input")
    reader = sign(SECRET, subject="kim", scopes=["executions:read"], expires_seconds=60)
    assert (await opens(site, headers=[("authorization", f"Bearer {reader}")]))[0] == 403


@pytest.mark.parametrize(("method", "path"), [("POST", "/modules/execute/echo"), ("GET", "/modules")])
async def test_two_tokens_are_refused(site, method, path):
    twice = {"X_A": f"1\r\nAuthorization: Bearer {site.token}"}
    status, _, body = await site.ask(method, path, **twice)

    assert (status, json.loads(body)["kind"]) == (401, "unauthenticated")
    assert "several tokens" in json.loads(body)["detail"]


async def test_a_handshake_is_refused_while_no_call_is_taken(tmp_path):
    flag = tmp_path / "flag"
    held = inline("held", WAIT_FOR + "def handler(input): wait_for(input)", concurrency=1)
    async with open_site(tmp_path, (held,), max_waiting=1) as site:
        async with site.socket("/modules/stream/held") as runs, site.socket("/modules/stream/held") as waits:
            for socket, state in ((runs, "running"), (waits, "queued")):
                await socket.send_message(json.dumps(str(flag)))
                while json.loads(await socket.get_message()).get("status") != state:
                    pass
            status, problem = await opens(site, "/modules/stream/held")
            assert (status, problem["kind"]) == (429, "overloaded")
            flag.touch()
            assert [(await messages_of(socket))[-1]["type"] for socket in (runs, waits)] == ["result", "result"]
        assert (await opens(site, "/modules/stream/held"))[0] == 101
        site.service.runs.stop(at_once=False)
        status, problem = await opens(site, "/modules/stream/held")
        assert (status, problem["kind"]) == (503, "shutdown")
