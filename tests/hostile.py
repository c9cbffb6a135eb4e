"""Hostile inputs: what a caller can send in order to hold the event loop, as data.

`CASES` has a function for each, which sends it to a running server and returns when that has dealt with it. The server
serves `modules(folder)`. A benchmark prints what each costs other callers, and a test holds the loop to its bound.
"""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import struct
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from attrs import frozen

from protocol.rpc.operato.runner import v1

MANY = 20_000
"""Files of the larger folders."""
MIB = 1024 * 1024
FRAME = 16 * MIB - 4096
"""Bytes just below `max_frame`."""
SECONDS = 1.5
"""For how long a flood lasts."""
_MASK = b"\1\2\3\4"


@frozen
class Target:
    """A running server."""

    rest: int
    grpc: int
    token: str
    folder: Path
    pid: int

    def open(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.rest, timeout=60)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, bytes]:
        """Send a request; return status and body. A connection that the server cuts answers with status 0."""
        fields = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        with closing(self.open()) as connection:
            try:
                connection.request(method, path, body, fields)
                answer = connection.getresponse()
                return answer.status, answer.read()
            except (OSError, http.client.HTTPException):
                return 0, b""

    def execute(self, module: str, body: bytes, **headers: str) -> tuple[int, bytes]:
        return self.ask("POST", f"/modules/execute/{module}", body, **headers)

    def call(self, module: str, text: str) -> bytes:
        """Execute over gRPC; return the answer, undecoded."""
        options = [("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)]
        with grpc.insecure_channel(f"127.0.0.1:{self.grpc}", options=options) as channel:
            method = channel.unary_unary("/operato.runner.v1.ExecutorService/Execute")
            request = bytes(v1.ExecuteRequest(module_name=module, input_json=text))
            try:
                answer: bytes = method(request, timeout=60, metadata=(("authorization", f"Bearer {self.token}"),))
            except grpc.RpcError:
                return b""
            return answer

    @contextmanager
    def raw(self, head: str, *fields: str) -> Iterator[socket.socket]:
        """Give a connection on which the head of a request is sent."""
        lines = [f"{head} HTTP/1.1", "host: runner", f"authorization: Bearer {self.token}", *fields, "", ""]
        with socket.create_connection(("127.0.0.1", self.rest), timeout=60) as connection:
            connection.sendall("\r\n".join(lines).encode())
            yield connection

    @contextmanager
    def websocket(self, path: str) -> Iterator[socket.socket]:
        """Give a websocket after its handshake."""
        upgrade = ("connection: upgrade", "upgrade: websocket", "sec-websocket-version: 13")
        with self.raw(f"GET {path}", *upgrade, "sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==") as connection:
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += connection.recv(4096)
            assert b" 101 " in answer, answer
            yield connection

    def submit(self, module: str, value: object) -> str:
        """Accept an execution; return its id."""
        status, body = self.ask("POST", "/executions", json.dumps({"module": module, "input": value}).encode())
        assert status == 202, body
        return str(json.loads(body)["id"])


MODULES = """
modules:
  - {name: hello, env: inline, concurrency: 2, code: "def handler(input): return 1"}
  - {name: echo, env: inline, concurrency: 2, code: "def handler(input): return input"}
  - {name: large, env: inline, concurrency: 2, code: "def handler(input): return 'x' * input"}
  - {name: pairs, env: inline, concurrency: 2, code: "def handler(input): return [[]] * input"}
  - name: lines
    env: inline
    output: 64MB
    code: "def handler(input): print('x\\\\n' * input)"
  - name: sleeps
    env: inline
    code: |
      import time
      def handler(input): time.sleep(input)
  - name: files
    env: inline
    isolation: fresh
    code: |
      import os
      def handler(input):
          for number in range(input):
              os.mkdir(f"d{number % 100}") if number < 100 else open(f"d{number % 100}/{number}", "w").close()
  - name: hinted
    env: inline
    code: "def handler(input: list[float]) -> int: return len(input)"
  - name: rows
    env: inline
    code: |
      from typing import TypedDict
      class Row(TypedDict):
          a: int
          b: str
      class Rows(TypedDict):
          rows: list[Row]
      def handler(input: Rows): return len(input["rows"])
  - name: checked
    env: inline
    code: "def handler(input): return 1"
    input_schema:
      anyOf:
        - {type: array, uniqueItems: true, maxItems: 3}
        - {type: array, uniqueItems: true, items: {anyOf: [{type: array, maxItems: 1}, {type: object}]}}
        - {type: array, items: {anyOf: [{type: string, pattern: "^(a|aa)+$"}, {type: "null"}]}}
  - name: answers
    env: inline
    secrets: {HOOK: {env: PATH}}
    code: |
      def handler(input):
          how = input["$request"]["params"]["how"]
          if how == "items":
              return items()
          if how == "headers":
              return {"$response": {"headers": [["x-a", "b"]] * 1_000_000}}
          return {"$response": {"text": "\u00e9" * 7_000_000}} if how == "text" else "x" * 15_000_000

      def items():
          for number in range(200_000):
              yield {"number": number}
    endpoints:
      - {path: "/answers/{how}", methods: [GET, POST]}
      - {path: "/rest/{how...}", auth: none}
      - {path: /signed, auth: signature, signature: {header: X-Sig, algorithm: hmac-sha512, secret: HOOK}}
"""


def modules(folder: Path) -> str:
    """Return the modules file of the server, which is written to `folder` with what it names."""
    return MODULES


# Bodies


def deep() -> bytes:
    return b"[" + b",".join([b"[" * 399 + b"]" * 399] * (FRAME // 800)) + b"]"


def wide(element: bytes) -> bytes:
    return b"[" + b",".join([element] * (FRAME // (len(element) + 1) - 1)) + b"]"


def names() -> bytes:
    return b"{" + b",".join(b'"%d":1' % number for number in range(FRAME // 13)) + b"}"


def unlike() -> bytes:
    """Return an array that no branch of the schema of `checked` accepts, after much comparing."""
    return json.dumps([[number, [number]] for number in range(12_000)]).encode()[: 223 * 1024]


def archive(files: dict[str, bytes], **how: Any) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED, **how) as made:
        for name, content in files.items():
            made.writestr(name, content)
    return data.getvalue()


MODULE_YAML = b"name: uploaded\nenv: inline\n"
MAIN = b"def handler(input): return 1"


def bomb() -> bytes:
    return archive({"module.yaml": MODULE_YAML, "main.py": MAIN, **{f"{n}": bytes(60 * MIB) for n in range(16)}})


def merges(width: int = 9, depth: int = 7) -> bytes:
    """Return YAML whose merges and aliases stand for very many values."""
    lines = ["a0: &a0 {x: 1}"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * width)}]" for n in range(1, depth)]
    lines += [f"m{n}: &m{n} {{<<: [{', '.join([f'*m{n - 1}'] * width) if n else '*a0'}]}}" for n in range(depth)]
    return MODULE_YAML + "\n".join(lines).encode()


def send_form(target: Target, *parts: tuple[str, bytes], module: str = "hello") -> tuple[int, bytes]:
    head = '--bnd\r\nContent-Disposition: form-data; name="{}"\r\n\r\n'
    body = b"".join(head.format(name).encode() + content + b"\r\n" for name, content in parts) + b"--bnd--\r\n"
    return target.execute(module, body, content_type="multipart/form-data; boundary=bnd")


# Floods


def frame(opcode: int, payload: bytes) -> bytes:
    """Return a frame of a websocket client."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + _MASK + payload


def flood(connection: socket.socket, piece: bytes, seconds: float = SECONDS) -> None:
    """Send a piece as often as it is taken, for a time; what comes back is read and dropped."""
    piece *= max(1, 65536 // len(piece))
    end = time.monotonic() + seconds
    connection.settimeout(2)

    def drop() -> None:
        try:
            while connection.recv(65536) or time.monotonic() < end:
                pass
        except OSError:
            pass

    reader = threading.Thread(target=drop)
    reader.start()
    try:
        while time.monotonic() < end:
            connection.sendall(piece)
    except OSError:
        pass  # the server has cut the flood, or reads it slowly
    connection.close()
    reader.join()


def together(*attacks: Callable[[], Any]) -> None:
    """Run attacks at the same time."""
    threads = [threading.Thread(target=each) for each in attacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def socket_flood(target: Target, piece: bytes) -> None:
    name = target.submit("sleeps", SECONDS + 1)

    def one() -> None:
        with target.websocket(f"/executions/{name}/stream") as connection:
            flood(connection, piece)

    together(one, one, one)


def chunk_flood(target: Target) -> None:
    def one() -> None:
        with target.raw("POST /modules/execute/hello", "transfer-encoding: chunked") as connection:
            flood(connection, b"1\r\n \r\n")

    together(one, one, one)


def h2_flood(target: Target, piece: bytes) -> None:
    """Send frames of HTTP/2 after the preface of a connection."""

    def one() -> None:
        with socket.create_connection(("127.0.0.1", target.grpc), timeout=60) as connection:
            connection.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + h2(4, 0, 0, b""))
            flood(connection, piece)

    together(one, one)


def h2(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return struct.pack(">I", len(payload))[1:] + bytes((kind, flags)) + struct.pack(">I", stream) + payload


def followers(target: Target, number: int) -> None:
    """Follow one execution by as many websockets as the door takes, while it prints."""
    name = target.submit("sleeps", 3)
    with ExitStack() as stack:
        for _ in range(number):
            try:
                stack.enter_context(target.websocket(f"/executions/{name}/stream"))
            except (OSError, AssertionError):
                break  # the door is full
        target.ask("GET", f"/executions/{name}")


# Changes


def register(target: Target, **fields: Any) -> tuple[int, bytes]:
    """Register a module with these fields."""
    data = {"name": "registered", "env": "inline", "code": MAIN.decode(), **fields}
    return target.ask("PUT", "/modules/registered", json.dumps(data).encode())


def upload(target: Target, data: bytes) -> tuple[int, bytes]:
    return target.ask("POST", "/modules/upload", data, content_type="application/zip")


def upload_toml(target: Target) -> None:
    """Send a block of a file and a lock, with much for a parser of TOML in few bytes."""
    block = f"# /// script\n# a = {'[' * 4000}\n# [{'.'.join('a' * 8000)}]\n# ///\n".encode()
    key = ".".join("a" * 15)
    lock = "".join(f"{key}{number} = 1\n" for number in range(2 * MIB // 50)).encode()
    upload(target, archive({"module.yaml": b"name: uploaded\n", "main.py": block + MAIN, "pylock.toml": lock}))
    code = "# /// a\n" * (MIB // 4) + MAIN.decode()
    target.ask("PUT", "/modules/uploaded", json.dumps({"code": code, "env": "inline"}).encode())
    target.ask("DELETE", "/modules/uploaded")


def upload_many(target: Target) -> None:
    upload(target, archive({"module.yaml": MODULE_YAML, "main.py": MAIN} | dict.fromkeys(_NAMES, b"x")))
    target.ask("DELETE", "/modules/uploaded")


def reload_many(target: Target, number: int = 2000) -> None:
    """Let the server read a file with many modules, twice: with all of them new, and with one changed."""
    file = target.folder / "modules.yaml"
    for turn in range(2):
        more = "".join(f"  - {{name: m{n}, env: inline, code: '{_code(n, turn)}'}}\n" for n in range(number))
        (target.folder / "next.yaml").write_text(MODULES + more)
        (target.folder / "next.yaml").rename(file)
        os.kill(target.pid, signal.SIGHUP)
        wanted = b'"result":%d' % (turn + 1)
        wait_until(partial(_answers, target, wanted))
    file.write_text(MODULES)
    os.kill(target.pid, signal.SIGHUP)
    wait_until(lambda: target.execute("m0", b"null")[0] == 404)


def _answers(target: Target, wanted: bytes) -> bool:
    return wanted in target.execute("m0", b"null")[1]


def _code(number: int, turn: int) -> str:
    return f"def handler(input): return {turn + 1 if number == 0 else number}"


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


def keys(target: Target, number: int = 3000) -> None:
    """Use a new idempotency key for each of many calls."""
    with closing(target.open()) as connection:
        for each in range(number):
            fields = {"authorization": f"Bearer {target.token}", "idempotency-key": f"{each}" * 20}
            connection.request("POST", "/modules/execute/hello", b"null", fields)
            connection.getresponse().read()


def batch(target: Target, number: int = 100_000) -> None:
    """Send many tiny inputs as one array, and leave after the first answers."""
    body = b"[" + b'{"a":"b"},' * number + b"1]"
    with target.raw("POST /modules/execute/hello/batch", f"content-length: {len(body)}") as connection:
        connection.sendall(body)
        end = time.monotonic() + SECONDS
        while time.monotonic() < end and connection.recv(65536):
            pass


def fields(target: Target, number: int) -> None:
    """Send many headers again and again."""
    for _ in range(50):
        target.ask("GET", "/modules", **{f"cookie_{n}": "a=b; c=d" for n in range(number)})


def queries(target: Target) -> None:
    """Search modules by long texts that look like patterns, with many parameters."""
    for text in ("%28a%2B%29%2B" * 500, "%" * 3000, "a" * 4000):
        target.ask("GET", f"/modules?q={text}")
        target.ask("GET", f"/executions?module={text}&subject={text}")
    target.ask("GET", "/modules?" + "&".join(f"tag=t{n}" for n in range(1000)))


def unknown_names(target: Target) -> None:
    """Call modules with long names that are like none."""
    for number in range(50):
        target.execute("m" * (3000 + number), b"null")


_NAMES = tuple(f"f/{number // 200}/{number}.txt" for number in range(MANY))


def transfer(target: Target, size: int) -> None:
    """Store a file of so many bytes, and get it back."""
    _, answer = target.ask("POST", "/files", bytes(size), content_type="application/octet-stream")
    target.ask("GET", f"/files/{json.loads(answer)['$file']['id']}")


def endpoints(target: Target) -> None:
    """Register modules whose endpoints cross each other, as far as they do not conflict."""
    for number in range(20):
        paths = [f"/{{a}}/{'{b}' if n % 2 else f'w{n}'}/x{number}-{n}" for n in range(100)]
        body = {"env": "inline", "code": MAIN.decode(), "endpoints": [{"path": path} for path in paths]}
        target.ask("PUT", f"/modules/crossing-{number}", json.dumps(body))


def form(target: Target) -> None:
    """Send forms of many fields to an open endpoint."""
    for body in ("&".join(f"f{n}=%41" for n in range(900)), "a=" + "%41" * 5_000_000, "&" * (FRAME // 2)):
        target.ask("POST", "/http/rest/x", body, content_type="application/x-www-form-urlencoded")


def pages(target: Target) -> None:
    """Open the dashboard, and send it forms as large as it takes."""
    own = {"sec_fetch_site": "same-origin", "content_type": "application/x-www-form-urlencoded"}
    with closing(target.open()) as connection:
        given = {name.replace("_", "-"): value for name, value in own.items()}
        connection.request("POST", "/ui/sign-in", f"token={target.token}", given)
        answer = connection.getresponse()
        answer.read()
        cookie = answer.headers["set-cookie"].partition(";")[0]
    assert target.ask("GET", "/ui/?" + "&".join(f"a{n}=%41%42" for n in range(900)), cookie=cookie)[0] == 200
    for body in (b"a=" + b"%41" * (FRAME // 3), b"&".join([b"a=1"] * 999)):
        assert target.ask("POST", "/ui/sign-out", body, **own, cookie=cookie)[0] == 403
    own["content_type"] = "multipart/form-data; boundary=x"
    part = b'--x\r\ncontent-disposition: form-data; name="a"\r\n\r\n'
    for body in (part + b"\r\n-" * (FRAME // 3 - 100) + b"\r\n--x--\r\n", (part + b"1\r\n") * 999 + b"--x--\r\n"):
        assert target.ask("POST", "/ui/sign-out", body, **own, cookie=cookie)[0] == 403


CASES: dict[str, Callable[[Target], Any]] = {
    "pages and forms of the dashboard": pages,
    "websocket: pings": lambda target: socket_flood(target, frame(9, b"")),
    "websocket: pongs": lambda target: socket_flood(target, frame(10, b"")),
    "websocket: messages of one byte": lambda target: socket_flood(target, frame(1, b"x")),
    "HTTP: chunks of one byte": chunk_flood,
    "HTTP: many headers": lambda target: fields(target, 90),
    "HTTP/2: pings": lambda target: h2_flood(target, h2(6, 0, 0, bytes(8))),
    "HTTP/2: settings": lambda target: h2_flood(target, h2(4, 0, 0, b"")),
    "HTTP/2: unknown frames": lambda target: h2_flood(target, h2(99, 0, 0, b"")),
    "JSON: 20,000 values of 399 levels": lambda target: target.execute("hello", deep()),
    "JSON: five million arrays": lambda target: target.execute("hello", wide(b"[]")),
    "JSON: eight million numbers": lambda target: target.execute("hello", wide(b"1")),
    "JSON: quotes and brackets": lambda target: target.execute("hello", wide(b'"[","\\"]"')),
    "JSON: backslashes": lambda target: target.execute("hello", b'"' + b"\\\\" * (FRAME // 2 - 1) + b'"'),
    "JSON: invalid at its end": lambda target: target.execute("hello", wide(b'{"a":1}')[:-1]),
    "JSON: not UTF-8 at its end": lambda target: target.execute("hello", '"{}'.format("é" * (FRAME // 2 - 8)).encode()),
    "schema: a hard one, 223 KiB": lambda target: target.execute("checked", unlike()),
    "schema: a million names": lambda target: target.execute("checked", names()),
    "schema: five million arrays": lambda target: target.execute("checked", wide(b"[]")),
    "hint: 15 MB of numbers": lambda target: target.execute("hinted", wide(b"1.5")),
    "hint: 15 MB of arrays": lambda target: target.execute("hinted", wide(b"[]")),
    "hint: 15 MB of rows": lambda target: target.execute("rows", b'{"rows":' + wide(b'{"a":1,"b":"x"}')[:-1] + b"]}"),
    "hint: 15 MB of wrong rows": lambda target: target.execute(
        "rows", b'{"rows":' + wide(b'{"a":1,"c":"a long text"}')[:-1] + b"]}"
    ),
    "form: 1,000 texts": lambda target: send_form(target, *[(f"f{n}", b"x" * 16_000) for n in range(1000)]),
    "form: 64 files": lambda target: send_form(target, *[(f'f{n}"; filename="x', bytes(MIB)) for n in range(64)]),
    "form: line ends": lambda target: send_form(target, ('f"; filename="x', b"\r\n--bn" * (8 * MIB))),
    "form: a text of JSON": lambda target: send_form(target, ("values", wide(b"[1]")), module="rows"),
    "form: a long text": lambda target: send_form(target, ("text", b'"\\\n' * (FRAME // 4))),
    "form: urlencoded": lambda target: target.execute(
        "hello", b"a=" + b"%22" * (FRAME // 3 - 2), content_type="application/x-www-form-urlencoded"
    ),
    "form: many urlencoded fields": lambda target: target.execute(
        "hello", b"a=&" * (FRAME // 3), content_type="application/x-www-form-urlencoded"
    ),
    "input: 10 MiB in and out over REST": lambda target: target.execute("echo", b'"' + b"a" * (10 * MIB) + b'"'),
    "input: 16 MiB in and out over REST": lambda target: target.execute("echo", b'"' + b"a" * (FRAME - 2) + b'"'),
    "input: 10 MiB in and out over gRPC": lambda target: target.call("echo", '"' + "a" * (10 * MIB) + '"'),
    "input: 16 MiB in and out over gRPC": lambda target: target.call("echo", '"' + "a" * (FRAME - 1024) + '"'),
    "result: 16 MiB, four at once": lambda target: together(*[lambda: target.execute("large", b"16000000")] * 4),
    "result: three million arrays": lambda target: target.execute("pairs", b"3000000"),
    "output: eight million lines": lambda target: target.execute("lines", b"8000000"),
    "result: read again": lambda target: [target.ask("GET", f"/executions/{target.submit('large', FRAME)}")] * 3,
    "websocket: an input of 15 MB": lambda target: socket_input(target, wide(b"1.5")),
    "batch: 100,000 inputs": batch,
    "batch: one array of 16 MiB": lambda target: batch(target, 1_600_000),
    "batch: one input of many strings": lambda target: target.ask(
        "POST", "/modules/execute/hello/batch", b"[" + wide(b'""')[:-4] + b"]]"
    ),
    "file: 200 MiB in and out": lambda target: transfer(target, 200 * MIB),
    "file: many small ones, four at a time": lambda target: together(
        *[lambda: [target.ask("POST", "/files", os.urandom(100)) for _ in range(50)]] * 4
    ),
    "order: 20,000 values of 399 levels": lambda target: target.ask(
        "POST", "/executions", b'{"module":"hello","input":' + deep() + b"}"
    ),
    "lists: the OpenAPI document": lambda target: target.ask("GET", "/openapi.json"),
    "module: 1,000,000 tags": lambda target: register(target, tags=[f"{n}" for n in range(1_000_000)]),
    "module: 100,000 variables": lambda target: register(target, variables={f"v{n}": "x" for n in range(100_000)}),
    "module: 100,000 requirements": lambda target: register(target, requirements=["a"] * 100_000),
    "module: a description of 1 MB": lambda target: register(target, description="x" * MIB),
    "module: code of 10 MB": lambda target: register(target, code="x = 1\n" * 1_500_000),
    "module: a large schema": lambda target: register(
        target, input_schema={"properties": {f"p{n}": {"type": "string", "pattern": "^a+$"} for n in range(4000)}}
    ),
    "module: 1,000,000 unknown fields": lambda target: register(target, **{f"f{n}": 1 for n in range(1_000_000)}),
    "upload: 20,000 files": upload_many,
    "upload: a bomb of 960 MB": lambda target: upload(target, bomb()),
    "upload: a bomb of YAML": lambda target: upload(target, archive({"module.yaml": merges(), "main.py": MAIN})),
    "upload: a bomb of TOML": upload_toml,
    "upload: no zip": lambda target: upload(target, b"PK\5\6" * (FRAME // 4)),
    "worker: a folder of 20,000 files": lambda target: target.execute("files", b"%d" % MANY),
    "reload: 2,000 modules": reload_many,
    "keys: 3,000 idempotency keys": keys,
    "followers: 900 of one execution": lambda target: followers(target, 900),
    "endpoint: a wrong signature of 16 MiB": lambda target: target.ask(
        "POST", "/http/signed", bytes(FRAME), x_sig="00"
    ),
    "endpoint: an answer of 14 MB of text": lambda target: target.ask("GET", "/http/answers/text"),
    "endpoint: an answer of 15 MB": lambda target: target.ask("GET", "/http/answers/plain"),
    "endpoint: an answer of a million headers": lambda target: target.ask("GET", "/http/answers/headers"),
    "endpoint: 200,000 items": lambda target: target.ask("GET", "/http/answers/items"),
    "endpoint: long paths": lambda target: [
        target.ask("POST", f"/http/rest/{piece * (15_000 // len(piece))}") for piece in ("%41/", "/", "%2F", "a/")
    ],
    "endpoint: forms": form,
    "endpoints: 20 modules that cross": endpoints,
    "lists: long filters": queries,
    "names: long and unknown": unknown_names,
}


def socket_input(target: Target, data: bytes) -> None:
    """Send one large message as the input of a run."""
    with target.websocket("/modules/stream/hello") as connection:
        head = bytes((0x81, 0xFF)) + struct.pack(">Q", len(data)) + bytes(4)
        connection.sendall(head + data)
        connection.settimeout(60)
        try:
            while connection.recv(65536):
                pass
        except OSError:
            pass
