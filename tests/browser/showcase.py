"""Browser: the modules that the tests and the pictures show, and a server that has run them for a while."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tests.server_process import Server

MODULES = """
modules:
  - name: hello
    env: inline
    description: Greets the person in the input.
    tags: [example]
    code: |
      def handler(input):
          print(f"greeting {input['name']}")
          return {"message": f"Hello, {input['name']}!"}

  - name: report
    env: inline
    description: Sales of a quarter, as a table and a chart.
    tags: [finance, nightly]
    schedules:
      - {cron: "30 3 * * mon-fri", timezone: Asia/Seoul, name: nightly, input: {quarter: Q3}}
      - {every: 1h, name: hourly, input: {quarter: Q4}}
    input_schema:
      type: object
      required: [quarter]
      properties:
        quarter: {enum: [Q1, Q2, Q3, Q4], description: The quarter.}
        rows: {type: integer, minimum: 1, maximum: 1000, default: 3}
        draft: {type: boolean, default: false}
        customer:
          type: object
          properties:
            name: {type: string, title: Name of the customer}
            since: {type: string, format: date}
        tags: {type: array, items: {type: string}}
    code: |
      def handler(input):
          rows = [
              {"region": region, "sales": 1000 * number, "growth": f"{number} %"}
              for number, region in enumerate(["Seoul", "Busan", "Daegu"][: input.get("rows", 3)], 1)
          ]
          print(f"{len(rows)} rows for {input['quarter']}")
          return rows

  - name: count
    env: inline
    description: Counts up to a number, and prints each step.
    timeout: 10m
    code: |
      import time

      def handler(input):
          for number in range(input["to"]):
              print("line", number, flush="pause" in input)
              if "pause" in input:
                  time.sleep(input["pause"])
          return input["to"]

  - name: upper
    env: inline
    description: Returns a text file in capitals.
    code: |
      from pathlib import Path

      from operato import File

      def handler(text: File, copies: int = 1):
          return {"text": Path(text).read_text().upper() * copies}

  - name: broken
    env: inline
    description: Fails each time.
    code: |
      def total(rows):
          return sum(row["price"] for row in rows)

      def handler(input):
          print("adding up")
          return total(input["rows"])

  - name: numbers
    env: venv
    description: Runs in an environment of its own.
    code: |
      def handler(input):
          return sum(input)
"""
VERSION = """
def handler(input):
    return {number}
"""


def fill(server: Server) -> dict[str, Any]:
    """Run the modules, register one with two versions, make a key and a schedule; return what the pages need."""
    for name in ("World", "Seoul", "Busan"):
        server.execute("hello", {"name": name})
    ended = server.execute("report", {"quarter": "Q3"}).json()["id"]
    failed = server.execute("broken", {"rows": [{"cost": 1}]}).json()["id"]
    server.execute("count", {"to": 50})
    server.client.post("/modules/numbers/prepare", timeout=120).raise_for_status()
    server.execute("numbers", [1, 2, 3])
    for number in (1, 2):
        code = VERSION.format(number=number)
        order = {"name": "answer", "env": "inline", "description": "Has two versions.", "code": code}
        server.client.put("/modules/answer", json=order).raise_for_status()
    server.execute("answer", None)
    order = {"name": "weekly", "module": "report", "cron": "0 9 * * mon", "input": {"quarter": "Q1"}}
    server.client.post("/schedules", json=order).raise_for_status()
    server.client.post("/schedules/report:hourly/pause").raise_for_status()
    for name, scopes in (("ci", "executions:run"), ("grafana", "metrics:read")):
        server.client.post("/keys", json={"name": name, "scopes": scopes, "expires": "90d"}).raise_for_status()
    (environment,) = server.client.get("/environments/built").json()["items"]
    running = server.client.post("/executions", json={"module": "count", "input": {"to": 10_000, "pause": 0.2}})
    return {"ended": ended, "failed": failed, "running": running.json()["id"], "environment": environment["key"]}


def views(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the name and the path of each view of a server that `fill` has filled."""
    yield "overview", "/"
    yield "executions", "/executions"
    yield "executions-failed", "/executions?status=failed"
    yield "executions-rerun", "/executions/rerun?status=failed"
    yield "execution", f"/executions/{found['ended']}"
    yield "execution-failed", f"/executions/{found['failed']}"
    yield "execution-running", f"/executions/{found['running']}"
    yield "modules", "/modules"
    yield "module", "/modules/report"
    yield "module-code", "/modules/report/code"
    yield "module-versions", "/modules/answer/versions"
    yield "module-stats", "/modules/hello/statistics"
    yield "module-environment", "/modules/numbers/environment"
    yield "module-starts", "/modules/report/starts"
    yield "publish", "/publish"
    yield "schedules", "/schedules"
    yield "schedule", "/schedules/report:nightly"
    yield "schedule-form", "/schedules/new?module=report"
    yield "environments", "/environments"
    yield "environment", f"/environments/{found['environment']}"
    yield "notices", "/notices"
    yield "keys", "/keys"
    yield "audit", "/audit"
    yield "not-found", "/nothing"


def sign_in(page: Any, token: str) -> None:
    """Sign in by the form."""
    page.goto("/ui/sign-in")
    page.locator("input[name=token]").fill(token)
    page.locator("form:has(input[name=token]) button").click()
    page.wait_for_url(lambda url: "sign-in" not in url)
