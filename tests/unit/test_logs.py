"""Unit: log lines, and tracebacks without the values of variables."""

from __future__ import annotations

import io
import json
import logging

import pytest
import structlog

from config.settings import LogSettings
from runner.logs import configure_logging

SECRET = "hunter2"


@pytest.fixture
def configured():
    """Return `configure_logging`; the next test logs as before."""
    before = structlog.get_config()
    handlers, level = logging.root.handlers[:], logging.root.level
    yield configure_logging
    structlog.configure(**before)
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def fail():
    secret = str(SECRET)  # not in the source line that a traceback shows
    raise ZeroDivisionError(f"of {len(secret)} characters")


@pytest.mark.parametrize("form", ["console", "json"])
def test_tracebacks_show_where_and_no_values(configured, capsys, form):
    configured(LogSettings(format=form))
    try:
        fail()
    except ZeroDivisionError:
        structlog.get_logger().exception("it failed")
    try:
        fail()
    except ZeroDivisionError:
        logging.getLogger("library").exception("it failed as well")
    printed = capsys.readouterr().err

    assert printed.count("of 7 characters") >= 2
    assert "test_logs.py" in printed
    assert "fail" in printed
    assert SECRET not in printed
    if form == "json":
        assert [json.loads(line)["event"] for line in printed.splitlines()] == ["it failed", "it failed as well"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("stream", "no_colour", "coloured"), [(Terminal, "", True), (Terminal, "1", False), (io.StringIO, "", False)]
)
def test_a_terminal_has_colours_unless_they_are_off(configured, monkeypatch, stream, no_colour, coloured):
    printed = stream()
    monkeypatch.setattr("sys.stderr", printed)
    monkeypatch.setenv("NO_COLOR", no_colour)
    configured(LogSettings())
    structlog.get_logger().info("it began")

    assert "it began" in printed.getvalue()
    assert ("\x1b[" in printed.getvalue()) == coloured


@pytest.mark.parametrize("form", ["console", "json"])
def test_a_line_never_has_an_api_key(configured, capsys, form):
    configured(LogSettings(format=form))
    secret = "0123456789abcdef" * 3
    key = f"opk_0a1b2c3d4e_{secret}"
    structlog.get_logger().info(f"asked with {key}", header=f"Bearer {key}", both=[key, {"key": key}])
    logging.getLogger("library").warning("%s", key)
    try:
        {}[key]
    except KeyError:
        structlog.get_logger().exception("it failed")
    text = capsys.readouterr().err

    assert secret not in text
    assert text.count("opk_0a1b2c3d4e_***") >= 5
