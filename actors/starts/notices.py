"""`Notices`, the actor that sends the notices of the outbox until they arrive.

Rules:
* A notice is sent at least once: it is settled after its receiver has answered. Its identifier is the same in all
  attempts.
* At most `MAX_FOR_ONE` are on their way to one target, and `MAX_AT_ONCE` to all, so that a slow receiver holds up none
  but its own. A target that fails is left alone for a moment, however many notices it has.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Final, Protocol

import structlog
import trio
from attrs import define, field, frozen
from msgspec.structs import replace

from actors.executions import Idempotency, Runs, fingerprint
from actors.outbox import MAX_DEPTH
from actors.starts.outbox import Outbox, Outgoing
from actors.turns import group_of
from config.mistakes import ConfigError
from config.secrets import LookUp, Secret
from protocol.errors import RunnerError
from protocol.ids import execution_id
from protocol.model import Execution, Record, Status

MAX_AT_ONCE: Final = 64
MAX_FOR_ONE: Final = 2
SUBJECT: Final = "notices"
"""The caller of executions that notices start."""
_FIRST_DELAY: Final = 5.0
_LONGEST_DELAY: Final = 3600.0
_JITTER: Final = 0.2
_LONGEST_REST: Final = 60.0
_MOST_RESTS: Final = 1000
"""Failing targets after which those that may be tried again are forgotten."""
_LOOK_SECONDS: Final = 60.0
"""A jump of the clock is noticed after this time."""
_TROUBLE_SECONDS: Final = 5.0
_UNKNOWN_SECONDS: Final = 1.0
"""Until the next look whether the end of this runner counts."""
_GONE: Final = 410
_SECRET: Final = "secret"  # noqa: S105 - the name under which it is looked up
_WHSEC: Final = "whsec_"
_REASON: Final = 500

log = structlog.get_logger("notices")


class PostError(Exception):
    """A message was not answered; the text says why."""


class Post(Protocol):
    """Sends one message over HTTP."""

    async def __call__(self, url: str, headers: Mapping[str, str], body: bytes) -> int:
        """Return the status of the answer. Raises PostError; has a time limit of its own."""


class Confirm(Protocol):
    """Tells whether this runner ended an execution, where another one may have ended it instead."""

    async def __call__(self, execution: str) -> bool | None:
        """Return whether the end of this runner counts; None while that is not known. Raises RunnerError."""


@frozen
class _Missed:
    """A failed attempt. `final`: no other will succeed; `rest`: others for the same target will fail too."""

    reason: str
    final: bool = False
    rest: bool = False


@define
class _Rest:
    """A target that failed some times in a row, and until when it is left alone."""

    failures: int = 0
    until: float = 0.0


def delay_after(attempts: int, chance: float) -> float:
    """Return the seconds after so many attempts until the next; `chance` from 0 to 1 spreads them."""
    delay = min(_FIRST_DELAY * 2.0 ** min(attempts - 1, 20), _LONGEST_DELAY)
    return delay * (1 + _JITTER * (2 * chance - 1))


def signature(secret: str, name: str, at: int, body: bytes) -> str:
    """Return the header `webhook-signature`. Raises ValueError for a secret that is not base64."""
    try:
        key = base64.b64decode(secret.strip().removeprefix(_WHSEC), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError("its secret is not base64, after `whsec_`, as Standard Webhooks needs it")
    signed = hmac.digest(key, b"%s.%d.%s" % (name.encode(), at, body), hashlib.sha256)
    return f"v1,{base64.b64encode(signed).decode()}"


@define(eq=False)
class Notices:
    """The actor. `agent` names the runner to receivers."""

    outbox: Outbox
    runs: Runs
    secrets: LookUp
    post: Post
    idempotency_seconds: float
    agent: str = "operato-runner"
    confirm: Confirm | None = None
    """None for a runner alone."""
    clock: Callable[[], float] = time.time
    chance: Callable[[], float] = random.random
    _sending: dict[str, str] = field(factory=dict, init=False)
    """Targets by the identifiers of notices that are on their way."""
    _rests: dict[str, _Rest] = field(factory=dict, init=False)
    _look: trio.Event = field(factory=trio.Event, init=False)
    _idempotency: Idempotency = field(init=False)

    def __attrs_post_init__(self) -> None:
        self._idempotency = Idempotency.of(self.runs, self.idempotency_seconds)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Send notices when they are due, until cancelled; the next runner repeats those on their way."""
        self._sending.clear()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._listen)
            task_status.started()
            while True:
                self._look = trio.Event()
                try:
                    seconds = await self._begin(nursery)
                except RunnerError as problem:
                    log.warning("notices cannot be read", why=str(problem))
                    seconds = _TROUBLE_SECONDS
                with trio.move_on_after(seconds):
                    await self._look.wait()

    async def _listen(self) -> None:
        while True:
            await self.outbox.noticed.wait()
            self._look.set()

    async def _begin(self, nursery: trio.Nursery) -> float:
        """Begin to send notices that are due and have a place; return the seconds until the next look."""
        while room := MAX_AT_ONCE - len(self._sending):
            found = await self.outbox.due(busy=self._busy(), sending=tuple(self._sending), limit=room)
            if not found:
                return await self._idle()
            for notice in found:
                if notice.target not in self._busy():
                    self._sending[notice.id] = notice.target
                    nursery.start_soon(self._send, notice, name=f"send {notice.id}")
        return math.inf  # until one of them has ended

    async def _idle(self) -> float:
        now = trio.current_time()
        rests = [rest.until - now for rest in self._rests.values() if rest.until > now]
        due = await self.outbox.next_due(busy=self._busy(), sending=tuple(self._sending))
        if due is not None:
            rests.append(min(max(0.0, due - self.clock()), _LOOK_SECONDS))
        return min(rests, default=math.inf)

    def _busy(self) -> set[str]:
        """Return the targets to which nothing more is sent now."""
        now = trio.current_time()
        full = {target for target, number in Counter(self._sending.values()).items() if number >= MAX_FOR_ONE}
        return full | {target for target, rest in self._rests.items() if rest.until > now}

    async def _send(self, notice: Outgoing) -> None:
        """Make one attempt, and note its outcome."""
        try:
            if not await self._is_ours(notice):
                return
            missed = await self._attempt(notice)
            self._note(notice.target, failed=missed is not None and missed.rest)
            if missed is None:
                await self.outbox.deliver(notice)
                log.debug("notice delivered", notice=notice.id, to=notice.target)
            else:
                await self._miss(notice, missed)
        except RunnerError as problem:
            log.warning("the outcome of a notice cannot be noted: it is sent again", notice=notice.id, why=str(problem))
            self._note(notice.target, failed=True)
        finally:
            self._sending.pop(notice.id, None)
            self._look.set()

    async def _is_ours(self, notice: Outgoing) -> bool:
        """Return whether a notice is sent now. One about an end that another runner made is that runner's to send."""
        ours = True if self.confirm is None else await self.confirm(notice.execution)
        if ours is None:
            await self.outbox.postpone(notice, _UNKNOWN_SECONDS)
            self._note(notice.target, failed=True)
        elif not ours:
            await self.outbox.withdraw(notice)
            log.info("a notice is withdrawn: another runner ended the execution", notice=notice.id)
        return bool(ours)

    async def _miss(self, notice: Outgoing, missed: _Missed) -> None:
        delay = None if missed.final else delay_after(notice.attempts + 1, self.chance())
        about = {"notice": notice.id, "execution": notice.execution, "to": notice.target, "why": missed.reason}
        if await self.outbox.miss(notice, missed.reason[:_REASON], delay):
            log.warning("a notice is dead: it is not sent again", **about)
        else:
            log.info("a notice was not delivered and is sent again", **about)

    def _note(self, target: str, *, failed: bool) -> None:
        """Leave a target alone for a moment that grows with its failures in a row."""
        if not failed:
            self._rests.pop(target, None)
            return
        if len(self._rests) >= _MOST_RESTS:
            now = trio.current_time()
            self._rests = {each: rest for each, rest in self._rests.items() if rest.until > now}
        rest = self._rests.setdefault(target, _Rest())
        rest.failures += 1
        rest.until = trio.current_time() + min(2.0 ** min(rest.failures - 1, 10), _LONGEST_REST)

    async def _attempt(self, notice: Outgoing) -> _Missed | None:
        """Send a notice once; return why that failed, None for a success."""
        try:
            if notice.recipient.module is not None:
                return await self._start(notice, notice.recipient.module)
            return await self._deliver(notice, notice.recipient.url or "")
        except Exception:
            log.exception("a notice failed inside the runner", notice=notice.id)
            return _Missed("internal error; search the runner's log for the notice")

    async def _deliver(self, notice: Outgoing, url: str) -> _Missed | None:
        at = int(self.clock())
        headers = {
            "content-type": "application/json",
            "user-agent": self.agent,
            "webhook-id": notice.id,
            "webhook-timestamp": str(at),
        }
        if notice.recipient.secret is not None:
            try:
                secret = await trio.to_thread.run_sync(self._secret, notice.recipient.secret)
                headers["webhook-signature"] = signature(secret, notice.id, at, notice.body)
            except ConfigError as problem:
                return _Missed(f"its secret cannot be read: {problem}")
            except ValueError as problem:
                return _Missed(str(problem))
        try:
            status = await self.post(url, headers, notice.body)
        except PostError as problem:
            return _Missed(str(problem), rest=True)
        if 200 <= status < 300:
            return None
        if status == _GONE:
            return _Missed("it answered 410: no more notices are wanted there", final=True)
        hint = "; redirects are not followed, give the final address" if 300 <= status < 400 else ""
        return _Missed(f"it answered {status}{hint}", rest=status >= 500 or status == 429)

    def _secret(self, source: Mapping[str, str]) -> str:
        """Return the value of a secret now, as it may have changed. Blocks. Raises ConfigError."""
        secret = Secret(env=source["env"]) if "env" in source else Secret(file=Path(source["file"]))
        return self.secrets({_SECRET: secret})[_SECRET]

    async def _start(self, notice: Outgoing, name: str) -> _Missed | None:
        """Start an execution of a module with the notice as input, once for all attempts."""
        depth = notice.depth + 1
        if depth > MAX_DEPTH:
            text = f"{MAX_DEPTH} notices led to it, each the cause of the next one; remove the loop from `on_end`"
            return _Missed(text, final=True)
        try:
            await self._submit(notice, name, depth)
        except RunnerError as problem:
            # Each can pass: a module comes back, a queue empties, a version accepts other inputs.
            return _Missed(str(problem))
        return None

    async def _submit(self, notice: Outgoing, name: str, depth: int) -> None:
        module = self.runs.registry.snapshot.get(name)
        body = notice.body
        if module.inputs is not None:
            failure = await trio.to_thread.run_sync(partial(module.inputs.check, body))
            if failure is not None:
                raise RunnerError(failure)
        summary = module.spec.record is Record.SUMMARY
        execution = Execution(
            id=execution_id(),
            module=module.ref,
            env=module.spec.env,
            status=Status.QUEUED,
            created_at=self.clock(),
            input=body,
            subject=SUBJECT,
            asynchronous=True,
            idempotency_key=f"notice/{notice.id}",
            on_end=None if module.telling is None else replace(module.telling, depth=depth),
            summary=summary,
            input_bytes=len(body),
            input_hash=fingerprint(body) if summary else None,
            group=None if module.spec.group is None else group_of(module.spec.group.key, body),
        )
        await self._idempotency.first(execution, partial(self.runs.dispatcher.submit, module, execution))
