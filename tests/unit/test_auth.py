"""Unit: tokens of every kind of key, good and bad; keys behind a URL on a real server; the runner's own secret."""

import base64
import hashlib
import hmac
import json
import os
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import jwt
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from trio.testing import wait_all_tasks_blocked

from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError
from runner import auth
from runner.auth import Principal, Verifier, bearer, load_or_make_secret, sign

SECRET = "s" * 32
RSA = rsa.generate_private_key(65537, 2048)
RSA_OTHER = rsa.generate_private_key(65537, 2048)
PRIVATE = {
    "rsa": RSA,
    "p256": ec.generate_private_key(ec.SECP256R1()),
    "p384": ec.generate_private_key(ec.SECP384R1()),
    "p521": ec.generate_private_key(ec.SECP521R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate(),
    "ed448": ed448.Ed448PrivateKey.generate(),
}
GOOD = [
    *(("rsa", name) for name in ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")),
    ("p256", "ES256"),
    ("p384", "ES384"),
    ("p521", "ES512"),
    ("ed25519", "EdDSA"),
    ("ed448", "EdDSA"),
]


class Clock:
    """The time of day, moved by hand; starts now, so that PyJWT agrees."""

    def __init__(self):
        self.now = time.time()

    def __call__(self):
        return self.now


def pem(key):
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def claims(**changed):
    return {"sub": "kim", "exp": time.time() + 3600, "scope": "executions:run", **changed}


def token(algorithm="HS256", key=SECRET, headers=None, **changed):
    some = {name: value for name, value in claims(**changed).items() if value is not ...}
    return jwt.encode(some, key, algorithm=algorithm, headers=headers)


def part(value):
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


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


async def test_a_good_token_says_who_calls():
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
def test_what_is_no_token(shown):
    refusal(verifier(), shown)


def test_a_changed_payload_is_noticed():
    head, _, signature = token().split(".")

    assert "signature" in refusal(verifier(), f"{head}.{part(claims(scope='admin'))}.{signature}")
    assert "signature" in refusal(verifier(), token(key="t" * 32))


# The memory of verified tokens


def test_a_remembered_token_expires():
    clock = Clock()
    check = Verifier(AuthSettings(), secret=SECRET, clock=clock)
    shown = token(exp=clock.now + 100)
    first = check.verify_nowait(shown)
    clock.now += 109
    assert check.verify_nowait(shown) is first
    clock.now += 2
    assert "expired" in refusal(check, shown)
    assert len(check._cache) == 0


def test_the_memory_is_bounded_and_keeps_what_is_used(monkeypatch):
    monkeypatch.setattr(auth, "CACHED_TOKENS", 3)
    check = verifier()
    often = token(sub="often")
    who = check.verify_nowait(often)
    for number in range(10):
        check.verify_nowait(token(sub=str(number)))
        assert check.verify_nowait(often) is who
    assert len(check._cache) == 3


def test_bad_tokens_are_not_remembered():
    check = verifier()
    for shown in (token(exp=1), token(key="t" * 32), "x"):
        refusal(check, shown)
    assert len(check._cache) == 0


# Keys that cannot be used


@pytest.mark.parametrize("secret", ["", "x" * 31, "é" * 15, pem(RSA).decode()])
def test_secrets_that_are_no_secrets(secret):
    with pytest.raises(RunnerError) as caught:
        Verifier(AuthSettings(secret=secret))
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "secret")


def private_pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        (b"", "not a public key"),
        (b"x" * 100, "not a public key"),
        (private_pem(RSA), "private key"),
        (private_pem(PRIVATE["p256"]), "private key"),
        (pem(rsa.generate_private_key(65537, 1024)), "2048 bits"),
        (pem(ec.generate_private_key(ec.SECP256K1())), "P-256"),
    ],
)
def test_public_keys_that_cannot_be_used(key, reason):
    with pytest.raises(RunnerError, match=reason) as caught:
        verifier(public_key=key)
    assert caught.value.failure.field == "public_key_file"


def test_some_key_must_be_given():
    with pytest.raises(RunnerError, match="need a secret"):
        Verifier(AuthSettings())
    with pytest.raises(RunnerError, match="not both"):
        Verifier(AuthSettings(jwks_url="http://127.0.0.1:1"), public_key=pem(RSA))
    with pytest.raises(RunnerError, match="JWKS URL cannot be used"):
        Verifier(AuthSettings(jwks_url="file:///etc/passwd"))


# Keys behind a URL


def jwk(kind, name, **changed):
    key = PRIVATE[kind].public_key() if isinstance(kind, str) else kind.public_key()
    algorithm = {"rsa": "RS256", "ed25519": "EdDSA"}.get(kind, "ES256") if isinstance(kind, str) else "RS256"
    data = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    return {key: value for key, value in {**data, "kid": name, "use": "sig", **changed}.items() if value is not ...}


class KeyServer:
    """A JWKS server on a loopback port: `keys` are served; `gate` holds answers back, `status` spoils them."""

    def __init__(self):
        self.keys, self.fetches, self.status = [], 0, 200
        self.gate = threading.Event()
        self.gate.set()


@pytest.fixture
def keys():
    server = KeyServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            server.fetches += 1
            server.gate.wait(20)
            body = json.dumps({"keys": server.keys}).encode()
            try:
                self.send_response(server.status)
                self.send_header("content-length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)
            except OSError:
                pass  # the client has given up, which is what some tests are about

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as http:
        http.daemon_threads = False
        thread = threading.Thread(target=http.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        server.url = f"http://127.0.0.1:{http.server_port}/keys"
        try:
            yield server
        finally:
            server.gate.set()
            http.shutdown()
            thread.join()


def remote(keys, clock=time.time):
    return Verifier(AuthSettings(jwks_url=keys.url), clock=clock)


async def refused(check, shown, kind=ErrorKind.UNAUTHENTICATED):
    with pytest.raises(RunnerError) as caught:
        await check.verify(shown)
    assert caught.value.failure.kind is kind
    return caught.value.failure.message


async def test_keys_are_fetched_once_and_by_name(keys):
    keys.keys = [jwk("rsa", "a"), jwk("p256", "b"), jwk("ed25519", "c")]
    check = remote(keys)
    assert not check.local
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(check.verify, token("RS256", RSA, {"kid": "a"}))
            nursery.start_soon(check.verify, token("PS512", RSA, {"kid": "a"}))
            nursery.start_soon(check.verify, token("ES256", PRIVATE["p256"], {"kid": "b"}))
            nursery.start_soon(check.verify, token("EdDSA", PRIVATE["ed25519"], {"kid": "c"}))
    assert keys.fetches == 1
    assert "does not name its key" in await refused(check, token("RS256", RSA))
    assert "signature" in await refused(check, token("RS256", RSA_OTHER, {"kid": "a"}))
    assert "algorithm" in await refused(check, token("ES256", PRIVATE["p256"], {"kid": "a"}))
    assert keys.fetches == 1


async def test_a_key_may_be_used_with_its_declared_algorithm_only(keys):
    secret = part(SECRET.encode())
    keys.keys = [
        jwk("rsa", "a", alg="RS256"),
        {"kty": "oct", "kid": "secret", "k": secret, "alg": "HS256"},
        jwk("p256", "enc", use="enc"),
    ]
    check = remote(keys)
    assert (await check.verify(token("RS256", RSA, {"kid": "a"}))).subject == "kim"
    assert "algorithm" in await refused(check, token("RS512", RSA, {"kid": "a"}))
    assert "not known" in await refused(check, token("HS256", SECRET, {"kid": "secret"}))
    assert "not known" in await refused(check, token("ES256", PRIVATE["p256"], {"kid": "enc"}))


async def test_rotation(keys):
    clock = Clock()
    keys.keys = [jwk("rsa", "old")]
    check = remote(keys, clock)
    old, new = token("RS256", RSA, {"kid": "old"}), token("RS256", RSA_OTHER, {"kid": "new"})
    await check.verify(old)
    keys.keys = [jwk(RSA_OTHER, "new")]
    for _ in range(10):
        assert "not known" in await refused(check, new)
    assert keys.fetches == 1, "an unknown name does not make the server work before the cooldown is over"
    clock.now += 31
    assert (await check.verify(new)).subject == "kim"
    assert keys.fetches == 2
    assert (await check.verify(old)).subject == "kim", "remembered as long as its key was good for"
    clock.now += 270
    assert "not known" in await refused(check, old)


async def test_a_key_that_was_withdrawn_is_forgotten_after_five_minutes(keys):
    clock = Clock()
    keys.keys = [jwk("rsa", "a")]
    check = remote(keys, clock)
    shown = token("RS256", RSA, {"kid": "a"})
    await check.verify(shown)
    keys.keys = [jwk(RSA_OTHER, "b")]
    clock.now += 301
    assert "not known" in await refused(check, shown)


@pytest.mark.parametrize("spoil", [{"status": 500}, {"keys": []}, {"keys": 5}, {"keys": [{}]}, {"status": 302}])
async def test_a_server_that_fails_is_not_asked_by_every_caller(keys, spoil):
    clock = Clock()
    for name, value in spoil.items():
        setattr(keys, name, value)
    check = remote(keys, clock)
    shown = token("RS256", RSA, {"kid": "a"})
    for _ in range(5):
        assert "JWKS" in await refused(check, shown, ErrorKind.UNAVAILABLE)
    assert keys.fetches == 1
    keys.status, keys.keys = 200, [jwk("rsa", "a")]
    clock.now += 6
    assert (await check.verify(shown)).subject == "kim"


async def test_no_server_at_all():
    check = Verifier(AuthSettings(jwks_url="http://127.0.0.1:1/keys"))
    await refused(check, token("RS256", RSA, {"kid": "a"}), ErrorKind.UNAVAILABLE)


async def test_a_hung_server_costs_a_bounded_time_and_cancellation_less(keys, monkeypatch):
    monkeypatch.setattr(auth, "_FETCH_SECONDS", 0.2)
    keys.gate.clear()
    keys.keys = [jwk("rsa", "a")]
    clock = Clock()
    check = remote(keys, clock)
    shown = token("RS256", RSA, {"kid": "a"})
    with trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(check.verify, shown)
            await wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(refused, check, shown, ErrorKind.UNAVAILABLE)
    assert keys.fetches <= 2
    keys.gate.set()
    clock.now += 1
    assert (await check.verify(shown)).subject == "kim"


async def test_a_secret_beside_a_url_needs_no_fetch(keys):
    check = Verifier(AuthSettings(secret=SECRET, jwks_url=keys.url))

    assert (await check.verify(token())).subject == "kim"
    assert check.verify_nowait(token(sub="lee")).subject == "lee"
    assert keys.fetches == 0


# Signing


def test_what_is_signed_is_verified():
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
        ({"secret": "short"}, "secret"),
    ],
)
def test_what_cannot_be_signed(changed, field):
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
def test_what_is_no_bearer(header):
    with pytest.raises(RunnerError) as caught:
        bearer(header)
    assert caught.value.failure.kind is ErrorKind.UNAUTHENTICATED


# The runner's own secret


def test_the_secret_is_made_once_and_for_the_owner_only(tmp_path):
    secret, made = load_or_make_secret(tmp_path / "data")
    assert made
    assert len(secret) >= 32
    assert load_or_make_secret(tmp_path / "data") == (secret, False)
    (path,) = (tmp_path / "data").iterdir()
    assert path.name == "jwt-secret"
    assert path.stat().st_mode & 0o777 == 0o600
    assert Verifier(AuthSettings(), secret=secret).local


LOAD = """
import json, sys
from pathlib import Path
from runner.auth import load_or_make_secret
sys.stdin.readline()
print(json.dumps(load_or_make_secret(Path(sys.argv[1]))))
"""


def test_many_processes_make_one_secret(tmp_path):
    command = [sys.executable, "-c", LOAD, str(tmp_path)]
    root = Path(__file__).parents[2]
    processes = [
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root, text=True) for _ in range(4)
    ]
    for process in processes:
        process.stdin.write("go\n")
        process.stdin.flush()
    got = []
    for process in processes:
        out, _ = process.communicate(timeout=60)
        got.append(json.loads(out))

    assert len({secret for secret, _ in got}) == 1
    assert [made for _, made in got].count(True) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["jwt-secret"]


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o660, 0o601])
def test_a_secret_that_others_may_read_is_refused(tmp_path, mode):
    load_or_make_secret(tmp_path)
    (tmp_path / "jwt-secret").chmod(mode)
    with pytest.raises(RunnerError, match="chmod 600") as caught:
        load_or_make_secret(tmp_path)
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE


@pytest.mark.parametrize("content", [b"", b"short\n", b"\xff" * 40])
def test_a_file_that_is_no_secret_is_refused(tmp_path, content):
    path = tmp_path / "jwt-secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(RunnerError, match="is not a secret"):
        load_or_make_secret(tmp_path)


def test_links_and_things_that_are_no_files_are_refused(tmp_path):
    load_or_make_secret(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "jwt-secret").symlink_to(tmp_path / "a" / "jwt-secret")
    (tmp_path / "c").mkdir()
    os.mkfifo(tmp_path / "c" / "jwt-secret", 0o600)
    (tmp_path / "d").write_text("")
    for name in "bcd":
        with pytest.raises(RunnerError) as caught:
            load_or_make_secret(tmp_path / name)
        assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
