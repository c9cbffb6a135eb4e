"""Acceptance: inputs and results that are no JSON, with the real server as a process: commands, memory, kill -9."""

from __future__ import annotations

import json
import random
import signal
import socket
from pathlib import Path

import pytest

from tests.server_process import Commands, Server, ended, running, url_of, wait_for

MODULES = """
modules:
  - name: sizes
    env: inline
    code: |
      from operato import File
      def handler(input):
          print("printed")
          return {name: File(value).size if isinstance(value, dict) else value for name, value in input.items()}
  - name: draws
    env: inline
    code: |
      from operato import File
      def handler(input):
          return File(b"picture", name="plot.png", type="image/png")
  - name: several
    env: inline
    code: |
      from operato import File
      def handler(input):
          return {"a": File(b"1", name="a.txt"), "b": [File(b"2", name="a.txt"), File(b"3", name="../../etc/x y")]}
  - name: reports
    env: inline
    code: |
      from operato import Response
      def handler(input):
          return Response("a;b", type="text/csv")
  - name: text
    env: inline
    code: |
      def handler(input: str):
          return input.upper()
  - name: typed
    env: inline
    input_schema: {type: object, properties: {width: {type: integer}, tags: {type: array, items: {type: string}}}}
    code: |
      def handler(input):
          return input
  - name: waits
    env: inline
    code: |
      import time
      def handler(input):
          time.sleep(60)
"""
DATA = random.Random(17).randbytes(3_000_000)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory):
    home = tmp_path_factory.mktemp("server")
    with running(home, MODULES) as opened:
        yield opened
        assert opened.stop() == 0


@pytest.fixture
def run(server: Server, tmp_path: Path) -> Commands:
    """Return the program, run in a folder without files of the server."""
    (tmp_path / 'ph "o" to.jpg').write_bytes(DATA)
    (tmp_path / "notes.txt").write_text("é\n")
    return Commands(tmp_path, url_of(server), server.token)


PHOTO = '@ph "o" to.jpg'


def test_files_and_texts_of_a_call(run: Commands) -> None:
    code, out, err = run("call", "sizes", "--file", f"photo={PHOTO}", "--file", "empty=@/dev/null", "--form", "a=b=c")

    assert (code, err) == (0, "printed\n")
    assert json.loads(out) == {"photo": len(DATA), "empty": 0, "a": "b=c"}


@pytest.mark.parametrize("how", [["--follow"], ["--key", "k1"], ["--follow", "--key", "k2"]])
def test_a_form_in_every_kind_of_call(run: Commands, how: list[str]) -> None:
    code, out, err = run("call", "sizes", "--file", f"photo={PHOTO}", *how)
    assert (code, json.loads(out), "printed" in err) == (0, {"photo": len(DATA)}, True)


def test_texts_are_converted_by_the_runner(run: Commands) -> None:
    code, out, _ = run("call", "typed", "--form", "width=200", "--form", "tags=a", "--form", "tags=b")
    assert (code, json.loads(out)) == (0, {"width": 200, "tags": ["a", "b"]})
    code, _, err = run("call", "typed", "--form", "width=wide")
    assert (code, "the form field 'width' is 'wide', not a whole number" in err) == (2, True)


def test_a_file_as_the_whole_input(run: Commands) -> None:
    assert run("call", "text", "--data", "@notes.txt")[:2] == (0, '"É\\n"\n')
    assert run("call", "text", "--data", "notes.txt", "--type", "text/markdown")[:2] == (0, '"É\\n"\n')
    code, _, err = run("call", "typed", "--data", "@notes.txt", "--type", "image/png")
    assert (code, "send one of application/json, multipart/form-data" in err) == (2, True)


def test_a_form_that_is_accepted_and_its_result(run: Commands, tmp_path: Path) -> None:
    code, out, _ = run("call", "sizes", "--file", f"photo={PHOTO}", "--async")
    identity = out.strip()
    assert code == 0
    assert run("logs", "-f", identity)[0] == 0
    assert json.loads(run("executions", "result", identity)[1]) == {"photo": len(DATA)}
    assert run("executions", "result", identity, "-o", "result.json") == (0, "", "")
    assert json.loads((tmp_path / "result.json").read_text()) == {"photo": len(DATA)}


def test_a_result_goes_into_a_file(run: Commands, tmp_path: Path) -> None:
    assert run("call", "draws", "-o", "out.png") == (0, "", "")
    assert (tmp_path / "out.png").read_bytes() == b"picture"
    assert run("call", "reports", "-o", "out.csv") == (0, "", "")
    assert (tmp_path / "out.csv").read_bytes() == b"a;b"
    assert run("call", "text", '"x"', "-o", "out.json") == (0, "", "")
    assert (tmp_path / "out.json").read_bytes() == b'"X"\n'
    (tmp_path / "folder").mkdir()
    assert run("call", "draws", "-o", "folder") == (0, "folder/plot.png\n", "")
    code, out, _ = run("call", "several", "-o", "made")
    assert (code, out.splitlines()) == (0, ["made/a.txt", "made/a-2.txt", "made/x y"])
    assert [(tmp_path / path).read_bytes() for path in out.splitlines()] == [b"1", b"2", b"3"]
    identity = run("call", "draws", "--async")[1].strip()
    run("logs", "-f", identity)
    assert run("executions", "result", identity)[1] == "picture"


def test_a_result_that_cannot_be_written_is_printed(run: Commands, tmp_path: Path) -> None:
    token = run("key", "create", "runs", "--scope", "executions:run")[1].strip()
    code, out, err = run("call", "draws", "-o", "out.png", "--token", token)
    assert (code, "the scope 'files:read'" in err) == (6, True)
    assert json.loads(out)["$file"]["name"] == "plot.png"
    assert not (tmp_path / "out.png").exists()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["call", "sizes", "{}", "--form", "a=b"], 2, "the input is either JSON, --data, or --file and --form"),
        (["call", "sizes", "--form", "a"], 2, "--form is NAME=TEXT, not 'a'"),
        (["call", "sizes", "--file", "a="], 2, "--file is NAME=@FILE, not 'a='"),
        (["call", "sizes", "--file", "a=@no"], 74, "No such file or directory"),
        (["call", "sizes", "--data", "@no"], 74, "No such file or directory"),
        (["call", "sizes", "--data", "@a", "--form", "a=b"], 2, "--data is the whole input"),
        (["call", "sizes", "--type", "a/b"], 2, "--type is the type of --data"),
        (["call", "sizes", "--async", "-o", "x"], 2, "`executions result ID -o PATH` writes it later"),
        (["call", "draws", "-o", "no/x"], 2, "there is no folder no"),
        (["executions", "result", "nothing"], 3, "there is no execution 'nothing'"),
    ],
)
def test_mistakes(run: Commands, tmp_path: Path, arguments: list[str], code: int, words: str) -> None:
    before = set(tmp_path.iterdir())
    found, out, err = run(*arguments)
    assert (found, out, words in err) == (code, "", True), err
    assert set(tmp_path.iterdir()) == before


def test_ctrl_c_ends_a_form_on_the_server(run: Commands, server: Server) -> None:
    process = run.start("call", "waits", "--form", "a=b")
    running_ones = "/executions?module=waits&status=running"
    wait_for(lambda: server.client.get(running_ones).json()["items"])
    process.send_signal(signal.SIGINT)
    assert ended(process)[0] == 130
    wait_for(lambda: not server.client.get(running_ones).json()["items"])
    assert server.client.get("/executions?module=waits").json()["items"][0]["status"] == "cancelled"


def contents(home: Path) -> list[Path]:
    return [path for path in (home / "data" / "files").rglob("*") if path.is_file()]


def test_kill_9_amid_a_form_leaves_nothing(tmp_path: Path) -> None:
    """The next start removes what a form had written."""
    part = b'--bnd\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n'
    with running(tmp_path, MODULES) as first:
        head = (
            f"POST /modules/execute/sizes HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {first.token}\r\n"
            "Content-Type: multipart/form-data; boundary=bnd\r\nContent-Length: 100000000\r\n\r\n"
        ).encode()
        with socket.create_connection(("127.0.0.1", first.ready["rest"][0][1])) as link:
            link.sendall(head + part % b"whole" + DATA + b"\r\n" + part % b"half" + DATA)
            wait_for(lambda: sum(path.stat().st_size for path in contents(tmp_path)) > len(DATA))
            first.stop(signal.SIGKILL)
    with running(tmp_path, MODULES) as second:
        assert contents(tmp_path) == []
        assert second.client.get("/files").json()["items"] == []
        assert second.client.get("/executions").json()["items"] == []
        assert second.stop() == 0


def resident(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    raise AssertionError


def test_a_large_form_takes_no_memory(server: Server, run: Commands, tmp_path: Path) -> None:
    """A form of 100 MB grows the runner by much less than one of them."""
    run("call", "sizes", "--file", f"photo={PHOTO}")
    large = tmp_path / "large"
    with large.open("wb") as file:
        for _ in range(50):
            file.write(DATA[:1_000_000])
    pid = server.ready["pid"]
    before = resident(pid)
    code, out, err = run("call", "sizes", "--file", f"a=@{large}", "--file", f"b=@{large}")
    assert (code, json.loads(out)) == (0, {"a": 50_000_000, "b": 50_000_000}), err
    assert resident(pid) - before < 32 * 1024 * 1024
