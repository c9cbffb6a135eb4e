"""Contract: endpoints of modules: routes, callers, the request that a handler gets, and the answer that it makes."""

from __future__ import annotations

import gzip
import json

import pytest
import trio

from actors.keys import ApiKeys
from config.modules import Auth, EndpointSpec, Method
from config.settings import MIB, AuthSettings, FilesSettings, ServerSettings
from protocol.model import Record
from runner.auth.tokens import Verifier, sign
from runner.rest.app import make_app
from tests.contract.test_streams import SECRET, Site, open_site
from tests.http_support import serving
from tests.support import inline, open_service, wait_until

ALL = tuple(Method)
SHOW = "def handler(input): return input"


def hook(name, code, path, *, auth=Auth.NONE, methods=(Method.POST,), wait=True, **fields):
    return inline(name, code, endpoints=(EndpointSpec(path, methods, auth, wait=wait),), **fields)


MODULES = (
    hook("show", SHOW, "/show/{name}", methods=ALL),
    hook("rest", "def handler(input): return input['$request']['params']", "/all/{rest...}", methods=(Method.GET,)),
    hook("given", "import json\ndef handler(input): return json.loads(input['$request']['body'])", "/given"),
    hook("fails", "def handler(input): raise ValueError('the secret path /srv')", "/fails"),
    hook("token", SHOW, "/token", auth=Auth.TOKEN),
    hook("key", SHOW, "/key", auth=Auth.KEY),
    hook("later", "def handler(input): return 1", "/later", wait=False),
    hook(
        "items",
        """
        import json, time, os
        def handler(input):
            for each in json.loads(input["$request"]["body"]):
                if isinstance(each, dict) and "fail" in each:
                    raise ValueError("no more")
                if isinstance(each, dict) and "wait" in each:
                    while not os.path.exists(each["wait"]):
                        time.sleep(0.002)
                    continue
                yield each
        """,
        "/items",
    ),
)


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, MODULES) as opened:
        yield opened


async def request_of(site, method, path, body=None, **headers):
    """Return the request as the handler of `show` got it."""
    status, _, answer = await site.ask(method, path, body, **headers)
    assert status == 200, answer
    return json.loads(answer)["$request"]


async def given(site, response):
    """Return the answer for a response of a handler."""
    return await site.ask("POST", "/http/given", json.dumps(response).encode())


# -- routes ------------------------------------------------------------------------------------------------------------


async def test_a_handler_gets_the_request(site):
    request = await request_of(site, "POST", "/http/show/a%2Fb?x=1&x=&y=%20z", b"hello", X_Own="1", Cookie="a=1")

    headers = dict(map(tuple, request.pop("headers")))
    assert request == {
        "method": "POST",
        "path": "/show/a/b",
        "params": {"name": "a/b"},
        "query": [["x", "1"], ["x", ""], ["y", " z"]],
        "client": "127.0.0.1",
        "body": "hello",
    }
    assert headers["x-own"] == "1"
    assert headers["cookie"] == "a=1"


async def test_secrets_of_callers_are_left_out_of_the_request(site):
    cookie = "operato_session=abc; theme=dark"
    request = await request_of(site, "POST", "/http/show/x", X_API_Key="opk_1", Cookie=cookie)

    names = dict(map(tuple, request["headers"]))
    assert not {"authorization", "x-api-key"} & names.keys()
    assert names["cookie"] == "theme=dark"
    assert request["body"] is None


@pytest.mark.parametrize(
    ("path", "status"),
    [("/http/show", 404), ("/http/show/", 404), ("/http/show/a/b", 404), ("/http//show/a", 404), ("/http/", 404)],
)
async def test_an_unknown_path_is_not_found(site, path, status):
    found, _, body = await site.ask("POST", path)
    assert (found, json.loads(body)["status"]) == (status, status)


async def test_a_name_may_stand_for_many_segments(site):
    _, _, body = await site.ask("GET", "/http/all/a/b%20c//d")
    assert json.loads(body) == {"rest": "a/b c//d"}
    assert (await site.ask("GET", "/http/all/"))[0] == 404


async def test_a_method_that_an_endpoint_does_not_have_is_named(site):
    status, headers, body = await site.ask("GET", "/http/token")
    assert (status, headers[b"allow"]) == (405, b"options, post")
    assert "GET is not possible at /http/token" in json.loads(body)["detail"]

    status, headers, _ = await site.ask("OPTIONS", "/http/show/x")
    assert (status, headers[b"allow"]) == (204, b"delete, get, head, options, patch, post, put")


async def test_head_is_answered_without_a_body(site):
    client = await site.server.connect()
    async with client.stream:
        await client.send(site.head("HEAD", "/http/show/x"))
        status, headers, _ = await client.response(head_only=True)
    assert status == 200
    assert int(headers[b"content-length"]) > 10


# -- callers -----------------------------------------------------------------------------------------------------------


async def test_a_token_is_needed_where_the_endpoint_says_it(site):
    assert (await site.ask("POST", "/http/token"))[0] == 200
    site.token = "wrong"
    status, headers, body = await site.ask("POST", "/http/token")
    assert (status, json.loads(body)["kind"]) == (401, "unauthenticated")
    assert b"www-authenticate" in headers
    assert (await site.ask("POST", "/http/show/x"))[0] == 200, "an open endpoint looks at no token"


@pytest.mark.parametrize(
    ("scopes", "modules", "status"),
    [(["executions:read"], [], 403), (["executions:run"], ["other-*"], 404), (["executions:run"], ["tok*"], 200)],
)
async def test_a_token_needs_scope_and_module(site, scopes, modules, status):
    site.token = sign(SECRET, subject="lee", scopes=scopes, expires_seconds=60, modules=modules)
    assert (await site.ask("POST", "/http/token"))[0] == status


async def test_a_key_is_a_token_too(tmp_path):
    keys = ApiKeys.open(tmp_path / "keys.db")
    given = {"scopes": ["executions:run"], "modules": (), "expires_at": None, "subject": "kim"}
    _, secret = await keys.create("ci", **given)
    verifier = Verifier(AuthSettings(), secret=SECRET)
    verifier.api_keys = keys
    async with open_service(tmp_path, MODULES) as service, serving(make_app(service, verifier)) as server:
        site = Site(service, server, secret)
        assert (await site.ask("POST", "/http/key"))[0] == 200
        assert (await site.ask("POST", "/http/token"))[0] == 200
        await keys.revoke(keys.all()[0], subject="kim")
        assert (await site.ask("POST", "/http/key"))[0] == 401
    await keys.aclose()


async def test_a_token_is_no_key(site):
    status, _, body = await site.ask("POST", "/http/key")
    assert status == 401
    assert "X-API-Key" in json.loads(body)["detail"]


async def test_the_client_is_that_of_a_trusted_proxy(tmp_path):
    server = ServerSettings(trusted_proxies=("127.0.0.1",))
    async with open_site(tmp_path, MODULES, server=server) as site:
        request = await request_of(site, "POST", "/http/show/x", X_Forwarded_For="203.0.113.7")
    assert request["client"] == "203.0.113.7"


async def test_pages_of_allowed_origins_may_call(tmp_path):
    server = ServerSettings(cors_origins=("https://app.example.org",))
    asked = {"Origin": "https://app.example.org", "Access_Control_Request_Method": "POST"}
    async with open_site(tmp_path, MODULES, server=server) as site:
        status, headers, _ = await site.ask("OPTIONS", "/http/token", **asked)
        assert (status, headers[b"access-control-allow-methods"]) == (204, b"options, post")
        _, headers, _ = await site.ask("POST", "/http/token", Origin="https://app.example.org")
        assert headers[b"access-control-allow-origin"] == b"https://app.example.org"
        _, headers, _ = await site.ask("POST", "/http/token", Origin="https://other.example.org")
        assert b"access-control-allow-origin" not in headers


# -- answers -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("result", "status", "content_type", "body"),
    [
        ({"a": 1}, 200, b"application/json", b'{"a":1}'),
        (None, 200, b"application/json", b"null"),
        ("text ü", 200, b"text/plain; charset=utf-8", "text ü".encode()),
        ({"$response": {}}, 200, b"text/plain; charset=utf-8", b""),
        ({"$response": {"status": 201, "json": [1]}}, 201, b"application/json", b"[1]"),
        ({"$response": {"text": "a,b", "headers": [["Content-Type", "text/csv"]]}}, 200, b"text/csv", b"a,b"),
        ({"$response": {"status": 302, "headers": [["location", "/x"]]}}, 302, b"text/plain; charset=utf-8", b""),
    ],
)
async def test_a_result_becomes_the_answer(site, result, status, content_type, body):
    found, headers, answer = await given(site, result)
    assert (found, headers[b"content-type"], answer) == (status, content_type, body)
    assert headers[b"x-content-type-options"] == b"nosniff"
    execution = await site.json("GET", f"/executions/{headers[b'x-execution-id'].decode()}")
    assert execution["status"] == "succeeded"


async def test_an_answer_without_a_body_has_none(site):
    status, headers, body = await given(site, {"$response": {"status": 204, "text": "x"}})
    assert (status, body) == (204, b"")
    assert b"content-length" not in headers


async def test_headers_may_be_repeated(site):
    client = await site.server.connect()
    response = json.dumps({"$response": {"headers": [["Set-Cookie", "a=1"], ["Set-Cookie", "b=2"]]}}).encode()
    async with client.stream:
        await client.send(site.head("POST", "/http/given", length=len(response)) + response)
        head = await client.until(b"\r\n\r\n")
    assert head.count(b"set-cookie: ") == 2


@pytest.mark.parametrize(
    ("response", "words"),
    [
        ({"status": 99}, "200 to 599"),
        ({"status": 101}, "200 to 599"),
        ({"status": "200"}, "cannot be read"),
        ({"text": 1}, "cannot be read"),
        ({"headers": {"a": "b"}}, "cannot be read"),
        ({"headers": [["a"]]}, "cannot be read"),
        ({"headers": [["x", "a\r\nSet-Cookie: b"]]}, "line end"),
        ({"headers": [["x", "a\nb"]]}, "line end"),
        ({"headers": [["x", "\u20ac"]]}, "not Latin-1"),
        ({"headers": [["x y", "1"]]}, "not the name of a header"),
        ({"headers": [["x:\r\n", "1"]]}, "not the name of a header"),
        ({"headers": [["", "1"]]}, "not the name of a header"),
        ({"headers": [["Content-Length", "5"]]}, "content-length; the runner sets it"),
        ({"headers": [["Transfer-Encoding", "chunked"]]}, "transfer-encoding"),
        ({"headers": [["Connection", "close"]]}, "connection"),
        ({"headers": [["Date", "now"]]}, "date"),
        ({"headers": [["X-Execution-Id", "1"]]}, "x-execution-id"),
        ({"headers": [["Access-Control-Allow-Origin", "*"]]}, "cors_origins"),
        ({"headers": [["Set-Cookie", "operato_session=1"]]}, "belong to the runner"),
        ({"headers": [["content-type", "a/b"], ["Content-Type", "c/d"]]}, "given twice"),
        ({"headers": [["x", "y" * 20_000]]}, "over 16384 bytes"),
    ],
)
async def test_a_response_that_cannot_be_sent_is_bad_output(tmp_path, response, words):
    module = hook("given", f"def handler(input): return {{'$response': {response!r}}}", "/given", auth=Auth.TOKEN)
    async with open_site(tmp_path, (module,)) as site:
        status, headers, body = await site.ask("POST", "/http/given")

    problem = json.loads(body)
    assert (status, problem["kind"]) == (502, "bad_output"), body
    assert words in problem["detail"]
    assert b"x-execution-id" in headers


async def test_a_stranger_is_not_told_why_a_handler_failed(site):
    status, headers, body = await site.ask("POST", "/http/fails")

    problem = json.loads(body)
    assert (status, problem["kind"]) == (500, "handler_error")
    assert "/srv" not in body.decode()
    assert headers[b"x-execution-id"].decode() in problem["detail"]
    assert "traceback" not in problem


async def test_without_waiting_a_request_is_accepted_and_runs(site):
    status, headers, body = await site.ask("POST", "/http/later")

    name = json.loads(body)["id"]
    assert (status, headers[b"location"].decode()) == (202, f"/executions/{name}")
    assert headers[b"x-execution-id"].decode() == name

    async def ended():
        return (await site.json("GET", f"/executions/{name}"))["status"]

    with trio.fail_after(20):
        while await ended() != "succeeded":
            await trio.sleep(0.01)


# -- generators --------------------------------------------------------------------------------------------------------


async def opened(site, items):
    """Return a client and the head of its answer, whose body has begun."""
    data = json.dumps(items).encode()
    client = await site.server.connect()
    await client.send(site.head("POST", "/http/items", length=len(data)) + data)
    return client, (await client.until(b"\r\n\r\n")).decode().lower()


async def whole(client):
    text = b""
    while True:
        size = int(await client.until(b"\r\n"), 16)
        while len(client.buffer) < size + 2:
            await client.more()
        text += client.buffer[:size]
        client.buffer = client.buffer[size + 2 :]
        if size == 0:
            return text


@pytest.mark.parametrize(
    ("items", "content_type", "body"),
    [
        (["a", "bü", "c"], "text/plain; charset=utf-8", "abüc"),
        ([1, {"x": [1, "y"]}], "application/jsonl", '1\n{"x":[1,"y"]}\n'),
        ([{"$response": {"headers": [["content-type", "text/csv"]]}}, "a,b\n"], "text/csv", "a,b\n"),
        (
            [{"$response": {"headers": [["content-type", "text/event-stream"]]}}, {"n": 1}, ": kept\n\n"],
            "text/event-stream",
            'data: {"n":1}\n\n: kept\n\n',
        ),
    ],
)
async def test_the_items_of_a_generator_are_sent(site, items, content_type, body):
    client, head = await opened(site, items)

    assert "200 ok" in head
    assert f"content-type: {content_type}\r\n" in head
    assert "x-content-type-options: nosniff\r\n" in head
    assert "x-execution-id: " in head
    assert "x-content-type-options: nosniff\r\n" in head
    assert (await whole(client)).decode() == body


async def test_items_come_while_the_generator_runs(site, tmp_path):
    flag = tmp_path / "flag"
    client, _ = await opened(site, ["first", {"wait": str(flag)}, "second"])
    assert await client.until(b"\r\n") == b"5"
    assert await client.until(b"\r\n") == b"first"
    flag.touch()
    assert await whole(client) == b"second"


async def test_the_first_item_may_be_a_status(site):
    client, head = await opened(site, [{"$response": {"status": 206}}, 1])
    assert "206" in head
    assert await whole(client) == b"1\n"


async def test_a_generator_that_fails_cuts_its_answer(site):
    client, head = await opened(site, ["first", {"fail": 1}])
    assert "200 ok" in head
    assert not (await client.rest()).endswith(b"0\r\n\r\n")


async def test_a_head_that_cannot_be_sent_is_a_problem(site):
    status, _, body = await site.ask("POST", "/http/items", [{"$response": {"headers": [["date", "x"]]}}, 1])
    assert (status, json.loads(body)["kind"]) == (502, "bad_output")


async def test_a_client_that_goes_away_cancels_the_generator(site, tmp_path):
    client, _ = await opened(site, ["first", {"wait": str(tmp_path / "never")}])
    await client.until(b"first")
    client.reset()

    await wait_until(lambda: not site.service.runs.live_executions(), "the execution ends")
    [item] = (await site.json("GET", "/executions"))["items"]
    assert item["status"] == "cancelled"


async def test_a_generator_without_items_is_a_list(site):
    assert (await site.ask("POST", "/http/items", []))[2] == b"[]"


# -- bytes and files ---------------------------------------------------------------------------------------------------

TYPED = """
from operato import File, Request, Response
import json

def handler(request: Request):
    how = request.query.get("how")
    if how == "show":
        return {"body": len(request.body), "first": request.body[:4].hex(), "event": request.params["event"],
                "type": request.headers.get("Content-Type")}
    if how == "bytes":
        return Response(bytes(range(256)), type="image/png", headers={"x-own": "1"})
    if how == "file":
        return File(request.body, name="a \\u00fc.csv", type="text/csv")
    if how == "stream":
        return Response((part for part in (b"\\x00\\xff", "text", b"\\x01" * 300_000)), type="video/mp4", status=203)
    if how == "empty":
        return Response(status=204)
    if how == "see other":
        return Response(status=303, headers={"location": "/elsewhere"})
    return json.loads(request.body)
"""


@pytest.fixture
async def typed(tmp_path):
    module = hook("typed", TYPED, "/typed/{event}", methods=(Method.GET, Method.POST))
    async with open_site(tmp_path, (module,)) as opened:
        yield opened


@pytest.mark.parametrize(
    ("body", "stored"),
    [(b"", 0), (b"text", 0), (b"\x89PNG", 1), (b"x" * 65_536, 0), (b"x" * 65_537, 1), (b"\xff" * 3_000_000, 1)],
)
async def test_a_body_is_text_or_a_file(typed, body, stored):
    shown = await typed.json("POST", "/http/typed/push?how=show", body, Content_Type="image/png")

    assert shown == {"body": len(body), "first": body[:4].hex(), "event": "push", "type": "image/png"}
    files = (await typed.json("GET", "/files"))["items"]
    assert [(file["size"], file["type"], file["name"]) for file in files] == [
        (len(body), "image/png", "body.png")
    ] * stored


@pytest.mark.parametrize(
    ("auth", "setting", "size"),
    [(Auth.NONE, "max_frame", 100_000), (Auth.TOKEN, "max_file", MIB)],
)
@pytest.mark.parametrize("how", ["plain", "chunked", "gzip", "form"])
async def test_a_body_over_its_limit_is_refused_and_leaves_nothing(tmp_path, auth, setting, size, how):
    """Strangers may store less than callers with a token."""
    module = hook("typed", TYPED, "/typed/{event}", auth=auth)
    server, files = ServerSettings(max_frame_bytes=100_000), FilesSettings(max_file_bytes=MIB)
    async with open_site(tmp_path, (module,), server=server, files=files) as site:

        async def send(data):
            headers = {}
            if how == "gzip":
                data, headers = gzip.compress(data), {"Content_Encoding": "gzip"}
            if how == "form":
                data, headers = parts(('name="f"; filename="f"', data.decode())), BOUNDARY
            if how != "chunked":
                return await site.ask("POST", "/http/typed/x?how=show", data, **headers)
            client = await site.server.connect()
            async with client.stream:
                head = site.head("POST", "/http/typed/x?how=show")
                head = head.replace(b"Content-Length: 0", b"Transfer-Encoding: chunked")
                await client.send(head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(data), data))
                return await client.response()

        status, _, body = await send(b"x" * (size + 1))
        assert (status, json.loads(body)["kind"]) == (413, "too_large"), body
        assert setting in json.loads(body)["detail"]
        assert (await site.json("GET", "/executions"))["items"] == []
        assert (await site.json("GET", "/files"))["items"] == []
        assert (await send(b"x" * (size - 500)))[0] == 200


@pytest.mark.parametrize("path", ["/http/typed/x?how=show", "/modules/execute/typed"])
async def test_bytes_share_the_memory_of_unfinished_requests(typed, path):
    budget = typed.service.budget
    assert budget.take(budget.limit - 100_000)
    refused = await typed.ask("POST", path, b"\xff" * 100_000, Content_Type="image/png")
    budget.give(budget.limit - 100_000)

    assert (refused[0], json.loads(refused[2])["kind"]) == (503, "unavailable")
    assert (await typed.ask("POST", path, b"\xff" * 100_000, Content_Type="image/png"))[0] != 503
    assert budget.taken == 0


async def test_bytes_are_answered_as_they_are(typed):
    status, headers, body = await typed.ask("GET", "/http/typed/x?how=bytes")
    assert (status, headers[b"content-type"], body) == (200, b"image/png", bytes(range(256)))
    assert headers[b"x-own"] == b"1"
    assert b"x-execution-id" in headers

    status, headers, body = await typed.ask("GET", "/http/typed/x?how=bytes", Range="bytes=1-3")
    assert (status, headers[b"content-range"], body) == (206, b"bytes 1-3/256", b"\x01\x02\x03")


async def test_a_file_is_answered_with_its_name_and_type(typed):
    status, headers, body = await typed.ask("POST", "/http/typed/x?how=file", b"a,b\n" * 50_000)
    assert (status, headers[b"content-type"], body) == (200, b"text/csv", b"a,b\n" * 50_000)
    assert b"filename*=utf-8''a%20%c3%bc.csv" in headers[b"content-disposition"]


async def test_bytes_of_a_generator_are_pieces(typed):
    client = await typed.server.connect()
    async with client.stream:
        await client.send(typed.head("GET", "/http/typed/x?how=stream"))
        head = (await client.until(b"\r\n\r\n")).lower()
        assert b" 203 " in head.split(b"\r\n")[0]
        assert b"content-type: video/mp4" in head
        assert await whole(client) == b"\x00\xfftext" + b"\x01" * 300_000


@pytest.mark.parametrize(("how", "status"), [("empty", 204), ("see%20other", 303)])
async def test_a_response_without_a_body(typed, how, status):
    found, _, body = await typed.ask("GET", f"/http/typed/x?how={how}")
    assert (found, body) == (status, b"")


async def test_an_answer_has_no_file_of_another_module(typed):
    """A handler that answers what a stranger sends does not give away files."""
    uploaded = await typed.json("POST", "/files?name=x", b"secret", Content_Type="text/plain")
    assert (await typed.ask("GET", f"/files/{uploaded['$file']['id']}"))[2] == b"secret"

    status, _, body = await typed.ask("POST", "/http/typed/x", uploaded)
    assert (status, json.loads(body)["kind"]) == (502, "bad_output")
    status, _, body = await typed.ask("POST", "/http/typed/x", {"$response": {"file": uploaded}})
    assert (status, json.loads(body)["kind"]) == (502, "bad_output")


# -- forms -------------------------------------------------------------------------------------------------------------

FORM = """
def handler(request: "Request"):
    files = {name: [each.name, each.type, each.read_text()] for name, each in request.files.items()}
    return {"form": request.form, "files": files, "body": request.text}
"""
BOUNDARY = {"Content_Type": "multipart/form-data; boundary=x"}


def parts(*found):
    """Return a multipart form of pairs of head and content."""
    shown = [f"--x\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n" for head, content in found]
    return "".join([*shown, "--x--\r\n"]).encode()


@pytest.fixture
async def forms(tmp_path):
    module = hook("form", f"from operato import Request\n{FORM}", "/form")
    async with open_site(tmp_path, (module,)) as opened:
        yield opened


async def test_a_form_has_fields_and_files(forms):
    body = parts(
        ('name="a"', "1"),
        ('name="b"', "2"),
        ('name="b"', "3"),
        ('name="photo"; filename="x.txt"\r\nContent-Type: text/plain', "content"),
        ('name="digest"', "sha256:" + "0" * 64),
    )
    shown = await forms.json("POST", "/http/form", body, **BOUNDARY)

    assert shown["form"] == {"a": "1", "b": ["2", "3"], "digest": "sha256:" + "0" * 64}
    assert shown["files"] == {"photo": ["x.txt", "text/plain", "content"]}
    assert shown["body"] == ""


async def test_a_form_without_files_is_a_body_too(forms):
    """Senders sign it as it is."""
    url = {"Content_Type": "application/x-www-form-urlencoded"}
    shown = await forms.json("POST", "/http/form", b"a=1&b=%C3%BC&b=+&c=", **url)
    assert shown == {"form": {"a": "1", "b": ["ü", " "], "c": ""}, "files": {}, "body": "a=1&b=%C3%BC&b=+&c="}
    shown = await forms.json("POST", "/http/form", b'{"a": "b=c"}', **url)
    assert (shown["form"], shown["body"]) == ({}, '{"a": "b=c"}'), "curl -d sends JSON under this type"


@pytest.mark.parametrize(
    ("body", "headers", "words"),
    [
        (b"--x\r\nbroken", BOUNDARY, ""),
        (b"--x--\r\n", {"Content_Type": "multipart/form-data"}, "boundary"),
        (parts(("x", "1")), BOUNDARY, "has no name"),
        (b"a=\xff", {"Content_Type": "application/x-www-form-urlencoded"}, "not UTF-8"),
        (b"a=1&" * 1001, {"Content_Type": "application/x-www-form-urlencoded"}, "more than 1000 fields"),
    ],
)
async def test_a_form_that_cannot_be_read_is_bad_input_and_leaves_nothing(forms, body, headers, words):
    status, _, answer = await forms.ask("POST", "/http/form", body, **headers)
    problem = json.loads(answer)
    assert problem["kind"] == "bad_input", problem
    assert status == (415 if words == "boundary" else 400)
    assert words in problem["detail"]
    assert (await forms.json("GET", "/executions"))["items"] == []
    assert (await forms.json("GET", "/files"))["items"] == []


async def test_files_of_an_answer_that_is_not_kept(tmp_path):
    module = hook("typed", TYPED, "/typed/{event}", methods=(Method.GET, Method.POST), record=Record.SUMMARY)
    async with open_site(tmp_path, (module,)) as site:
        for _ in range(2):
            assert (await site.ask("GET", "/http/typed/x?how=bytes"))[2] == bytes(range(256))
            assert (await site.ask("POST", "/http/typed/x?how=file", b"\xff" * 70_000))[2] == b"\xff" * 70_000
            client = await site.server.connect()
            async with client.stream:
                await client.send(site.head("GET", "/http/typed/x?how=stream"))
                await client.until(b"\r\n\r\n")
                assert await whole(client) == b"\x00\xfftext" + b"\x01" * 300_000
