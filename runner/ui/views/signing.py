"""Signing in and out, links that sign in once, and the choice of language and colours."""

from __future__ import annotations

from typing import Final
from urllib.parse import unquote

import msgspec

from protocol.errors import ErrorKind, RunnerError, error
from runner.auth import authenticate
from runner.ui.headers import cookies, session_cookie, set_preference, set_session
from runner.ui.refusals import status_of
from runner.ui.sessions import LINK_SECONDS
from runner.ui.visit import PREFIX, Reply, Visit, view
from runner.ui.words import LANGUAGES

_MAX_FORM: Final = 64 * 1024
"""Of a form that everybody may send; a token has at most 16 KiB."""
_THEMES: Final = ("light", "dark", "")


@view("GET", "/sign-in", open=True, raw=True)
async def ask(page: Visit) -> Reply:
    """Show the form for a token or key, or the button of a link. A link is not used up by being opened."""
    if page.session is not None and "code" not in page.query:
        return page.redirect(safe_path(page.query.get("next")))
    return _form(page)


@view("POST", "/sign-in", open=True, raw=True)
async def sign_in(page: Visit) -> Reply:
    """Begin a session with the token or key of the form, or of the link."""
    await page.read_posted(_MAX_FORM)
    code = page.form.get("code", "")
    try:
        credential = _linked(page, code) if code else _given(page.form.get("token", ""))
        owner = await page.access.owner(credential)
    except RunnerError as problem:
        return _form(page, status=status_of(problem.failure), failure=problem.failure)
    _end_session(page)
    name, _ = page.access.sessions.open(credential, owner.subject)
    page.cookies[:] = [set_session(page.scope, session_cookie(page.scope, page.fields), name)]
    return page.redirect(safe_path(page.form.get("next")))


@view("POST", "/sign-out", raw=False)
async def sign_out(page: Visit) -> Reply:
    """End the session and all its streams."""
    _end_session(page)
    page.cookies.append(set_session(page.scope, session_cookie(page.scope, page.fields), ""))
    return page.redirect("/sign-in", out="1")


@view("POST", "/preferences", open=True, raw=True)
async def prefer(page: Visit) -> Reply:
    """Keep the choice of language or colours in a cookie, and return to the page."""
    await page.read_posted(_MAX_FORM)
    language, theme = page.form.get("language"), page.form.get("theme")
    if language in LANGUAGES:
        page.cookies.append(set_preference(page.scope, "language", language))
    if theme in _THEMES:
        page.cookies.append(set_preference(page.scope, "theme", theme))
    return page.redirect(safe_path(page.form.get("next")))


@view("POST", "/links", open=True, raw=True, api=True)
async def make_link(page: Visit) -> Reply:
    """Answer a program, which shows a token or key in its headers, with the path of a link that signs in with it.

    `base` is the address of the server for clients, if a proxy or the settings tell it.
    """
    header, key = page.header("authorization"), page.header("x-api-key")
    if header is None and key is None:
        raise error(ErrorKind.UNAUTHENTICATED, "a link needs a token: send `Authorization: Bearer TOKEN`")
    owner = await authenticate(page.access.verifier, header, key)
    credential = key.strip(" ") if key is not None else str(header).split(None, 1)[1].strip()
    path = f"{PREFIX}/sign-in?code={page.access.links.make(credential, owner.subject)}"
    about = {"path": path, "seconds": LINK_SECONDS, "base": page.outside.base}
    return Reply(msgspec.json.encode(about), 201, "application/json")


def safe_path(text: str | None) -> str:
    """Return the path of a page below the dashboard, the overview for anything else."""
    if not text or not text.startswith("/") or text.startswith("//") or len(text) > 4000:
        return "/"
    path = unquote(text.partition("?")[0])
    if "\\" in path or ".." in path or not text.isascii() or not text.isprintable() or " " in text:
        return "/"
    return text


def _given(text: str) -> str:
    """Return the token or key of the form. Raises RunnerError `unauthenticated` if it cannot be one."""
    credential = text.strip()
    if credential.lower().startswith("bearer "):
        credential = credential[7:].strip()
    if not credential:
        raise error(ErrorKind.UNAUTHENTICATED, "the field is empty: paste a token or an API key", field="token")
    if not credential.isascii() or not credential.isprintable() or " " in credential:
        text = "that is neither a token nor an API key: `operato-runner token` prints a token"
        raise error(ErrorKind.UNAUTHENTICATED, text, field="token")
    return credential


def _linked(page: Visit, code: str) -> str:
    credential = page.access.links.take(code)
    if credential is None:
        text = "the link was used, or is older than a minute: `operato-runner ui` prints another one"
        raise error(ErrorKind.UNAUTHENTICATED, text, field="code")
    return credential


def _end_session(page: Visit) -> None:
    """End the session that the browser has, so that no name of a session lives on in its past."""
    for name in cookies(page.fields, session_cookie(page.scope, page.fields)):
        page.access.sessions.close(name)


def _form(page: Visit, **values: object) -> Reply:
    given = page.posted.form or page.query
    about = {
        "code": given.get("code", "") if "failure" not in values else "",
        "next": safe_path(given.get("next")),
        "ended": page.ended or "ended" in page.query,
        "out": "out" in page.query,
        "failure": None,
    }
    return page.render("sign_in.html", **{**about, **values})  # type: ignore[arg-type]


VIEWS = (ask, sign_in, sign_out, prefer, make_link)
