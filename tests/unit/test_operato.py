"""Unit: the module `operato`, outside of a worker and with a call of the test's own."""

from __future__ import annotations

import gc
import io
import os
import pickle
import subprocess
from types import SimpleNamespace

import pytest

from protocol.authors import operato
from protocol.authors.operato import Context, File, Request, Response, context
from tests.programs import FOLDER
from tests.pythons import PYTHONS

STORED = "sha256:" + "0" * 64


@pytest.fixture
def call(monkeypatch, tmp_path):
    """Return a running call with one file."""
    (tmp_path / "stored").write_bytes("é,1".encode())
    running = SimpleNamespace(context=Context("e1", 2, 9e9), files={STORED: str(tmp_path / "stored")})
    monkeypatch.setattr(operato, "_call", running)
    return running


# -- File ------------------------------------------------------------------------------------------------------------


def test_a_file_of_the_input(call):
    file = File({"$file": {"id": STORED, "name": "rows.csv", "type": "text/x", "size": 4}})

    assert (file.id, file.name, file.type, file.size) == (STORED, "rows.csv", "text/x", 4)
    assert (file.path, os.fspath(file)) == (call.files[STORED],) * 2
    assert (file.read_text(), file.read_bytes()) == ("é,1", "é,1".encode())
    with file.open("r") as opened, open(file, "rb") as other, file.open("r", "latin-1") as wrong:
        assert (opened.read(), other.read(), wrong.read()) == ("é,1", "é,1".encode(), "Ã©,1")


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ({"$file": {"id": "sha256:1"}}, "the file sha256:1 is not in this call"),
        ({"$file": {"name": "x"}}, "a file is written as"),
        ({"$file": 3}, "a file is written as"),
        ({}, "a file is written as"),
    ],
)
def test_an_object_of_no_file_of_the_call(call, source, reason):
    with pytest.raises(ValueError, match=reason):
        File(source)


def test_a_file_of_the_handler(tmp_path, monkeypatch):
    (tmp_path / "plot.png").write_bytes(b"1234")
    monkeypatch.chdir(tmp_path)
    file = File("plot.png")
    os.chdir("/")

    assert (file.id, file.name, file.type, file.size) == (None, "plot.png", "image/png", 4)
    assert file.path == str(tmp_path / "plot.png")
    assert File(tmp_path / "plot.png", "x", "y/z").type == "y/z"
    assert repr(file) == "File(name='plot.png', type='image/png', size=4)"
    with pytest.raises(FileNotFoundError):
        File("/no/such/file")
    with pytest.raises(IsADirectoryError):
        File("/")
    with pytest.raises(ValueError, match="mode 'rb' or 'r', not 'w'"):
        file.open("w")


@pytest.mark.parametrize("name", ["a.txt", "", "..", "/etc/a.txt", "x" * 300 + ".txt", "é" * 300 + ".txt", "a\0.txt"])
def test_bytes_have_a_path_while_there_is_the_file(name):
    file = File(bytearray(b"abc"), name)
    path = file.path

    assert os.path.basename(path).endswith((".txt", "file"))
    assert (file.size, file.read_bytes()) == (3, b"abc")
    del file
    gc.collect()
    assert not os.path.exists(os.path.dirname(path))


def test_a_file_goes_to_another_process():
    file = pickle.loads(pickle.dumps(File(b"abc", "a.bin")))

    assert (file.name, file.read_bytes()) == ("a.bin", b"abc")


# -- Request ---------------------------------------------------------------------------------------------------------


def test_a_request(call):
    sent = {
        "method": "POST",
        "path": "/github/push",
        "params": {"event": "push"},
        "query": [["a", "1"], ["b", "2"], ["a", "3"]],
        "headers": [["Content-Type", "text/plain; charset=latin-1"]],
        "client": "1.2.3.4",
        "body": "grün",
    }
    request = Request.from_json({"$request": sent})

    assert (request.method, request.path, request.params) == ("POST", "/github/push", {"event": "push"})
    assert (request.query["a"], request.query.all("a"), request.query.get("c")) == ("1", ["1", "3"], None)
    assert request.query.pairs == [("a", "1"), ("b", "2"), ("a", "3")]
    assert request.headers["content-type"] == request.headers.get("CONTENT-TYPE") == "text/plain; charset=latin-1"
    assert "Content-type" in request.headers
    assert (request.body, request.client) == ("grün".encode(), "1.2.3.4")
    assert request.text == "grÃ¼n"
    assert (request.form, request.files) == ({}, {})


def test_a_request_with_a_file_as_its_body(call):
    request = Request.from_json({"$request": {"method": "PUT", "path": "/", "body": {"$file": {"id": STORED}}}})

    assert (request.body, request.text) == ("é,1".encode(), "é,1")
    assert Request(body=b'{"a": [1]}').json() == {"a": [1]}
    with pytest.raises(ValueError, match="Expecting value"):
        Request().json()


def test_a_request_with_a_form(call):
    photo = {"$file": {"id": STORED, "name": "x.jpg"}}
    form = {"name": "x", "tags": ["a", "b"], "photo": photo, "all": [photo]}
    request = Request.from_json({"$request": {"form": form}})

    assert request.form == {"name": "x", "tags": ["a", "b"]}
    assert request.files["photo"].name == request.files["all"][0].name == "x.jpg"


@pytest.mark.parametrize("value", [None, 3, {}, {"$request": None}])
def test_no_request(value):
    with pytest.raises(ValueError, match="a request is written as"):
        Request.from_json(value)


# -- Response --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "name"),
    [
        *(("text", "text"), (b"bytes", "file"), (File(b"abc"), "file"), (io.BytesIO(b"x"), "file")),
        *(([1, {"a": None}], "json"), (3, "json")),
    ],
)
def test_a_response_has_its_body_by_kind(body, name):
    response = Response(body, 404, {"x-a": "b"})

    assert response.operato_json() == {"$response": {"status": 404, "headers": [["x-a", "b"]], name: body}}
    assert response.operato_stream() is response


def test_a_response_without_a_body_has_none():
    assert Response(status=204).operato_json() == {"$response": {"status": 204, "headers": []}}


def test_the_type_of_a_response_is_its_content_type():
    assert Response("", headers=[("Content-Type", "a/b"), ("x", "y")], type="c/d").headers == [
        ("x", "y"),
        ("content-type", "c/d"),
    ]


def test_a_generator_is_sent_as_it_comes():
    ended = []

    def parts():
        try:
            yield "a"
            yield b"b"
        finally:
            ended.append(True)

    stream = Response(parts(), 201).operato_stream()

    assert next(stream).operato_json() == {"$response": {"status": 201, "headers": []}}
    assert next(stream) == "a"
    stream.close()
    assert ended == [True]


async def test_an_async_generator_is_sent_as_it_comes():
    async def parts():
        yield "a"

    head, part = [each async for each in Response(parts()).operato_stream()]

    assert head.operato_json() == {"$response": {"status": 200, "headers": []}}
    assert part == "a"


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"status": 99}, "from 200 to 599, not 99"),
        ({"status": True}, "from 200 to 599, not True"),
        ({"status": "200"}, "from 200 to 599, not '200'"),
        ({"headers": {"a b": "c"}}, "'a b' is not the name of a header field"),
        ({"headers": {"": "c"}}, "'' is not the name of a header field"),
        ({"headers": {"a": "b\nc"}}, "the header field 'a' has a line break"),
        ({"type": "ä/b"}, "the header field 'content-type' has a line break, or a character that is not ASCII"),
    ],
)
def test_a_response_is_one_that_http_can_carry(fields, reason):
    with pytest.raises(ValueError, match=reason):
        Response("", **fields)


# -- context ---------------------------------------------------------------------------------------------------------


def test_the_context_of_the_call(call):
    assert context() is call.context
    assert (context().execution_id, context().attempt) == ("e1", 2)
    assert context().remaining > 0
    assert Context().remaining == float("inf")
    assert Context().progress(1, 2, "x") is None


def test_no_call():
    with pytest.raises(RuntimeError, match="no call is running"):
        context()


@pytest.mark.parametrize("python", PYTHONS)
def test_it_is_imported_by_every_python(python):
    code = "import sys; sys.path.insert(0, sys.argv[1]); import operato; print(*sys.modules)"
    ran = subprocess.run(
        [PYTHONS[python], "-ISWerror", "-c", code, FOLDER / "authors"], check=True, capture_output=True, text=True
    )

    assert set(ran.stdout.split()) & {"typing", "tempfile", "mimetypes", "json", "inspect", "shutil"} == set()
