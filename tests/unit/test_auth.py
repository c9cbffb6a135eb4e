"""Unit: tokens are verified by every kind of key, bad ones are refused, and our own are signed."""

import hashlib
import hmac
import time

import pytest

from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError
from runner.auth import tokens as auth
from runner.auth.callers import bearer
from runner.auth.principal import Principal
from runner.auth.tokens import Verifier, sign
from tests.tokens import GOOD, PRIVATE, RSA, RSA_OTHER, SECRET, Clock, claims, part, pem, token


def verifier(**changed):
    settings = {name: changed.pop(name) for name in ("issuer", "audience", "leeway_seconds") if name in changed}
    return Verifier(AuthSettings(**settings), **(changed or {"secret": SECRET}))


def refusal(check, shown):
    with pytest.raises(RunnerError) as caught:
        check.verify_nowait(shown)
    assert caught.value.failure.kind is ErrorKind.UNAUTHENTICATED
    message = caught.value.failure.message
    assert SECRET not in message
    assert not message.isspace()
    return message


# Principals


def test_scopes_and_admin():
    reader = Principal("kim", frozenset({"modules:read"}), ())
    admin = Principal("root", frozenset({"admin"}), ())

    assert reader.allows("modules:read")
    assert not reader.allows("modules:write")
    assert not reader.allows("admin")
    assert all(admin.allows(scope) for scope in auth.SCOPES)


def test_modules_are_globs():
    some = Principal("kim", frozenset(), ("report-*", "greet"))

    assert [name for name in ("greet", "greeting", "report-x", "REPORT-x") if some.may_use(name)] == [
        "greet",
        "report-x",
    ]
    assert Principal("kim", frozenset()).may_use("anything")


# Tokens


async def test_a_valid_token_names_its_caller():
    shown = token(scope="executions:run modules:read openid", modules=["a*", "b"])
    who = Principal("kim", frozenset({"executions:run", "modules:read"}), ("a*", "b"))

    assert verifier().verify_nowait(shown) == who
    assert await verifier().verify(shown) == who
    assert verifier().local


@pytest.mark.parametrize(
    ("scope", "got"), [(..., set()), ("", set()), (["admin", "x"], {"admin"}), ("a  admin ", {"admin"})]
)
def test_scope_is_a_string_or_a_list(scope, got):
    assert verifier().verify_nowait(token(scope=scope)).scopes == got


@pytest.mark.parametrize(
    ("given", "roles", "got"),
    [
        ({"scp": "admin executions:run"}, None, {"admin", "executions:run"}),
        ({"scp": ["admin", "x"]}, None, {"admin"}),
        ({"scp": []}, None, set()),
        ({"scope": "executions:run", "scp": "admin"}, None, {"executions:run"}),
        ({"scope": "", "scp": "admin"}, None, set()),
        ({"roles": ["admin"]}, None, set()),
        ({"roles": ["admin"]}, "roles", {"admin"}),
        ({"roles": "admin executions:run"}, "roles", {"admin", "executions:run"}),
        ({"roles": ["executions:read"], "scp": "executions:run"}, "roles", {"executions:read", "executions:run"}),
        ({"roles": ["admin"], "scope": "executions:run"}, "roles", {"admin", "executions:run"}),
        ({"realm_access": {"roles": ["admin", "offline"]}}, "realm_access.roles", {"admin"}),
        ({"realm_access": 5}, "realm_access.roles", set()),
        ({"https://example.org/roles": ["admin"]}, "https://example.org/roles", {"admin"}),
        ({"a.b": "admin", "a": {"b": "executions:run"}}, "a.b", {"admin"}),
    ],
)
def test_claims_of_identity_providers(given, roles, got):
    check = Verifier(AuthSettings(roles_claim=roles), secret=SECRET)

    assert check.verify_nowait(token(**{"scope": ..., **given})).scopes == got


@pytest.mark.parametrize(
    ("given", "name"), [({"scp": 5}, "scp"), ({"roles": {"a": 1}}, "roles"), ({"scp": [1]}, "scp")]
)
def test_a_claim_of_another_type_is_refused(given, name):
    check = Verifier(AuthSettings(roles_claim="roles"), secret=SECRET)

    assert f"`{name}` has the wrong type" in refusal(check, token(**{"scope": ..., **given}))


def test_a_caller_has_the_end_of_its_token():
    end = time.time() + 100
    assert verifier().verify_nowait(token(exp=end)).expires == end + 10
    assert verifier(leeway_seconds=0.0).verify_nowait(token(exp=end)).expires == end


@pytest.mark.parametrize(("kind", "algorithm"), GOOD)
def test_every_kind_of_public_key(kind, algorithm):
    check = verifier(public_key=pem(PRIVATE[kind]))

    assert check.verify_nowait(token(algorithm, PRIVATE[kind])).subject == "kim"


@pytest.mark.parametrize(("kind", "algorithm"), GOOD)
def test_a_token_of_another_key_or_algorithm_is_refused(kind, algorithm):
    shown = token(algorithm, PRIVATE[kind])
    for other, key in PRIVATE.items():
        if other != kind:
            refusal(verifier(public_key=pem(key)), shown)
    refusal(verifier(), shown)
    refusal(verifier(public_key=pem(RSA_OTHER)), shown)


@pytest.mark.parametrize("algorithm", ["HS256", "HS384", "HS512"])
@pytest.mark.parametrize("kind", PRIVATE)
def test_a_public_key_is_no_hmac_secret(kind, algorithm):
    key = pem(PRIVATE[kind])
    text = f"{part({'alg': algorithm, 'typ': 'JWT'})}.{part(claims())}"
    digest = {"HS256": hashlib.sha256, "HS384": hashlib.sha384, "HS512": hashlib.sha512}[algorithm]
    shown = f"{text}.{part(hmac.new(key, text.encode(), digest).digest())}"

    assert "algorithm" in refusal(verifier(public_key=key), shown)
    refusal(verifier(public_key=key, secret=SECRET), shown)


@pytest.mark.parametrize("algorithm", ["none", "None", "NONE", "", "HS384", "HS512", None, 5, ["HS256"], {}])
def test_no_other_algorithm_is_accepted(algorithm):
    text = f"{part({'alg': algorithm})}.{part(claims())}"
    digests = [b"", hmac.new(SECRET.encode(), text.encode(), hashlib.sha256).digest()]
    for digest in digests:
        refusal(verifier(), f"{text}.{part(digest)}")
        refusal(verifier(public_key=pem(RSA)), f"{text}.{part(digest)}")


def test_a_secret_and_a_public_key_side_by_side():
    check = verifier(secret=SECRET, public_key=pem(RSA))

    assert check.verify_nowait(token()).subject == "kim"
    assert check.verify_nowait(token("RS256", RSA)).subject == "kim"
    assert "signature" in refusal(check, token("RS256", RSA_OTHER))


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"exp": ...}, "`exp` is missing"),
        ({"sub": ...}, "`sub` is missing"),
        ({"exp": None}, "`exp` is missing"),
        ({"sub": ""}, "`sub` is empty"),
        ({"sub": 5}, "`sub` must be a string"),
        ({"exp": 1}, "expired"),
        ({"exp": time.time() - 11}, "expired"),
        ({"exp": "99999999999"}, "`exp` must be a number"),
        ({"exp": True}, "`exp` must be a number"),
        ({"exp": 1e30}, "`exp` must be a number"),
        ({"exp": 10**400}, "`exp` must be a number"),
        ({"exp": float("inf")}, "`exp` must be a number"),
        ({"exp": float("nan")}, "`exp` must be a number"),
        ({"exp": -1}, "`exp` must be a number"),
        ({"exp": [1]}, "`exp` must be a number"),
        ({"nbf": time.time() + 86400}, "not valid yet (`nbf`)"),
        ({"iat": time.time() + 86400}, "not valid yet (`iat`)"),
        ({"nbf": "0"}, "`nbf` must be a number"),
        ({"aud": "others"}, "another audience"),
        ({"scope": 5}, "`scope` has the wrong type"),
        ({"scope": [5]}, "`scope` has the wrong type"),
        ({"modules": "a*"}, "`modules` has the wrong type"),
        ({"modules": []}, "`modules` must have"),
        ({"modules": [None]}, "`modules` has the wrong type"),
    ],
)
def test_claims_that_are_refused(changed, reason):
    assert reason in refusal(verifier(), token(**changed))


def test_leeway():
    just = {"exp": time.time() - 5, "nbf": time.time() + 5, "iat": time.time() + 5}

    assert verifier().verify_nowait(token(**just)).subject == "kim"
    refusal(verifier(leeway_seconds=0.0), token(**just))


def test_issuer_and_audience():
    check = verifier(issuer="us", audience="runner")

    assert check.verify_nowait(token(iss="us", aud=["x", "runner"])).subject == "kim"
    for changed, reason in [
        ({"iss": "us"}, "`aud` is missing"),
        ({"aud": "runner"}, "`iss` is missing"),
        ({"iss": "them", "aud": "runner"}, "another issuer"),
        ({"iss": "us", "aud": "y"}, "another audience"),
        ({"iss": "us", "aud": 5}, "another audience"),
    ]:
        message = refusal(check, token(**changed))
        assert reason in message
        assert "runner" not in message


@pytest.mark.parametrize(
    "shown",
    ["", ".", "..", "a.b.c", "é.é.é", "\ud800", "x" * 20_000, token()[:-3], token() + "A", token().replace(".", "!")],
)
def test_a_malformed_token_is_refused(shown):
    refusal(verifier(), shown)


def test_a_changed_payload_is_noticed():
    head, _, signature = token().split(".")

    assert "signature" in refusal(verifier(), f"{head}.{part(claims(scope='admin'))}.{signature}")
    assert "signature" in refusal(verifier(), token(key="t" * 32))


# The memory of verified tokens


def test_a_cached_token_expires():
    clock = Clock()
    check = Verifier(AuthSettings(), secret=SECRET, clock=clock)
    shown = token(exp=clock.now + 100)
    first = check.verify_nowait(shown)
    clock.now += 109
    assert check.verify_nowait(shown) is first
    clock.now += 2
    assert "expired" in refusal(check, shown)
    assert len(check._cache) == 0


def test_the_cache_is_bounded_and_keeps_used_tokens(monkeypatch):
    monkeypatch.setattr(auth, "CACHED_TOKENS", 3)
    check = verifier()
    often = token(sub="often")
    who = check.verify_nowait(often)
    for number in range(10):
        check.verify_nowait(token(sub=str(number)))
        assert check.verify_nowait(often) is who
    assert len(check._cache) == 3


def test_bad_tokens_are_not_cached():
    check = verifier()
    for shown in (token(exp=1), token(key="t" * 32), "x"):
        refusal(check, shown)
    assert len(check._cache) == 0


# Signing


def test_a_signed_token_is_verified():
    shown = sign(
        SECRET, subject="kim", scopes=["admin"], expires_seconds=60, issuer="us", audience="runner", modules=["a*"]
    )
    check = verifier(issuer="us", audience="runner", leeway_seconds=0.0)

    assert check.verify_nowait(shown) == Principal("kim", frozenset({"admin"}), ("a*",))
    assert verifier().verify_nowait(sign(SECRET, subject="kim", scopes=[], expires_seconds=0.5)).modules == ()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"scopes": ["executions:run", "root"]}, "scope"),
        ({"subject": ""}, "subject"),
        ({"expires_seconds": 0}, "expires"),
        ({"expires_seconds": float("nan")}, "expires"),
        ({"expires_seconds": 1e12}, "expires"),
        ({"secret": "short"}, "jwt_secret"),
    ],
)
def test_wrong_claims_are_not_signed(changed, field):
    given = {"secret": SECRET, "subject": "kim", "scopes": ["admin"], "expires_seconds": 60, **changed}
    with pytest.raises(RunnerError) as caught:
        sign(given.pop("secret"), **given)
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, field)


@pytest.mark.parametrize("header", ["Bearer a.b-c_d=", "bearer a.b-c_d=", "BEARER   a.b-c_d= "])
def test_bearer(header):
    assert bearer(header) == "a.b-c_d="


@pytest.mark.parametrize(
    "header", [None, "", "Bearer", "Bearer ", "Basic abc", "Bearer a b", "a.b.c", "Bearer é", "Bearer a\n"]
)
def test_a_malformed_authorization_is_refused(header):
    with pytest.raises(RunnerError) as caught:
        bearer(header)
    assert caught.value.failure.kind is ErrorKind.UNAUTHENTICATED


@pytest.mark.parametrize("header", ["Bearer", "Bearer ", "bearer  "])
def test_an_empty_token_is_named(header):
    with pytest.raises(RunnerError, match="the token after `Bearer` is empty"):
        bearer(header)
