"""The work of the commands `call` and `logs`: start an execution on a server, show its output, end with its result."""

from __future__ import annotations

import re
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from pathlib import Path

import click
import msgspec
from attrs import evolve, frozen

from protocol import views
from protocol.errors import ErrorKind, RunnerError, error
from protocol.events import DroppedEvent, OutputEvent
from protocol.messages import InvalidJsonError, check_json
from protocol.model import Stream
from runner.client.connection import ANSWER_SECONDS, MAX_ANSWER_BYTES, Client, segment
from runner.client.events import ANSWER, Begun, End, Message, cut_off, end_in, follow, read_events, with_execution
from runner.client.files import Form, Raw, save_result
from runner.client.printing import Interrupts, Printer, interruptible, write
from runner.client.trouble import not_a_runner

_EXAMPLE = '{"name": "Ada"}'
_KEY = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]{0,253}[\x21-\x7e])?")


@frozen
class Order:
    """One call. `data` is JSON; empty data is null."""

    module: str
    data: bytes
    version: str | None = None
    timeout: float | None = None
    key: str | None = None
    content: Form | Raw | None = None
    """The input in place of `data`, in another form than JSON."""
    terms: Mapping[str, object] = {}
    """`priority`, `run_at` and `delay`, of an asynchronous call only."""

    def checked(self) -> Order:
        """Return the order if its input can be sent. Raises RunnerError `bad_input` or `too_large`."""
        if len(self.data) > MAX_ANSWER_BYTES:
            raise error(ErrorKind.TOO_LARGE, f"the input is over {MAX_ANSWER_BYTES} bytes", field="$")
        try:
            check_json(self.data.strip() or b"null")
        except InvalidJsonError as problem:
            text = f"the input is not JSON: {problem}; write '{_EXAMPLE}', and text as '\"Ada\"', in both quotes"
            raise error(ErrorKind.BAD_INPUT, text, field=problem.path) from None
        if self.key is not None and not _KEY.fullmatch(self.key):
            text = "an idempotency key has 1 to 255 visible ASCII characters, and spaces between them"
            raise error(ErrorKind.BAD_INPUT, text, field="Idempotency-Key")
        return self

    @property
    def body(self) -> bytes:
        """The body of the request."""
        return self.data.strip() or b"null"

    async def submit(self, client: Client) -> views.Execution:
        """Submit the call as an asynchronous execution; return the accepted execution. Raises RunnerError."""
        return await self.post(client, prefer="respond-async", seconds=ANSWER_SECONDS)

    async def post(self, client: Client, *, prefer: str | None = None, seconds: float | None = None) -> views.Execution:
        """Make the call over HTTP; return the execution in the answer. Raises RunnerError."""
        given = {
            "content-type": "application/json",
            "prefer": prefer,
            "idempotency-key": self.key,
            "x-timeout": None if self.timeout is None else repr(self.timeout),
        }
        headers = {name: value for name, value in given.items() if value is not None}
        path, query = f"/modules/execute/{segment(self.module)}", {"version": self.version, **self.terms}
        body: bytes | AsyncIterator[bytes] = self.body
        if self.content is not None:
            headers |= {"content-type": self.content.type, "content-length": str(await self.content.size())}
            body = self.content.pieces()
        answer = await client.request("POST", path, query=query, body=body, headers=headers, seconds=seconds)
        return answer.read(ANSWER)


_Through = Callable[[Client, Order, Printer, Interrupts], Awaitable[End]]


async def submit(client: Client, order: Order) -> int:
    """Submit a call, and print the id of its execution. Raises RunnerError."""
    accepted = await order.checked().submit(client)
    click.echo(accepted["id"])
    return 0


async def follow_call(client: Client, order: Order, *, live: bool, to: Path | None = None) -> int:
    """Run a call to its end: result to stdout, output to stderr, `live` or at the end. Returns the exit code.

    `to` is where the result goes instead of stdout: a file, or a folder of files.

    Raises RunnerError with the failure of the execution. Ctrl-C cancels the execution on the server.
    """
    order.checked()
    printer = Printer(live=live, apart=False)

    async def work(interrupts: Interrupts) -> int:
        through: _Through = _through_socket if order.key is None else _with_key
        if order.content is not None:
            through = _with_key if live or order.key is not None else _through_request
        try:
            end = await through(client, order, printer, interrupts)
            code = await printer.end(end, to_stdout=to is None)
        except RunnerError as problem:
            raise problem if order.content or order.data.strip() else _without_input(problem, order.module) from None
        return code if to is None else await _save(client, end.result or b"null", to)

    return await interruptible(work)


async def _save(client: Client, result: bytes, to: Path) -> int:
    """Write the result to a file; print it if that fails, as the call is not repeated. Raises RunnerError, OSError."""
    try:
        return await save_result(client, result, to)
    except (RunnerError, OSError):
        await write(1, result + b"\n")
        raise


def _without_input(problem: RunnerError, module: str) -> RunnerError:
    """Return the failure of a call without input, and show an example of one where that may be the reason."""
    failure = problem.failure
    hint = f"no input was given, so it was null; an example of one: '{_EXAMPLE}'"
    if failure.kind is ErrorKind.BAD_INPUT:
        more = f"`operato-runner modules show {module}` shows the schema of its input"
        return RunnerError(evolve(failure, message=f"{failure.message}; {hint}; {more}"))
    if failure.kind is ErrorKind.HANDLER_ERROR and sys.stderr.isatty():
        click.echo(f"-- {hint}", err=True)
    return problem


async def _through_socket(client: Client, order: Order, printer: Printer, interrupts: Interrupts) -> End:
    """Call over a websocket: the id comes first, and the websocket ends with the execution."""
    identity: str | None = None

    async def show(event: Message) -> None:
        nonlocal identity
        if isinstance(event, Begun):
            identity = event.id
        else:
            await printer.show(event)

    query = {"version": order.version, "timeout": order.timeout}
    async with client.socket(f"/modules/stream/{segment(order.module)}", query=query) as socket:

        async def cancel() -> None:
            await socket.send('{"type": "cancel"}')

        interrupts.cancel = cancel
        await socket.send(order.body.decode())
        end = await read_events(client, socket, show)
        if end is None:
            await printer.flush()
            raise cut_off(client, socket, identity, order.module)
    return end


async def _through_request(client: Client, order: Order, printer: Printer, _interrupts: Interrupts) -> End:
    """Call over HTTP, where the body is no JSON. The runner cancels the execution when the connection is closed."""
    return await _printed(await order.post(client), printer)


async def _printed(execution: views.Execution, printer: Printer) -> End:
    """Print the output of an execution that has ended, and return its end."""
    await printer.output(Stream.STDOUT, execution.get("stdout", ""))
    await printer.output(Stream.STDERR, execution.get("stderr", ""))
    return end_in(execution) or End()


async def _with_key(client: Client, order: Order, printer: Printer, interrupts: Interrupts) -> End:
    """Submit the call, then wait for its end: it continues without this client, and its key finds it again.

    Without live output the same call is repeated until the end, which needs only the scope `executions:run`.
    """
    accepted = await order.submit(client)
    path = f"/executions/{segment(accepted['id'])}/cancel"

    async def cancel() -> None:
        await client.request("POST", path)

    interrupts.cancel = cancel
    try:
        if printer.live:
            return await follow(client, accepted["id"], 0, printer.show, printer.again)
        execution = accepted
        while end_in(execution) is None:
            execution = await order.post(client)
    except RunnerError as problem:
        raise with_execution(problem, accepted["id"], order.module) from None
    return await _printed(execution, printer)


async def print_output(client: Client, identity: str, start: int, *, following: bool) -> int:
    """Print the output of all attempts of an execution; `following`, to its end. Returns the exit code.

    That is 0, or with `following` the code of the execution. Raises RunnerError.
    """
    printer = Printer(live=True, apart=True)
    if following:

        async def work(_interrupts: Interrupts) -> int:
            return await printer.end(await follow(client, identity, start, printer.show, printer.again))

        return await interruptible(work)
    path = f"/executions/{segment(identity)}/output"
    answer = await client.request("GET", path, query={"format": "jsonl"})
    lines: msgspec.json.Decoder[OutputEvent | DroppedEvent] = msgspec.json.Decoder(OutputEvent | DroppedEvent)
    for line in answer.body.splitlines():
        try:
            event = lines.decode(line)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise not_a_runner(client.address, "its answer cannot be read") from None
        if event.seq >= start:
            await printer.show(event)
    return 0
