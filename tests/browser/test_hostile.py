"""Browser: hostile text in every place that shows text of others: it becomes neither markup nor script nor a link."""

from __future__ import annotations

from urllib.parse import quote

import jwt
import pytest

from tests.browser.chromium import Complaints, opened
from tests.browser.showcase import sign_in, views
from tests.server_process import running, url_of

MARKUP = (
    "\"'><img src=x data-hostile onerror=alert(1)><svg data-hostile onload=alert(2)></script><script data-hostile>"
    "alert(3)</script>{{7*7}}{% raw %}<a data-hostile href=javascript:alert(4)>x</a>"
)
HIDDEN = (
    "\u202egnp.exe\u202c \u2066a\u2069 \x1b[31mred\x1b[0m \x1b]8;;javascript:alert(5)\x07link\x1b]8;;\x07 \x00 \x9b1m"
)
HOSTILE = MARKUP + HIDDEN
CODE = f'''
"""{MARKUP.replace('"""', "")}"""
import base64
import sys

from operato import File

TEXT = {HOSTILE!r}


class {{}}(Exception):
    pass


def handler(input, context):
    print(TEXT)
    print(TEXT, file=sys.stderr)
    context.progress(1, 2, TEXT)
    if input == "fail":
        raise type("E" + "rror<img data-hostile>", (Exception,), {{}})(TEXT)
    if input == "svg":
        return File(b"<svg xmlns='http://www.w3.org/2000/svg' onload='alert(6)'/>", name="x.svg", type="image/svg+xml")
    if input == "html":
        return File(b"<script data-hostile>alert(7)</script>", name=TEXT[:80].replace("/", "_"), type="text/html")
    if input == "png":
        return File(b"<script data-hostile>alert(8)</script>", name="x.png", type="image/png")
    if input == "table":
        return [{{TEXT: TEXT, "url": "javascript:alert(9)"}}, {{TEXT: None, "url": TEXT}}]
    return {{TEXT: [TEXT], "a": {{"b": TEXT}}}}
'''.replace("class {}(Exception)", "class Own(Exception)")
MODULE = {
    "name": "hostile",
    "env": "inline",
    "description": HOSTILE.replace("\x00", ""),
    "tags": ["<b data-hostile>", "javascript:alert(1)"],
    "version": "1.0",
    "code": CODE,
    "retry": {"attempts": 2, "backoff": {"initial": "10ms"}},
    "on_end": [{"url": "http://127.0.0.1:1/javascript:alert(1)"}],
    "input_schema": {
        "type": ["string", "object", "null"],
        "title": MARKUP,
        "description": MARKUP,
        "default": MARKUP,
        "examples": [MARKUP],
        "properties": {MARKUP: {"type": "string", "title": MARKUP, "description": MARKUP, "default": MARKUP}},
    },
}
LOOK = r"""() => {
  const found = [...document.querySelectorAll("[data-hostile], [onerror], [onload], [onclick]")].map(e => e.outerHTML);
  for (const link of document.querySelectorAll("[href], [src], [action]"))
    for (const name of ["href", "src", "action"])
      if (/^\s*(javascript|data|vbscript):/i.test(link.getAttribute(name) ?? "")) found.push(link.outerHTML);
  if (document.body.innerText.includes("49{%")) found.push("a template was run");
  const control = /[\u202a-\u202e\u2066-\u2069\u0000-\u0008\u000e-\u001f\u007f-\u009f]/;
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const { data, parentElement } = walker.currentNode;
    if (control.test(data) && parentElement.tagName != "TEXTAREA") // an editor shows the bytes
      found.push(`a control character is shown: ${parentElement.outerHTML.slice(0, 300)}`);
  }
  return found;
}"""
"""Return what a page has of the hostile texts besides text."""


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """Run a server whose every text is hostile; return it with a session's token and the paths of its pages."""
    home = tmp_path_factory.mktemp("hostile")
    with running(home, "modules: []\n") as server:
        claims = jwt.decode(server.token, options={"verify_signature": False})
        secret = (home / "data" / "jwt-secret").read_text().strip()
        token = jwt.encode({**claims, "sub": HOSTILE.replace("\x00", "")[:200]}, secret, algorithm="HS256")
        server.client.headers["authorization"] = f"Bearer {token}"
        yield server, token, fill(server)


def fill(server):
    def post(path, **body):
        return server.client.post(path, json=body).raise_for_status().json()

    made = server.client.put("/modules/hostile", json=MODULE)
    assert made.status_code == 201, made.text
    server.client.put(
        "/modules/hostile", json={**MODULE, "version": "2.0", "code": CODE + "# " + MARKUP}
    ).raise_for_status()
    paths = []
    for given in ("fail", "svg", "html", "png", "table", "all"):
        found = server.client.post("/modules/execute/hostile", json=given).json()
        paths.append(f"/executions/{found['id']}")
    post("/schedules", name="weekly", module="hostile", cron="0 9 * * mon", input=MARKUP)
    post("/keys", name="ci", scopes=["executions:run"], modules=["<img-data-hostile>*"])
    found = {"ended": "", "failed": "", "running": "", "environment": ""}
    named = [
        path.replace("/report", "/hostile").replace("/answer", "/hostile").replace("/hello", "/hostile")
        for name, path in views(found)
        if not name.startswith("execution") and name not in ("environment", "schedule")
    ]
    paths += [path.replace("numbers", "hostile") for path in named]
    paths += ["/schedules/weekly", "/schedules/weekly/edit", "/executions", "/publish?module=hostile"]
    paths += ["/modules/hostile/versions?from=1.0&to=2.0", "/modules/hostile/code?file=main.py"]
    filters = "".join(
        f"&{name}={quote(MARKUP)}" for name in ("module", "subject", "error", "text", "q", "version", "state")
    )
    return [
        *dict.fromkeys(paths),
        *(f"/{name}?x=1{filters}" for name in ("executions", "modules", "schedules", "audit", "notices")),
    ]


def test_no_text_becomes_markup_or_script(chromium, hostile):
    server, token, paths = hostile
    complaints = Complaints(url_of(server))
    with opened(chromium, complaints) as page:
        sign_in(page, token)
        bad, shown = [], 0
        for path in paths:
            answer = page.goto(f"/ui{path}")
            if answer.status >= 500:
                bad.append(f"{path}: status {answer.status}")
            page.wait_for_load_state("load")
            bad += [f"{path}: {what}" for what in page.evaluate(LOOK)]
            shown += "alert(3)" in page.inner_text("main")
            bad += [f"{path}: {what}" for what in complaints.found]
            complaints.found.clear()
        assert not bad, "\n".join(bad)
    assert shown > 15, "the pages show the texts"
