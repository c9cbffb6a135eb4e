"""Contract: notices about ended executions, from the field `on_end` to their receivers."""

from __future__ import annotations

import base64
import contextlib
import json
import ssl

import msgspec
import pytest
import standardwebhooks
import trio

from actors.outbox import MAX_VALUE_BYTES
from actors.starts import NoticeQuery, unsent
from config.modules.on_end import OnEnd
from config.modules.policies import GroupPolicy
from config.secrets import Secret
from protocol.errors import ErrorKind, RunnerError
from protocol.model import Record, Status
from runner.api.starts.notices import NoticeVerbs
from runner.auth.principal import Principal
from runner.auth.tokens import sign
from tests.certificates import Authority
from tests.contract.test_streams import SECRET as SIGNING
from tests.contract.test_streams import open_site
from tests.receiver import receiving
from tests.support import ANYBODY, PATIENCE, inline, open_service

SECRET = "whsec_" + base64.b64encode(b"a key of some length").decode()
LOOPBACK = ("127.0.0.0/8", "::1")
FAIL = "def handler(input): raise ValueError(input)"
ECHO = "def handler(input): return input"


def telling(name: str, code: str, *recipients: OnEnd, **fields):
    return inline(name, code, on_end=recipients, **fields)


def verbs(service):
    return NoticeVerbs.of(service.outbox, service.history)


async def notices(service, **filters):
    return (await verbs(service).list(ANYBODY, NoticeQuery(**filters))).items


async def settled(service, number: int = 1):
    """Return the notices, once so many have ended."""
    with trio.fail_after(PATIENCE):
        while True:
            found = await notices(service)
            if sum(each.ended_at is not None for each in found) >= number:
                return found
            await trio.sleep(0.01)


async def test_a_receiver_verifies_a_notice_with_the_official_library(tmp_path, monkeypatch):
    monkeypatch.setenv("OPERATO_SECRET_HOOK", SECRET)
    async with receiving() as receiver:
        recipient = OnEnd(url=receiver.url("/hook?k=1"), when=(Status.FAILED,), secret="HOOK")
        module = telling("m", FAIL, recipient, secrets=_secrets("HOOK"))
        async with open_service(tmp_path, [module], notices_allow=LOOPBACK) as service:
            ended = await service.execute(ANYBODY, "m", b'"oh"')
            (got,) = await receiver.wait()
            (notice,) = await settled(service)

    message = standardwebhooks.Webhook(SECRET).verify(got.body, got.headers)
    assert message["type"] == "execution.failed"
    assert message["timestamp"].endswith("Z")
    data = message["data"]
    assert (data["id"], data["module"], data["status"], data["input"]) == (ended.id, "m", "failed", "oh")
    assert data["error"]["kind"] == "handler_error"
    assert "stdout" not in data
    assert (got.path, got.headers["content-type"]) == ("/hook?k=1", "application/json")
    assert got.headers["webhook-id"] == notice.id
    assert (notice.state, notice.attempts, notice.reason, notice.execution) == ("delivered", 1, None, ended.id)
    assert notice.target == f"http://127.0.0.1:{receiver.port}"


def _secrets(*names):
    return {name: Secret(env=f"OPERATO_SECRET_{name}") for name in names}


async def test_only_the_ends_that_were_asked_for_are_told(tmp_path):
    code = "def handler(input):\n    if input: raise ValueError\n    return 'x' * 20000"
    async with receiving() as receiver:
        module = telling(
            "m",
            code,
            OnEnd(url=receiver.url("/good"), when=(Status.SUCCEEDED,)),
            OnEnd(url=receiver.url("/bad"), when=(Status.FAILED,)),
        )
        async with open_service(tmp_path, [module], notices_allow=LOOPBACK) as service:
            for data in (b"0", b"1"):
                await service.execute(ANYBODY, "m", data)
            await settled(service, 2)

    found = {each.path: each.message for each in receiver.got}
    assert {path: message["type"] for path, message in found.items()} == {
        "/good": "execution.succeeded",
        "/bad": "execution.failed",
    }
    assert found["/good"]["data"]["result"] == {
        "$dropped": {"bytes": 20002, "reason": f"over {MAX_VALUE_BYTES} bytes: read the execution"}
    }
    assert "webhook-signature" not in receiver.got[0].headers


async def test_a_notice_is_repeated_under_the_same_id_until_it_is_taken(tmp_path):
    async with receiving() as receiver:
        receiver.answers = [503, 302, 204]
        receiver.headers = [("location", receiver.url("/elsewhere"))]
        async with open_service(
            tmp_path, [telling("m", ECHO, OnEnd(url=receiver.url()))], notices_allow=LOOPBACK
        ) as service:
            await service.execute(ANYBODY, "m", b"1")
            for number, why in ((1, "it answered 503"), (2, "it answered 302; redirects are not followed")):
                await receiver.wait(number)
                await missed(service, number, why)
                (notice,) = await notices(service, state="pending")
                await verbs(service).retry(ANYBODY, notice.id)
            (notice,) = await settled(service)

    assert notice.attempts == 3
    assert len({each.headers["webhook-id"] for each in receiver.got}) == 1
    assert len({each.body for each in receiver.got}) == 1
    assert {each.path for each in receiver.got} == {"/hook"}


async def missed(service, attempts, why):
    with trio.fail_after(PATIENCE):
        while True:
            (notice,) = await notices(service)
            if notice.attempts >= attempts and notice.reason is not None:
                assert why in notice.reason
                return notice
            await trio.sleep(0.01)


async def test_a_receiver_that_is_gone_for_good_gets_no_more(tmp_path):
    async with receiving() as receiver:
        receiver.answers = [410, 204]
        async with open_service(
            tmp_path, [telling("m", ECHO, OnEnd(url=receiver.url()))], notices_allow=LOOPBACK
        ) as service:
            await service.execute(ANYBODY, "m", b"1")
            (notice,) = await settled(service)
            assert (notice.state, notice.reason) == ("dead", "it answered 410: no more notices are wanted there")
            assert [each.id for each in await notices(service, state="dead", module="m")] == [notice.id]
            assert await notices(service, state="delivered") == ()
            assert await service.outbox.unsent() == {"pending": 0, "dead": 1}
            beside = unsent(tmp_path / "data" / "history.db")
            assert (beside, unsent(tmp_path / "none.db")) == ({"pending": 0, "dead": 1}, {"pending": 0, "dead": 0})

            again = await verbs(service).retry(ANYBODY, notice.id)
            assert (again.state, again.ended_at) == ("pending", None)
            await receiver.wait(2)
            (notice,) = await settled(service)
            assert notice.state == "delivered"
            with pytest.raises(RunnerError) as caught:
                await verbs(service).retry(ANYBODY, notice.id)
            assert caught.value.failure.kind is ErrorKind.CONFLICT
            with pytest.raises(RunnerError) as caught:
                await verbs(service).retry(ANYBODY, "msg_none")
            assert caught.value.failure.kind is ErrorKind.NOT_FOUND


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::ffff:127.0.0.1]", "0.0.0.0"])
async def test_addresses_of_this_machine_are_refused_unless_they_are_allowed(tmp_path, host):
    async with receiving() as receiver:
        url = receiver.url(host=host)
        async with open_service(tmp_path, [telling("m", ECHO, OnEnd(url=url))]) as service:
            await service.execute(ANYBODY, "m", b"1")
            notice = await missed(service, 1, "an address of this machine; the operator can allow it with")
            assert notice.state == "pending"
            assert receiver.connections == 0


async def test_a_host_is_allowed_by_its_name(tmp_path):
    async with receiving() as receiver:
        module = telling("m", ECHO, OnEnd(url=receiver.url(host="localhost")))
        async with open_service(tmp_path, [module], notices_allow=("localhost",)) as service:
            await service.execute(ANYBODY, "m", b"1")
            assert [each.state for each in await settled(service)] == ["delivered"]


async def test_certificates_are_checked(tmp_path):
    authority = Authority(tmp_path)
    signed = authority.sign("receiver")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(signed.certificate, signed.key)
    async with receiving(context) as receiver:
        module = telling("m", ECHO, OnEnd(url=receiver.url(scheme="https", host="localhost")))
        async with open_service(tmp_path / "a", [module], notices_allow=LOOPBACK) as service:
            await service.execute(ANYBODY, "m", b"1")
            await missed(service, 1, "CERTIFICATE_VERIFY_FAILED")
        trusting = ssl.create_default_context(cafile=authority.file)
        async with open_service(tmp_path / "b", [module], notices_allow=LOOPBACK, notices_tls=trusting) as service:
            await service.execute(ANYBODY, "m", b"1")
            await settled(service)
            assert len(receiver.got) == 1


async def test_a_slow_receiver_holds_up_nobody(tmp_path):
    async with receiving() as slow, receiving() as quick:
        slow.hold = trio.Event()
        modules = [
            telling("slow", ECHO, OnEnd(url=slow.url())),
            telling("quick", ECHO, OnEnd(url=quick.url())),
        ]
        async with open_service(tmp_path, modules, notices_allow=LOOPBACK) as service:
            for _ in range(100):
                await service.execute(ANYBODY, "slow", b"1")
            await slow.wait(2)
            for _ in range(3):
                await service.execute(ANYBODY, "quick", b"1")
            await quick.wait(3)
            assert len(slow.got) == 2


async def test_a_module_is_told_by_an_execution_with_the_key_of_the_notice(tmp_path):
    modules = [telling("m", FAIL, OnEnd(module="teller", when=(Status.FAILED,))), inline("teller", ECHO)]
    async with open_service(tmp_path, modules) as service:
        ended = await service.execute(ANYBODY, "m", b"5")
        (notice,) = await settled(service)
        assert notice.target == "module teller"
        told = await service.history.find_keyed("notices", "teller", f"notice/{notice.id}", 0)
        told = await service.runs.wait_ended(live) if (live := service.runs.find(told.id)) else told
        told = await service.history.get(told.id)

    assert (told.subject, told.asynchronous, told.status) == ("notices", True, Status.SUCCEEDED)
    assert json.loads(told.input)["data"]["id"] == ended.id


async def test_a_chain_of_notices_ends(tmp_path):
    """Modules can come to tell each other after they were checked: then the depth ends it."""
    modules = [telling("a", ECHO, OnEnd(module="b")), telling("b", ECHO, OnEnd(module="a"))]
    async with open_service(tmp_path, modules) as service:
        await service.execute(ANYBODY, "a", b"1")
        with trio.fail_after(PATIENCE):
            while not (dead := await notices(service, state="dead")):
                await trio.sleep(0.01)
        total = len(await notices(service))

    assert total == 9
    assert "8 notices led to it" in dead[0].reason


async def test_a_missing_module_and_a_wrong_input_are_reasons_to_try_again(tmp_path):
    modules = [
        telling("m", ECHO, OnEnd(module="gone"), OnEnd(module="strict")),
        inline("strict", ECHO, input_schema={"type": "integer"}),
    ]
    async with open_service(tmp_path, modules) as service:
        await service.execute(ANYBODY, "m", b"1")
        with trio.fail_after(PATIENCE):
            while not all(each.reason for each in await notices(service)):
                await trio.sleep(0.01)
        found = {each.target: each for each in await notices(service, state="pending")}

    assert "there is no module 'gone'" in found["module gone"].reason
    assert "bad_input" in found["module strict"].reason


async def test_notices_wait_for_the_next_runner(tmp_path):
    async with receiving() as receiver:
        module = telling("m", ECHO, OnEnd(url=receiver.url()))
        async with open_service(tmp_path, [module]) as service:  # its addresses are refused here
            await service.execute(ANYBODY, "m", b"1")
            first = await missed(service, 1, "an address of this machine")
        async with open_service(tmp_path, [module], notices_allow=LOOPBACK) as service:
            await verbs(service).retry(ANYBODY, first.id)
            (notice,) = await settled(service)
            assert (notice.id, notice.state) == (first.id, "delivered")


async def test_callers_see_notices_of_their_modules_only(tmp_path):
    modules = [telling("mine", ECHO, OnEnd(module="t")), telling("yours", ECHO, OnEnd(module="t")), inline("t", ECHO)]
    me = Principal("me", frozenset({"executions:read", "executions:run"}), modules=("mine",))
    reader = Principal("r", frozenset({"executions:read"}))
    async with open_service(tmp_path, modules) as service:
        for name in ("mine", "yours"):
            await service.execute(ANYBODY, name, b"1")
        both = await settled(service, 2)
        seen = await verbs(service).list(me, NoticeQuery())
        assert [each.module for each in seen.items] == ["mine"]
        other = next(each.id for each in both if each.module == "yours")
        for principal, kind in ((me, ErrorKind.NOT_FOUND), (reader, ErrorKind.FORBIDDEN)):
            with pytest.raises(RunnerError) as caught:
                await verbs(service).retry(principal, other)
            assert caught.value.failure.kind is kind


async def test_pages_of_notices(tmp_path):
    async with open_service(tmp_path, [telling("m", ECHO, OnEnd(module="t")), inline("t", ECHO)]) as service:
        for _ in range(5):
            await service.execute(ANYBODY, "m", b"1")
        every = [each.id for each in await settled(service, 5)]
        first = await verbs(service).list(ANYBODY, NoticeQuery(limit=3))
        second = await verbs(service).list(ANYBODY, NoticeQuery(limit=3, cursor=first.next_cursor))
        assert [each.id for each in (*first.items, *second.items)] == every
        assert second.next_cursor is None
        for wrong in (NoticeQuery(cursor="x"), NoticeQuery(state="lost")):
            with pytest.raises(RunnerError) as caught:
                await verbs(service).list(ANYBODY, wrong)
            assert caught.value.failure.kind is ErrorKind.BAD_INPUT
        one = await service.history.get(second.items[0].execution)
        assert msgspec.json.decode(one.input) == 1
        assert [each.id for each in await notices(service, execution=one.id)] == [second.items[0].id]


@pytest.fixture
async def site(tmp_path):
    async with open_site(tmp_path, (inline("filed", ECHO),)) as opened:
        yield opened


def body(*recipients, **fields):
    return {"env": "inline", "code": ECHO, "on_end": list(recipients), **fields}


async def problem(site, path, described, method="PUT", **headers):
    status, _, answer = await site.ask(method, path, described, **headers)
    return status, json.loads(answer).get("field"), json.loads(answer)["detail"]


async def test_modules_of_the_api_cannot_tell_each_other_in_a_circle(site):
    for name, recipients in (("a", ()), ("b", ({"module": "a"},)), ("c", ({"module": "b"},))):
        status, _, answer = await site.ask("PUT", f"/modules/{name}", body(*recipients))
        assert status == 201, answer
    status, field, detail = await problem(site, "/modules/a", body({"module": "c"}))
    assert (status, field) == (409, "on_end")
    assert "is a loop: a tells c tells b tells a" in detail
    status, _, answer = await site.ask("PUT", "/modules/a?activate=false", body({"module": "c"}))
    version = json.loads(answer)["version"]
    status, field, _ = await problem(site, f"/modules/a/versions/{version}/activate", None, "POST")
    assert (status, field) == (409, "on_end")


async def test_modules_of_the_api_tell_only_modules_that_their_author_may_use(site):
    status, field, detail = await problem(site, "/modules/m", body({"module": "fild"}))
    assert (status, field) == (400, "on_end[0].module")
    assert "did you mean filed" in detail
    token = sign(SIGNING, subject="kim", scopes=["admin"], modules=["m*"], expires_seconds=600)
    status, field, _ = await problem(site, "/modules/m", body({"module": "filed"}), Authorization=f"Bearer {token}")
    assert (status, field) == (400, "on_end[0].module")


async def test_modules_show_their_recipients_without_what_could_be_secret(site, monkeypatch):
    monkeypatch.setenv("OPERATO_SECRET_HOOK", SECRET)
    described = body({"url": "https://hooks.example.org/T0/secret?token=1", "when": ["failed"], "secret": "HOOK"})
    status, _, answer = await site.ask("PUT", "/modules/m", described | {"secrets": ["HOOK"]})
    assert status == 201, answer
    shown = await site.json("GET", "/modules/m")
    assert shown["on_end"] == [{"url": "https://hooks.example.org", "when": ["failed"]}]
    _, _, answer = await site.ask("GET", "/openapi.json")
    assert b"token=1" not in answer


async def test_notices_over_rest(site):
    await site.ask("PUT", "/modules/m", body({"module": "filed"}))
    ended = await site.json("POST", "/modules/execute/m")
    with trio.fail_after(PATIENCE):
        while not (found := (await site.json("GET", "/notices?state=delivered&module=m"))["items"]):
            await trio.sleep(0.01)
    assert [each["execution"] for each in found] == [ended["id"]]
    assert found[0]["due_at"] is None
    assert (await site.json("GET", f"/notices?execution={ended['id']}&limit=1"))["items"] == found
    status, field, _ = await problem(site, f"/notices/{found[0]['id']}/retry", None, "POST")
    assert (status, field) == (409, "id")
    status, field, _ = await problem(site, "/notices/msg_x/retry", None, "POST")
    assert (status, field) == (404, "id")
    status, field, detail = await problem(site, "/notices?state=lost", None, "GET")
    assert (status, field) == (400, "state")
    assert "pending, delivered, dead" in detail


async def test_a_module_that_is_told_keeps_its_fields(tmp_path):
    keeps = inline("teller", ECHO, record=Record.SUMMARY, group=GroupPolicy("/type"))
    async with open_service(tmp_path, [telling("m", ECHO, OnEnd(module="teller")), keeps]) as service:
        await service.execute(ANYBODY, "m", b'"private"')
        (notice,) = await settled(service)
        told = await service.history.find_keyed("notices", "teller", f"notice/{notice.id}", 0)
        if (live := service.runs.find(told.id)) is not None:
            await service.runs.wait_ended(live)
        told = await service.history.get(told.id)

    assert (told.summary, told.group, told.status) == (True, '"execution.succeeded"', Status.SUCCEEDED)
    assert b"private" not in told.input


async def test_an_answer_without_an_end_is_left(tmp_path):
    async def flood(stream: trio.abc.Stream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await stream.send_all(b"HTTP/1.1 100 Continue\r\n\r\n" * 1000)

    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, flood, 0)
        port = listeners[0].socket.getsockname()[1]
        module = telling("m", ECHO, OnEnd(url=f"http://127.0.0.1:{port}/"))
        async with open_service(tmp_path, [module], notices_allow=LOOPBACK) as service:
            await service.execute(ANYBODY, "m", b"1")
            with trio.fail_after(PATIENCE):
                while not (found := (await notices(service))[0]).reason:
                    await trio.sleep(0.01)
        nursery.cancel_scope.cancel()

    assert "the answer is longer than" in found.reason
