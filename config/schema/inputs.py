"""The check of the inputs of one module version by its `input_schema`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from config.schema import fit
from config.schema.keywords import MAX_STEPS, TooManyStepsError
from config.schema.schema import mismatch, validator
from protocol.errors import ErrorKind, Failure

_LARGE_BYTES: Final = 256 * 1024
"""A larger input gets only the fast check: the validator of schemas would hold up the event loop for seconds."""


class InputCheck:
    """Checks inputs by one schema: fast where `fit` can read it, else by the validator of schemas."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Take a schema in which `config.schema.problems` finds nothing."""
        self._fast = fit.decoder(schema)
        self._validator = validator(schema)

    def check(self, data: bytes) -> Failure | None:
        """Return why an input, which is valid JSON, does not fit the schema, with its path; None when it fits."""
        wrong = ("$", f"the input takes more than {MAX_STEPS} steps to check by its schema; send less at once")
        if self._fast is not None:
            try:
                self._fast.decode(data)
            except msgspec.MsgspecError as problem:
                wrong = fit.told(problem)
                if len(data) > _LARGE_BYTES:
                    return _failure(*wrong)
            else:
                return None
        try:
            found = mismatch(self._validator, msgspec.json.decode(data))
        except msgspec.DecodeError as problem:  # a number that a handler may take, and msgspec does not decode
            return Failure(ErrorKind.BAD_INPUT, f"the input cannot be checked by its schema: {problem}", field="$")
        except TooManyStepsError:
            found = wrong
        except RecursionError:
            text = "the input is nested too deeply to be checked by its schema"
            return Failure(ErrorKind.BAD_INPUT, text, field="$")
        return None if found is None else _failure(*found)


def _failure(path: str, why: str) -> Failure:
    return Failure(ErrorKind.BAD_INPUT, f"{path}: {why}", field=path)
