"""Unit: keys that cannot be used, and keys behind a URL on a real server."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from trio.testing import wait_all_tasks_blocked

from config.settings import AuthSettings
from protocol.errors import ErrorKind, RunnerError
from runner.auth import jwks
from runner.auth.tokens import Verifier
from tests.tokens import PRIVATE, RSA, RSA_OTHER, SECRET, Clock, part, pem, token

# Keys that cannot be used


@pytest.mark.parametrize("secret", ["", "x" * 31, "é" * 15, pem(RSA).decode()])
def test_unusable_secrets_are_refused(secret):
    with pytest.raises(RunnerError) as caught:
        Verifier(AuthSettings(secret=secret))
    assert (caught.value.failure.kind, caught.value.failure.field) == (ErrorKind.BAD_INPUT, "jwt_secret")


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
        Verifier(AuthSettings(), public_key=key)
    assert caught.value.failure.field == "jwt_public_key_file"


def test_some_key_must_be_given():
    with pytest.raises(RunnerError, match="need `jwt_secret`"):
        Verifier(AuthSettings())
    with pytest.raises(RunnerError, match="not both"):
        Verifier(AuthSettings(jwks_url="http://127.0.0.1:1"), public_key=pem(RSA))
    with pytest.raises(RunnerError, match="jwt_jwks_url` cannot be used"):
        Verifier(AuthSettings(jwks_url="file:///etc/passwd"))


# Keys behind a URL


def jwk(kind, name, **changed):
    key = PRIVATE[kind].public_key() if isinstance(kind, str) else kind.public_key()
    algorithm = {"rsa": "RS256", "ed25519": "EdDSA"}.get(kind, "ES256") if isinstance(kind, str) else "RS256"
    data = jwt.get_algorithm_by_name(algorithm).to_jwk(key, as_dict=True)
    return {key: value for key, value in {**data, "kid": name, "use": "sig", **changed}.items() if value is not ...}


class KeyServer:
    """A JWKS server on a loopback port: it serves `keys`; `gate` delays answers, `status` spoils them."""

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
    assert "not known" in await refused(check, old), "it was verified by a key that is gone"
    keys.keys = [jwk("rsa", "new")]
    clock.now += 61
    assert "signature" in await refused(check, new), "another key has its name"


async def test_a_token_is_remembered_until_the_next_fetch(keys):
    clock = Clock()
    keys.keys = [jwk("rsa", "a")]
    check = remote(keys, clock)
    shown = token("RS256", RSA, {"kid": "a"})
    first = await check.verify(shown)
    clock.now += 59
    assert await check.verify(shown) is first
    clock.now += 2
    assert await check.verify(shown) is not first
    assert keys.fetches == 2


async def test_the_last_keys_are_used_while_their_server_is_broken(keys):
    clock = Clock()
    keys.keys = [jwk("rsa", "a")]
    check = remote(keys, clock)
    shown, other = token("RS256", RSA, {"kid": "a"}), token("RS256", RSA_OTHER, {"kid": "b"})
    await check.verify(shown)
    keys.status = 500
    for _ in range(3):
        clock.now += 90
        assert (await check.verify(shown)).subject == "kim"
        assert "JWKS" in await refused(check, other, ErrorKind.UNAVAILABLE)
    clock.now += 31
    assert "JWKS" in await refused(check, shown, ErrorKind.UNAVAILABLE)
    keys.status, keys.keys = 200, [jwk(RSA_OTHER, "b")]
    clock.now += 6
    assert "not known" in await refused(check, shown)
    assert (await check.verify(other)).subject == "kim"


async def test_a_slow_server_holds_up_one_caller_only(keys):
    clock = Clock()
    keys.keys = [jwk("rsa", "a")]
    check = remote(keys, clock)
    shown = token("RS256", RSA, {"kid": "a"})
    await check.verify(shown)
    clock.now += 61
    keys.gate.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(check.verify, shown)
        await wait_all_tasks_blocked()
        assert (await check.verify(shown)).subject == "kim"
        keys.gate.set()


async def test_a_withdrawn_key_is_forgotten_after_a_minute(keys):
    clock = Clock()
    keys.keys = [jwk("rsa", "a")]
    check = remote(keys, clock)
    shown = token("RS256", RSA, {"kid": "a"})
    await check.verify(shown)
    keys.keys = [jwk(RSA_OTHER, "b")]
    clock.now += 61
    assert "not known" in await refused(check, shown)


@pytest.mark.parametrize("spoil", [{"status": 500}, {"keys": []}, {"keys": 5}, {"keys": [{}]}, {"status": 302}])
async def test_a_failing_server_is_not_asked_by_every_caller(keys, spoil):
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
    monkeypatch.setattr(jwks, "_FETCH_SECONDS", 0.2)
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
