"""Unit: a caller is known by its token or API key, by its absence where that is allowed, and refused otherwise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.keys.keys import ApiKeys
from actors.keys.stored import KeyFile
from actors.one_file import InTurn
from actors.registry import Audit
from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError
from runner.api import keys as module_under_test
from runner.api.keys import KeyOrder, KeyVerbs, _covers
from runner.auth.callers import anonymous_caller, authenticate
from runner.auth.principal import Principal, Scope, require
from runner.auth.tokens import Verifier
from tests.tokens import SECRET, Clock, token

ADMIN = Principal("kim", frozenset({"admin"}))
ORDER = KeyOrder("ci", ("executions:run",))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def keys(tmp_path, clock):
    opened = ApiKeys(KeyFile.open(tmp_path / "keys.db"), clock)
    yield opened
    opened._file.close()


@pytest.fixture
def verifier(keys, clock):
    made = Verifier(AuthSettings(), secret=SECRET, clock=clock)
    made.api_keys = keys
    return made


@pytest.fixture
def verbs(keys):
    return KeyVerbs(Audit(None, InTurn("modules cannot be read")), keys)


async def failure(work):
    with pytest.raises(RunnerError) as problem:
        await work
    return problem.value.failure


async def made(keys, **fields):
    values = {"scopes": ["executions:run"], "modules": ("a-*",), "expires_at": None, "subject": "kim", **fields}
    return await keys.create(values.pop("name", "ci"), **values)


# -- keys as credentials -----------------------------------------------------------------------------------------------


async def test_a_key_is_the_same_caller_by_either_header(verifier, keys):
    key, secret = await made(keys)
    expected = Principal("key:ci", frozenset({"executions:run"}), ("a-*",))

    assert await authenticate(verifier, f"Bearer {secret}") == expected
    assert await authenticate(verifier, f"bearer  {secret} ") == expected
    assert await authenticate(verifier, None, secret) == expected
    assert await authenticate(verifier, f"Bearer {secret}", secret) == expected
    assert (await authenticate(verifier, None, secret)).key is key
    assert not verifier.refused


async def test_two_different_credentials_are_refused(verifier, keys):
    _, one = await made(keys)
    _, two = await made(keys, name="two")
    for header, key in ((two, one), (token(), one), (one, two), ("x", one)):
        assert (await failure(authenticate(verifier, f"Bearer {header}", key))).kind is ErrorKind.UNAUTHENTICATED
    found = await failure(authenticate(verifier, None, f"{one}, {two}"))
    assert found.message == "the request has several tokens; send one"


@pytest.mark.parametrize(
    "wrong", ["", "opk_", "opk_0123456789_" + "0" * 48, "x" * 70, "opk_\xff", "opk_" + "0" * 20000]
)
async def test_a_key_that_does_not_exist_is_refused(verifier, wrong):
    for header, key in ((f"Bearer {wrong}", None), (None, wrong)):
        assert (await failure(authenticate(verifier, header, key))).kind is ErrorKind.UNAUTHENTICATED


async def test_a_token_is_no_api_key(verifier):
    found = await failure(authenticate(verifier, None, token()))

    assert "Authorization: Bearer" in found.message


async def test_a_wrong_key_gives_no_hint_whether_its_identifier_exists(verifier, keys):
    _, secret = await made(keys)
    near = secret[:-8] + "00000000"
    far = "opk_0000000000_" + "0" * 48

    assert await failure(authenticate(verifier, None, near)) == await failure(authenticate(verifier, None, far))


async def test_revoked_and_expired_keys_are_refused_also_after_a_use(verifier, keys, clock):
    key, secret = await made(keys, expires_at=clock() + 100)
    await authenticate(verifier, None, secret)
    clock.now += 101
    assert (await failure(authenticate(verifier, None, secret))).message == "the API key has expired"

    key, secret = await made(keys)
    await authenticate(verifier, None, secret)
    await authenticate(verifier, f"Bearer {token()}")
    await keys.revoke(key, subject="kim")
    assert (await failure(authenticate(verifier, None, secret))).message == "the API key was revoked"
    assert (await authenticate(verifier, f"Bearer {token()}")).subject == "kim"


async def test_a_use_is_noted_once_a_minute(verifier, keys, clock):
    key, secret = await made(keys)
    first = clock()
    for _ in range(59):
        await authenticate(verifier, None, secret)
        clock.now += 1
    assert key.used_at == first
    clock.now += 2
    await authenticate(verifier, None, secret)
    assert key.used_at == clock()


async def test_a_key_counts_where_tokens_are_verified_by_a_key_set(keys, clock):
    verifier = Verifier(AuthSettings(jwks_url="http://127.0.0.1:1/keys"), clock=clock)
    verifier.api_keys = keys
    _, secret = await made(keys)

    assert (await authenticate(verifier, f"Bearer {secret}")).subject == "key:ci"


async def test_refused_callers_are_counted_by_what_they_showed(verifier):
    for header, key in ((None, None), ("Bearer x", None), ("Basic x", None), ("Bearer opk_x", None), (None, "opk_x")):
        await failure(authenticate(verifier, header, key))

    assert verifier.refused == {"none": 1, "token": 2, "key": 2}


# -- no token ----------------------------------------------------------------------------------------------------------


async def test_a_caller_without_a_token_has_the_scopes_of_the_setting(verifier):
    verifier.anonymous = anonymous_caller(["executions:run", "modules:read"])
    caller = await authenticate(verifier, None)

    assert (caller.subject, caller.scopes) == ("anonymous", {"executions:run", "modules:read"})
    with pytest.raises(RunnerError) as problem:
        require(caller, Scope.EXECUTIONS_READ)
    assert problem.value.failure.kind is ErrorKind.UNAUTHENTICATED


@pytest.mark.parametrize(("header", "key"), [("", None), ("Bearer x", None), ("Bearer", None), (None, "x"), (None, "")])
async def test_a_wrong_token_is_refused_where_none_is_needed(verifier, header, key):
    verifier.anonymous = anonymous_caller(["executions:run"])

    assert (await failure(authenticate(verifier, header, key))).kind is ErrorKind.UNAUTHENTICATED


@pytest.mark.parametrize("scopes", [["admin"], ["modules:write", "executions:run"], ["executions:rum"], ["*"]])
def test_a_caller_without_a_token_cannot_change_the_runner(scopes):
    with pytest.raises(RunnerError) as problem:
        anonymous_caller(scopes)

    assert (problem.value.failure.kind, problem.value.failure.field) == (ErrorKind.BAD_INPUT, "anonymous")
    assert anonymous_caller([]) is None


# -- verbs -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": ""}, "name"),
        ({"name": "a b"}, "name"),
        ({"name": "x" * 65}, "name"),
        ({"name": "0123456789"}, "name"),
        ({"scopes": ()}, "scopes"),
        ({"scopes": ("executions:run", "all")}, "scopes"),
        ({"modules": ()}, "modules"),
        ({"modules": ("",)}, "modules"),
        ({"modules": ("x" * 201,)}, "modules"),
        ({"modules": tuple(f"m{number}" for number in range(101))}, "modules"),
        ({"expires": "soon"}, "expires"),
        ({"expires": -1}, "expires"),
        ({"expires": 0}, "expires"),
        ({"expires": "99999999d"}, "expires"),
        ({"expires": float("nan")}, "expires"),
    ],
)
async def test_a_mistake_names_its_field(verbs, keys, fields, field):
    values = {"name": "ci", "scopes": ("executions:run",), **fields}
    found = await failure(verbs.create(ADMIN, KeyOrder(**values)))

    assert (found.kind, found.field) == (ErrorKind.BAD_INPUT, field)
    assert keys.all() == []


async def test_only_admins_manage_keys(verbs):
    for scope in sorted(set(Scope) - {Scope.ADMIN}):
        caller = Principal("lee", frozenset({scope}))
        assert (await failure(verbs.create(caller, ORDER))).kind is ErrorKind.FORBIDDEN
        assert (await failure(verbs.revoke(caller, "0123456789"))).kind is ErrorKind.FORBIDDEN
        with pytest.raises(RunnerError):
            await verbs.list(caller, limit=1, cursor="")


async def test_a_key_may_use_no_more_modules_than_its_maker(verbs):
    limited = Principal("lee", frozenset({"admin"}), ("team-*", "one"))
    key, _ = await verbs.create(limited, ORDER)
    assert key.stored.modules == ("team-*", "one")
    key, _ = await verbs.create(limited, KeyOrder("b", ("admin",), ("team-a-*", "one", "team-x")))
    assert key.stored.modules == ("team-a-*", "one", "team-x")
    for globs in (("*",), ("team*",), ("other",), ("team-[ab]",), ("one*",), ("team-a", "two")):
        found = await failure(verbs.create(limited, KeyOrder("c", ("admin",), globs)))
        assert (found.kind, found.field) == (ErrorKind.FORBIDDEN, "modules")


async def test_keys_beyond_the_modules_of_a_caller_do_not_exist_for_it(verbs):
    wide, _ = await verbs.create(ADMIN, KeyOrder("wide", ("executions:run",)))
    own, _ = await verbs.create(ADMIN, KeyOrder("own", ("executions:run",), ("team-a",)))
    limited = Principal("lee", frozenset({"admin"}), ("team-*",))

    assert await verbs.list(limited, limit=9, cursor="") == ([own], None)
    hidden = await failure(verbs.revoke(limited, wide.stored.id))
    missing = await failure(verbs.revoke(limited, "0123456789"))
    assert hidden.message.replace(wide.stored.id, "ID") == missing.message.replace("0123456789", "ID")
    await verbs.revoke(limited, own.stored.id)
    assert (own.revoked, wide.revoked) == (True, False)


async def test_a_key_makes_no_keys_that_are_valid_longer(verbs, verifier):
    _, secret = await verbs.create(ADMIN, KeyOrder("root", ("admin",), None, "1h"))
    caller = await authenticate(verifier, None, secret)
    for expires in (None, "2h"):
        found = await failure(verbs.create(caller, KeyOrder("child", ("admin",), None, expires)))
        assert (found.kind, found.field) == (ErrorKind.FORBIDDEN, "expires")
    await verbs.create(caller, KeyOrder("child", ("admin",), None, "30m"))


async def test_pages_of_keys_follow_each_other(verbs):
    made = [(await verbs.create(ADMIN, KeyOrder(f"k{number}", ("admin",))))[0] for number in range(5)]
    found, cursor = await verbs.list(ADMIN, limit=2, cursor="")
    rest, last = await verbs.list(ADMIN, limit=3, cursor=cursor)

    assert [*found, *rest] == made[::-1]
    assert last is None
    with pytest.raises(RunnerError):
        await verbs.list(ADMIN, limit=2, cursor="x")


async def test_a_page_of_a_limited_caller_is_searched_in_so_many_keys(verbs, monkeypatch):
    monkeypatch.setattr(module_under_test, "_LOOKED_AT", 3)
    limited = Principal("lee", frozenset({"admin"}), ("team-*",))
    for number in range(4):
        await verbs.create(ADMIN, KeyOrder(f"all-{number}", ("admin",)))
    own, _ = await verbs.create(limited, ORDER)
    first, cursor = await verbs.list(limited, limit=1, cursor="")
    second, cursor = await verbs.list(limited, limit=1, cursor=cursor)

    assert (first, second) == ([own], [])
    assert await verbs.list(limited, limit=1, cursor=cursor) == ([], None)


GLOBS = st.text("ab*?[]!", max_size=6)


@given(GLOBS, GLOBS, st.text("ab", max_size=6))
def test_a_glob_that_covers_another_matches_all_of_its_names(wide, narrow, name):
    if _covers(wide, narrow) and Principal("", frozenset(), (narrow,)).may_use(name):
        assert Principal("", frozenset(), (wide,)).may_use(name)
