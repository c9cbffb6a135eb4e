"""Acceptance: notices of the real server: over kills, with the commands, verified by the official library."""

from __future__ import annotations

import base64
import http.server
import json
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import standardwebhooks

from tests.server_process import Commands, Server, running, url_of, wait_for

SECRET = "whsec_" + base64.b64encode(b"a key of some length").decode()
ROUNDS = 6


class Inbox:
    """A receiver in a thread. While `broken`, it answers 503 and keeps nothing."""

    def __init__(self) -> None:
        self.got: dict[str, list[dict[str, object]]] = {}
        self.broken = False
        inbox = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if not inbox.broken:
                    message = standardwebhooks.Webhook(SECRET).verify(body, dict(self.headers))
                    inbox.got.setdefault(message["data"]["id"], []).append(dict(self.headers))
                self.send_response(503 if inbox.broken else 204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/hook"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


@pytest.fixture
def inbox() -> Iterator[Inbox]:
    inbox = Inbox()
    yield inbox
    inbox.close()


def modules(inbox: Inbox) -> str:
    return f"""
runner: {{notices_allow: [127.0.0.1]}}
modules:
  fails:
    env: inline
    secrets: [HOOK]
    on_end: [{{url: "{inbox.url}", when: [failed], secret: HOOK}}]
    code: "def handler(input): raise ValueError(input)"
  hangs:
    env: inline
    secrets: [HOOK]
    timeout: 600
    on_end: [{{url: "{inbox.url}", secret: HOOK}}]
    code: |
      import time
      def handler(input): time.sleep(600)
"""


@pytest.mark.timeout(300)  # some starts
def test_no_end_is_without_its_notice_over_kills(tmp_path: Path, inbox: Inbox) -> None:
    """Each runner is killed right after it has answered: most ends are in the journal only."""
    environ = {**os.environ, "OPERATO_SECRET_HOOK": SECRET}
    ended: list[str] = []
    lost: list[str] = []
    for _ in range(ROUNDS):
        with running(tmp_path, modules(inbox), environ=environ) as server:
            hanging = server.execute("hangs", None, prefer="respond-async").json()["id"]
            wait_for(lambda name=hanging, at=server: at.client.get(f"/executions/{name}").json()["status"] == "running")
            lost.append(hanging)
            server.client.get("/executions").raise_for_status()  # its begin is stored
            ended += [server.execute("fails", number).json()["id"] for number in range(5)]
            server.stop(signal.SIGKILL)
    with running(tmp_path, modules(inbox), environ=environ) as server:
        wait_for(lambda: inbox.got.keys() >= {*ended, *lost})
        assert server.stop() == 0

    assert inbox.got.keys() == {*ended, *lost}
    for headers in inbox.got.values():
        assert len({each["webhook-id"] for each in headers}) == 1


def test_the_commands_list_notices_and_send_them_again(tmp_path: Path, inbox: Inbox) -> None:
    inbox.broken = True
    with running(tmp_path, modules(inbox), environ={**os.environ, "OPERATO_SECRET_HOOK": SECRET}) as server:
        commands = Commands(tmp_path, url_of(server), server.token)
        name = server.execute("fails", 1).json()["id"]
        (notice,) = failing(server)
        code, out, _ = commands("notices", "list", "--state", "pending", "--module", "fails")
        assert code == 0
        assert all(text in out for text in (notice["id"], "pending", "it answered 503", "http://127.0.0.1"))
        assert "/hook" not in out

        inbox.broken = False
        assert commands("notices", "retry", notice["id"])[:2] == (0, f"{notice['id']}  is sent again\n")
        wait_for(lambda: name in inbox.got)
        wait_for(lambda: server.client.get("/notices?state=delivered").json()["items"])
        code, out, _ = commands("notices", "list", "--json", "--execution", name)
        assert (code, json.loads(out)["items"][0]["state"]) == (0, "delivered")
        code, _, err = commands("notices", "retry", notice["id"])
        assert code != 0
        assert "the notice is delivered" in err
        counted = server.client.get("/metrics").text
        assert 'operato_notices_total{outcome="delivered"} 1.0' in counted
        assert server.stop() == 0


def failing(server: Server) -> list[dict[str, object]]:
    def found() -> list[dict[str, object]]:
        items: list[dict[str, object]] = server.client.get("/notices").json()["items"]
        return [each for each in items if each["reason"]]

    wait_for(found)
    return found()
