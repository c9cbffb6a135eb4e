"""Unit: numbers, sizes, durations and times as the dashboard writes them; the menu; static files; posted forms."""

from __future__ import annotations

from pathlib import Path

import pytest
from attrs import define

from protocol.errors import ErrorKind, RunnerError
from runner import ui
from runner.auth import Principal, Scope
from runner.ui.looks import ENTRIES, Asset, Assets, formatting, menu
from runner.ui.posted import parse_posted

DASH = "\N{EN DASH}"


@pytest.mark.parametrize(
    ("seconds", "text", "about"),
    [
        (0.0, "0.0 ms", "0 s"),
        (0.0004, "0.4 ms", "0 s"),
        (0.25, "250 ms", "0 s"),
        (1.0, "1.0 s", "1 s"),
        (59.94, "59.9 s", "60 s"),
        (59.96, "1 min", "60 s"),
        (61.0, "1 min 1 s", "1 min"),
        (3600.0, "1 h", "1 h"),
        (7500.0, "2 h 5 min", "2 h"),
        (100_000.0, "1 d 3 h", "1 d"),
        (-5.0, "0.0 ms", "0 s"),
    ],
)
def test_durations(seconds: float, text: str, about: str) -> None:
    assert formatting.duration(seconds) == text
    assert formatting.about(seconds) == about


def test_sizes_and_numbers() -> None:
    sizes = [formatting.size(value) for value in (0, 1023, 1024, 1536, 1024**2 * 200, 1024**5 * 3, None)]
    assert sizes == ["0 B", "1023 B", "1.0 KiB", "1.5 KiB", "200 MiB", "3072 TiB", DASH]
    assert [formatting.number(value) for value in (1234567, 2.0, 0.5)] == ["1,234,567", "2", "0.50"]
    assert [formatting.percent(value) for value in (0, 0.00001, 0.5, 0.9999, 1, None)] == [
        "0 %",
        "0.1 %",
        "50 %",
        "99.9 %",
        "100 %",
        DASH,
    ]
    assert formatting.duration(None) == DASH
    assert formatting.iso(1_700_000_000.5) == "2023-11-14T22:13:20.500Z"
    assert formatting.clock(1_700_000_000.5) == "2023-11-14 22:13:20 UTC"


@define
class Reader:
    caller: Principal | None
    clustered: bool = False

    def may(self, scope: str) -> bool:
        return self.caller is not None and self.caller.allows(scope)


def test_the_menu_has_pages_that_exist_and_that_the_reader_may_see() -> None:
    pages = {"/", "/executions", "/modules", "/schedules", "/environments", "/notices", "/keys"}
    shown = lambda *scopes: [each.text for each in menu.entries(pages, Reader(Principal("x", frozenset(scopes))))]  # noqa: E731
    assert shown() == ["Overview"]
    assert shown(Scope.MODULES_READ) == ["Overview", "Modules", "Environments"]
    assert shown(Scope.ADMIN) == [
        *("Overview", "Executions", "Modules", "Schedules", "Environments", "Notices", "Keys")
    ]
    assert list(menu.entries(pages, Reader(None))) == []
    assert len({entry.key for entry in ENTRIES}) == len(ENTRIES)


def test_static_files_change_their_address_with_any_content() -> None:
    one = Assets({"a.js": Asset(b"1", None, "x"), "b.js": Asset(b"2", None, "x")})
    two = Assets({"a.js": Asset(b"1", None, "x"), "b.js": Asset(b"3", None, "x")})
    assert one.digest != two.digest
    assert one.url("a.js") == f"/static/{one.digest}/a.js"
    with pytest.raises(KeyError):
        one.url("c.js")
    loaded = Assets.load()
    assert {"style.css", "app.js", "icon.svg"} <= loaded.by_name.keys()
    assert all(each.small is None or len(each.small) < len(each.content) for each in loaded.by_name.values())


def test_templates_mark_no_text_as_safe_and_load_nothing_from_elsewhere() -> None:
    folder = Path(ui.__file__).parent
    for path in (*folder.glob("templates/*.html"), *folder.glob("static/*.css"), *folder.glob("static/*.js")):
        text = path.read_text()
        assert "|safe" not in text.replace(" ", ""), path
        assert "autoescape" not in text, path
        for scheme in ("http://", "https://"):
            assert scheme not in text, path
    for path in folder.glob("static/*.js"):
        text = path.read_text()
        for risky in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "new Function"):
            assert risky not in text, path


async def test_forms_are_read_in_both_encodings() -> None:
    plain = await parse_posted("application/x-www-form-urlencoded; charset=utf-8", b"a=1&a=2&b=%ED%95%9C")
    assert (plain.form.getlist("a"), plain.form["b"]) == (["1", "2"], "한")
    for content in (b"\x89PNG", b"\r\n--x\0" * 70_000):
        body = (
            b'--xx\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n'
            b'--xx\r\ncontent-disposition: form-data; name="f"; filename="x.png"\r\n\r\n' + content + b"\r\n--xx--\r\n"
        )
        parts = await parse_posted('multipart/form-data; boundary="xx"', body)
        assert (parts.form["a"], parts.files["f"].filename, parts.files["f"].read()) == ("1", "x.png", content)


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("application/json", b"{}"),
        ("", b""),
        ("application/x-www-form-urlencoded", b"&".join([b"a=1"] * 1001)),
        ("application/x-www-form-urlencoded", b"\xff"),
        ("multipart/form-data", b"--x\r\n"),
        ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n1\r\n' * 1001),
    ],
)
async def test_other_bodies_are_refused(content_type: str, body: bytes) -> None:
    with pytest.raises(RunnerError) as caught:
        await parse_posted(content_type, body)
    assert caught.value.failure.kind is ErrorKind.BAD_INPUT
