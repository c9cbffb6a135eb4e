"""Helpers for the tests of tokens and keys: a key of every kind, tokens good and bad, and a clock moved by hand."""

import base64
import json
import time

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

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
