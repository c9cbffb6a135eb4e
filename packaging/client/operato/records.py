"""What a client returns: executions, their events, and the outcomes of a batch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from operato.errors import OperatoError, failure

_LIVE = ("scheduled", "queued", "running")


@dataclass(frozen=True)
class Execution:
    """One execution as the runner described it."""

    fields: dict[str, Any] = field(repr=False)
    """All fields of the answer."""
    id: str = ""
    module: str = ""
    status: str = ""
    """`scheduled`, `queued`, `running`, `succeeded`, `failed` or `cancelled`."""

    @classmethod
    def of(cls, fields: dict[str, Any]) -> Execution:
        """Return the execution that an answer describes."""
        return cls(fields, *(str(fields.get(name, "")) for name in ("id", "module", "status")))

    @property
    def ended(self) -> bool:
        """Whether it has ended, in any way."""
        return self.status not in _LIVE

    @property
    def version(self) -> str:
        """The version of the module."""
        return str(self.fields.get("version", ""))

    @property
    def result(self) -> Any:
        """The result; None if it failed, has not ended, or if the answer has no results, as a list."""
        return self.fields.get("result")

    @property
    def stdout(self) -> str:
        """What the last attempt printed to standard output."""
        return str(self.fields.get("stdout") or "")

    @property
    def stderr(self) -> str:
        """What the last attempt printed to standard error."""
        return str(self.fields.get("stderr") or "")

    @property
    def error(self) -> OperatoError | None:
        """Why it failed; None if it did not."""
        found = self.fields.get("error")
        return failure(found, execution_id=self.id) if isinstance(found, dict) else None

    def value(self) -> Any:
        """Return the result. Raises the error of a failed execution, and ValueError for one that has not ended."""
        problem = self.error
        if problem is not None:
            raise problem
        if not self.ended:
            raise ValueError(f"execution {self.id} has not ended: it is {self.status}")
        return self.result


@dataclass(frozen=True)
class Event:
    """One event of an execution: `status`, `output`, `item`, `progress`, `dropped`, `result` or `error`."""

    type: str
    seq: int
    """Its number within the execution, from 0."""
    at: float
    """Seconds since the epoch."""
    fields: dict[str, Any] = field(repr=False)
    """All fields of the event."""

    @property
    def text(self) -> str:
        """The printed text of an `output`, or the text of a `progress`."""
        return str(self.fields.get("text") or "")

    @property
    def value(self) -> Any:
        """The value of an `item`, or the result in a `result`."""
        return self.fields.get("result" if self.type == "result" else "value")

    @property
    def error(self) -> OperatoError | None:
        """The failure in an `error`."""
        found = self.fields.get("error")
        return failure(found) if isinstance(found, dict) else None

    @property
    def last(self) -> bool:
        """Whether it is the end of the execution."""
        return self.type in ("result", "error")


@dataclass(frozen=True)
class Outcome:
    """The outcome of one input of a batch."""

    index: int
    """The place of the input, from 0."""
    execution: Execution | None = None
    """None if the input never began."""
    problem: OperatoError | None = None
    """Why it never began."""

    @property
    def error(self) -> OperatoError | None:
        """Why it failed or never began; None for a success."""
        return self.problem if self.execution is None else self.execution.error

    def value(self) -> Any:
        """Return the result. Raises the error."""
        if self.execution is None:
            raise self.problem or ValueError("the input has no outcome")
        return self.execution.value()
