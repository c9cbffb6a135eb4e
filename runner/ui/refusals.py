"""Pages in place of the one that was asked for: failures with the remedy, and the way to sign in."""

from __future__ import annotations

from typing import Final

import msgspec

from protocol.errors import PROBLEM, ErrorKind, Failure
from runner.status import CODES
from runner.ui.visit import Reply, View, Visit

FAILED: Final = "a page failed inside the runner"
TITLES: Final = {
    ErrorKind.NOT_FOUND: "Not found",
    ErrorKind.FORBIDDEN: "Not allowed",
    ErrorKind.UNAUTHENTICATED: "Not signed in",
    ErrorKind.BAD_INPUT: "That did not work",
    ErrorKind.CONFLICT: "Somebody was faster",
    ErrorKind.TOO_LARGE: "Too large",
    ErrorKind.OVERLOADED: "Too much at once",
    ErrorKind.UNAVAILABLE: "Not available now",
    ErrorKind.SHUTDOWN: "The runner is stopping",
    ErrorKind.INTERNAL: "The runner failed",
}
"""Headings of the page, by kind; other kinds have the heading of `BAD_INPUT`."""


def problem_page(page: Visit, failure: Failure) -> Reply:
    """Return the page of a failure, with kind, text and status; a problem (RFC 9457) where no page is asked for."""
    status = status_of(failure)
    if "text/html" not in (page.header("accept") or ""):
        about = {"status": status, "title": failure.kind.replace("_", " "), "detail": failure.message}
        more = {"kind": failure.kind, "field": failure.field}
        return Reply(msgspec.json.encode({"type": "about:blank", **about, **more}), status, PROBLEM)
    title = TITLES.get(failure.kind, TITLES[ErrorKind.BAD_INPUT])
    return page.render("error.html", status=status, failure=failure, title=title)


def status_of(failure: Failure) -> int:
    """Return the HTTP status of a failure, as REST has it."""
    return CODES[failure.kind].http


def sign_in_first(view: View, page: Visit) -> Reply:
    """Return the way to the page that signs in, and from there back here."""
    if view.raw or view.method != "GET":
        text = "you are signed out; sign in, and try again"
        return problem_page(page, Failure(ErrorKind.UNAUTHENTICATED, text))
    wanted = page.wanted
    ended = "1" if page.ended else None
    return page.redirect("/sign-in", next=None if wanted in ("", "/") else wanted, ended=ended)


def foreign_link(page: Visit) -> Reply | None:
    """Return a page that loads itself again, for a reader who came by a link in a page of another site.

    The browser sends the cookie of a session only where the dashboard itself asks for a page. None for all others.
    """
    elsewhere = page.fields.get(b"sec-fetch-site") in (b"cross-site", b"same-site")
    if not elsewhere or page.fields.get(b"sec-fetch-mode") != b"navigate":
        return None
    return page.render("again.html")
