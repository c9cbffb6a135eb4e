"""Unit: sessions of the dashboard, links, cookies, and requests that other sites forge."""

from __future__ import annotations

import pytest
import trio

from runner.http import OUTSIDE, Outside
from runner.ui.headers import cookies, secure, session_cookie, set_session
from runner.ui.sessions import LINK_SECONDS, Links, Sessions, forged, links, sessions


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_a_session_ends_when_it_is_unused_or_old(clock: Clock) -> None:
    known = Sessions(clock)
    name, session = known.open("secret", "kim")
    assert "secret" not in repr(session) + repr(known)
    clock.now += sessions.IDLE_SECONDS - 1
    assert known.find(name) is session
    clock.now += sessions.IDLE_SECONDS
    assert known.find(name) is None
    name, _ = known.open("secret", "kim")
    for _ in range(9):
        clock.now += sessions.LIFE_SECONDS / 10
        assert known.find(name) is not None
    clock.now += sessions.LIFE_SECONDS / 10
    assert known.find(name) is None
    assert len(known) == 0
    name, _ = known.open("secret", "kim")
    clock.now -= 10  # the clock was set back
    assert known.find(name) is None


def test_sessions_are_bounded_for_each_subject_and_in_all(clock: Clock) -> None:
    known = Sessions(clock)
    names = [known.open("a", "kim")[0] for _ in range(sessions.MAX_OF_ONE)]
    assert known.find(names[0]) is not None  # used last
    known.open("b", "kim")
    assert known.find(names[1]) is None
    assert known.find(names[0]) is not None
    for number in range(sessions.MAX_SESSIONS + 10):
        known.open("c", f"subject-{number}")
    assert len(known) == sessions.MAX_SESSIONS
    assert known.find(names[0]) is None


async def test_an_ended_session_ends_its_waits(clock: Clock) -> None:
    known = Sessions(clock)
    name, session = known.open("a", "kim")
    ended = []

    async def wait() -> None:
        with session.lasting():
            await trio.sleep_forever()
        ended.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        known.close(name)
        known.close(name)
    assert ended == [True]
    assert known.find(name) is None


def test_a_link_is_good_once_and_for_a_minute(clock: Clock) -> None:
    known = Links(clock)
    code = known.make("secret", "kim")
    assert "secret" not in repr(known)
    assert known.take(code + "x") is None
    assert known.take(code) == "secret"
    assert known.take(code) is None
    code = known.make("secret", "kim")
    clock.now += LINK_SECONDS
    assert known.take(code) is None


def test_links_are_bounded(clock: Clock) -> None:
    known = Links(clock)
    other = known.make("other", "lee")
    codes = [known.make("secret", "kim") for _ in range(links.MAX_OF_ONE + 1)]
    assert [known.take(codes[0]), known.take(codes[1]), known.take(other)] == [None, "secret", "other"]
    first = known.make("first", "ada")
    for number in range(links.MAX_LINKS):
        known.make("x", str(number))
    assert known.take(first) is None


@pytest.mark.parametrize(
    ("fields", "outside", "expected"),
    [
        ({b"sec-fetch-site": b"same-origin", b"host": b"a"}, "", False),
        ({b"sec-fetch-site": b"same-origin", b"host": b"a", b"origin": b"http://b"}, "", False),
        ({b"sec-fetch-site": b"same-site", b"host": b"a", b"origin": b"http://a"}, "", True),
        ({b"sec-fetch-site": b"none", b"host": b"a"}, "", True),
        ({b"host": b"a:8000", b"origin": b"http://A:8000"}, "", False),
        ({b"host": b"a:8000", b"origin": b"http://a:8001"}, "", True),
        ({b"host": b"a", b"origin": b"null"}, "", True),
        ({b"host": b"null", b"origin": b"null"}, "", True),
        ({b"host": b"a"}, "", True),
        ({b"host": b"", b"origin": b"http://"}, "", True),
        ({b"origin": b"https://"}, "", True),
        ({b"host": b"10.0.0.1:8000", b"origin": b"https://example.org"}, "https://example.org/runner", False),
        ({b"host": b"10.0.0.1:8000", b"origin": b"https://example.org.evil"}, "https://example.org/runner", True),
        ({b"host": b"a", b"origin": b"http://a.evil"}, "", True),
        ({b"host": b"a", b"origin": b"http://a, http://b"}, "", True),
    ],
)
def test_a_request_of_another_site_is_told_by_its_headers(
    fields: dict[bytes, bytes], outside: str, expected: bool
) -> None:
    assert forged(fields, outside) is expected


def test_the_cookie_is_of_this_server_and_secure_over_tls() -> None:
    plain, tls = {"scheme": "http"}, {"scheme": "https"}
    proxied = {"scheme": "http", OUTSIDE: Outside("https://example.org/runner", "/runner")}
    assert [secure(each) for each in (plain, tls, proxied)] == [False, True, True]
    assert session_cookie(plain, {b"host": b"localhost:8001"}) == "operato_session_8001"
    assert session_cookie(plain, {b"host": b"[::1]"}) == "operato_session"
    assert session_cookie(tls, {b"host": b"example.org"}) == "__Secure-operato_session"
    assert set_session(proxied, "c", "n") == "c=n; Path=/runner/ui; HttpOnly; SameSite=Strict; Secure"
    assert set_session(plain, "c", "").endswith("Max-Age=0")


def test_cookies_are_read_as_browsers_send_them() -> None:
    fields = {b"cookie": b'a=1; operato_session=x; b="2"; operato_session=y;=z; ;c'}
    assert cookies(fields, "operato_session") == ["x", "y"]
    assert cookies(fields, "b") == ["2"]
    assert cookies({}, "a") == []
    assert len(cookies({b"cookie": b"a=1;" * 1000}, "a")) == 5
