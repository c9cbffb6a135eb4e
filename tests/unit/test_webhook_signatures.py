"""Unit: signatures of requests, by the examples of their senders, and each way to be wrong."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import json
import time

import pytest
from standardwebhooks.webhooks import Webhook

from config.modules import Algorithm, Encoding, Scheme, Signature
from protocol.errors import ErrorKind, RunnerError
from runner.rest.hooks.signatures import Checked, Refusal, check

GITHUB = Signature(("A",), Scheme.GITHUB)
GITHUB_SECRET = "It's a Secret to Everybody"
GITHUB_BODY = b"Hello, World!"
GITHUB_SHOWN = {b"x-hub-signature-256": b"sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"}
"""The example of GitHub's page about validating deliveries."""

SLACK = Signature(("A",), Scheme.SLACK)
SLACK_SECRET = "8f742231b10e8888abcd99yyyzzz85a5"
SLACK_AT = 1531420618
SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V"
    b"&channel_name=foobar&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text="
    b"&response_url=https%3A%2F%2Fhooks.slack.com%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN"
    b"&trigger_id=398738663015.47445629121.803a0bc887a14d10d2c447fce8b6703c"
)
SLACK_SHOWN = {
    b"x-slack-request-timestamp": b"1531420618",
    b"x-slack-signature": b"v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
}
"""The example of Slack's page about verifying requests."""

STANDARD = Signature(("A",), Scheme.STANDARD)
STANDARD_SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
STANDARD_AT = 1614265330
STANDARD_BODY = b'{"test": 2432232314}'
STANDARD_SHOWN = {
    b"webhook-id": b"msg_p5jXN8AQM9LWM0D4loKWxJek",
    b"webhook-timestamp": b"1614265330",
    b"webhook-signature": b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
}
"""The example of the documentation of Standard Webhooks."""

STRIPE = Signature(("A",), Scheme.STRIPE)
STRIPE_SECRET = "whsec_test_secret"
STRIPE_AT = 1700000000
STRIPE_BODY = b'{"id": "evt_1", "object": "event", "type": "charge.succeeded"}'


def stripe(secret=STRIPE_SECRET, at=STRIPE_AT, body=STRIPE_BODY):
    """Return the header as Stripe documents it: HMAC of the time, a full stop and the body; its own libraries agree."""
    digest = hmac.new(secret.encode(), f"{at}.".encode() + body, hashlib.sha256).hexdigest()
    return {b"stripe-signature": f"t={at},v1={digest},v0=6ffbb59b2300aae63f272406069a9788598b792a".encode()}


EXAMPLES = [
    pytest.param(GITHUB, GITHUB_SECRET, GITHUB_SHOWN, GITHUB_BODY, time.time(), id="github"),
    pytest.param(SLACK, SLACK_SECRET, SLACK_SHOWN, SLACK_BODY, SLACK_AT, id="slack"),
    pytest.param(STANDARD, STANDARD_SECRET, STANDARD_SHOWN, STANDARD_BODY, STANDARD_AT, id="standard"),
    pytest.param(STRIPE, STRIPE_SECRET, stripe(), STRIPE_BODY, STRIPE_AT, id="stripe"),
]
TIMED = EXAMPLES[1:]


@pytest.mark.parametrize(("signature", "secret", "fields", "body", "now"), EXAMPLES)
def test_the_example_of_the_sender_is_right(signature, secret, fields, body, now):
    assert check(signature, [secret], fields, body, now).refusal is None


@pytest.mark.parametrize(("signature", "secret", "fields", "body", "now"), EXAMPLES)
def test_another_body_or_secret_is_wrong(signature, secret, fields, body, now):
    other = "whsec_" + base64.b64encode(b"another").decode()
    assert check(signature, [secret], fields, body + b" ", now).refusal is Refusal.WRONG
    assert check(signature, [secret], fields, b"", now).refusal is Refusal.WRONG
    assert check(signature, [other], fields, body, now).refusal is Refusal.WRONG


@pytest.mark.parametrize(("signature", "secret", "fields", "body", "now"), EXAMPLES)
def test_any_of_several_secrets_is_right(signature, secret, fields, body, now):
    other = "whsec_" + base64.b64encode(b"another").decode()
    assert check(signature, [other, secret], fields, body, now).refusal is None
    assert check(signature, [secret, other], fields, body, now).refusal is None


@pytest.mark.parametrize(("signature", "secret", "fields", "body", "now"), EXAMPLES)
def test_a_request_without_one_of_the_headers_has_no_signature(signature, secret, fields, body, now):
    for name in fields:
        left = {each: value for each, value in fields.items() if each != name}
        assert check(signature, [secret], left, body, now) == Checked(Refusal.MISSING)


@pytest.mark.parametrize(("signature", "secret", "fields", "body", "now"), TIMED)
@pytest.mark.parametrize(("late", "refusal"), [(300, None), (301, Refusal.OLD), (-300, None), (-301, Refusal.OLD)])
def test_the_signed_time_is_near_now(signature, secret, fields, body, now, late, refusal):
    assert check(signature, [secret], fields, body, now + late).refusal is refusal


def test_the_tolerance_can_be_chosen():
    signature = Signature(("A",), Scheme.STRIPE, tolerance=10)
    assert check(signature, [STRIPE_SECRET], stripe(), STRIPE_BODY, STRIPE_AT + 10).refusal is None
    assert check(signature, [STRIPE_SECRET], stripe(), STRIPE_BODY, STRIPE_AT + 11).refusal is Refusal.OLD


@pytest.mark.parametrize(
    ("signature", "name", "value"),
    [
        (GITHUB, b"x-hub-signature-256", b""),
        (GITHUB, b"x-hub-signature-256", b"sha256="),
        (GITHUB, b"x-hub-signature-256", b"sha256=zz"),
        (GITHUB, b"x-hub-signature-256", b"sha1=757107ea0eb2509fc211221cce984b8a37570b6d"),
        (GITHUB, b"x-hub-signature-256", b"\xff\xfe"),
        (STRIPE, b"stripe-signature", b""),
        (STRIPE, b"stripe-signature", b"t=,v1=00"),
        (STRIPE, b"stripe-signature", b"t=1700000000,t=1700000000,v1=00"),
        (STRIPE, b"stripe-signature", b"t=99999999999999999999999,v1=00"),
        (STRIPE, b"stripe-signature", b"," * 10_000),
        (SLACK, b"x-slack-signature", b"v1=00"),
        (SLACK, b"x-slack-request-timestamp", b"soon"),
        (SLACK, b"x-slack-request-timestamp", b"-1531420618"),
        (SLACK, b"x-slack-request-timestamp", b"1531420618.0"),
        (STANDARD, b"webhook-signature", b"v1"),
        (STANDARD, b"webhook-signature", b"v1a,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="),
        (STANDARD, b"webhook-signature", b"v1,!!!"),
        (STANDARD, b"webhook-timestamp", b"1e9"),
        (STANDARD, b"webhook-id", b"msg_other"),
    ],
)
def test_headers_of_another_form_are_wrong(signature, name, value):
    given = {GITHUB: EXAMPLES[0], SLACK: EXAMPLES[1], STANDARD: EXAMPLES[2], STRIPE: EXAMPLES[3]}[signature].values
    _, secret, fields, body, now = given
    assert check(signature, [secret], {**fields, name: value}, body, now).refusal is Refusal.WRONG


def test_one_of_several_signatures_is_enough():
    several = {**STANDARD_SHOWN, b"webhook-signature": b"v1,AAAA " + STANDARD_SHOWN[b"webhook-signature"]}
    assert check(STANDARD, [STANDARD_SECRET], several, STANDARD_BODY, STANDARD_AT).refusal is None
    header = stripe()[b"stripe-signature"].replace(b",v1=", b",v1=00,v1=")
    assert check(STRIPE, [STRIPE_SECRET], {b"stripe-signature": header}, STRIPE_BODY, STRIPE_AT).refusal is None


def test_the_official_library_of_standard_webhooks_agrees():
    secret = "whsec_" + base64.b64encode(b"k" * 24).decode()
    now = dt.datetime.now(tz=dt.UTC)
    body = json.dumps({"type": "invoice.paid", "data": {"name": "ü"}})
    signed = Webhook(secret).sign("msg_1", now, body)
    fields = {
        b"webhook-id": b"msg_1",
        b"webhook-timestamp": str(int(now.timestamp())).encode(),
        b"webhook-signature": signed.encode(),
    }

    assert check(STANDARD, [secret], fields, body.encode(), now.timestamp()) == Checked(delivery="msg_1")
    assert Webhook(secret).verify(body, {name.decode(): value.decode() for name, value in fields.items()})


@pytest.mark.parametrize("secret", ["whsec_", "whsec_***", "not base64!"])
def test_a_secret_of_standard_webhooks_is_base64(secret):
    with pytest.raises(RunnerError) as caught:
        check(STANDARD, [secret], STANDARD_SHOWN, STANDARD_BODY, STANDARD_AT)
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE
    assert "***" not in caught.value.failure.message


@pytest.mark.parametrize("secrets", [[""], ["", STRIPE_SECRET]])
def test_nobody_can_sign_by_an_empty_secret(secrets):
    with pytest.raises(RunnerError) as caught:
        check(Signature(("A", "B"), Scheme.STRIPE), secrets, stripe(""), STRIPE_BODY, STRIPE_AT)
    assert caught.value.failure.kind is ErrorKind.UNAVAILABLE


# -- a header of any name ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", Algorithm)
@pytest.mark.parametrize("encoding", Encoding)
@pytest.mark.parametrize("prefix", ["", "sig="])
def test_a_signature_in_a_header_of_any_name(algorithm, encoding, prefix):
    signature = Signature(("A",), None, "X-Signature", algorithm, encoding, prefix)
    digest = hmac.new(b"key", b"body", algorithm.removeprefix("hmac-")).digest()
    written = digest.hex() if encoding is Encoding.HEX else base64.b64encode(digest).decode()

    def refusal(value):
        return check(signature, ["key"], {b"x-signature": value.encode()}, b"body", 0).refusal

    assert refusal(prefix + written) is None
    assert refusal(f" {prefix}{written} ") is None
    assert refusal(prefix + written[:-4]) is Refusal.WRONG
    assert refusal("other" + written) is Refusal.WRONG
    assert check(signature, ["key"], {}, b"body", 0).refusal is Refusal.MISSING


# -- ids of messages ---------------------------------------------------------------------------------------------------


def test_the_id_of_a_message_is_that_of_its_scheme():
    github = {**GITHUB_SHOWN, b"x-github-delivery": b"72d3162e-cc78-11e3-81ab-4c9367dc0958"}
    assert check(GITHUB, [GITHUB_SECRET], github, GITHUB_BODY, 0).delivery == "72d3162e-cc78-11e3-81ab-4c9367dc0958"
    assert check(STANDARD, [STANDARD_SECRET], STANDARD_SHOWN, STANDARD_BODY, STANDARD_AT).delivery == (
        "msg_p5jXN8AQM9LWM0D4loKWxJek"
    )
    assert check(STRIPE, [STRIPE_SECRET], stripe(), STRIPE_BODY, STRIPE_AT).delivery == "evt_1"
    body = b'{"type": "event_callback", "event_id": "Ev9", "event": {"id": 3}}'
    digest = hmac.new(SLACK_SECRET.encode(), b"v0:1531420618:" + body, hashlib.sha256).hexdigest()
    fields = {**SLACK_SHOWN, b"x-slack-signature": f"v0={digest}".encode()}
    assert check(SLACK, [SLACK_SECRET], fields, body, SLACK_AT).delivery == "Ev9"


@pytest.mark.parametrize("body", [b"", b"[1]", b'{"id": 5}', b'{"id": null}', b"\xff", b"[" * 100_000, b'"evt_1"'])
def test_a_message_without_an_id_has_none(body):
    found = check(STRIPE, [STRIPE_SECRET], stripe(body=body), body, STRIPE_AT)
    assert found == Checked()
    assert check(SLACK, [SLACK_SECRET], SLACK_SHOWN, SLACK_BODY, SLACK_AT).delivery is None
