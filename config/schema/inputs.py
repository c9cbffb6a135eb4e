"""The check of the inputs of one module version by its `input_schema`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from config.schema import fit, large
from config.schema.keywords import MAX_STEPS, TooManyStepsError
from config.schema.schema import mismatch, validator
from protocol.errors import ErrorKind, Failure
from protocol.scan import LongCheckError, decoded, has_more_values

QUICK_BYTES: Final = 64 * 1024
"""An input up to this size is checked at once, unless that takes too many steps."""
_QUICK_STEPS: Final = 500
_QUICK_WORK: Final = 2 * 1024 * 1024
"""Steps of a check at once, and steps times bytes, since an error shows the whole value: some milliseconds."""
_LARGE_BYTES: Final = 256 * 1024
"""A larger input gets only the fast check where there is one: the validator would take seconds for it."""
_MAX_VALUES: Final = 500_000
"""Values of an input for the validator, which needs them all in memory."""


class InputCheck:
    """Checks inputs by one schema: fast where `fit` can read it, else by the validator of schemas."""

    def __init__(self, schema: Mapping[str, Any]) -> None:
        """Take a schema in which `config.schema.problems` finds nothing."""
        self._fast = fit.decoder(schema)
        self._validator = validator(schema)

    def check(self, data: bytes, *, quickly: bool = False) -> Failure | None:
        """Return why an input, which is valid JSON, does not fit the schema, with its path; None when it fits.

        `quickly`: in some milliseconds, for at most QUICK_BYTES. Raises LongCheckError when that is not possible.
        Otherwise it may take seconds, in which other threads run.
        """
        wrong = None
        if self._fast is not None:
            try:
                if len(data) <= QUICK_BYTES:
                    self._fast[1].decode(data)
                else:
                    large.check(self._fast[0], data)
            except msgspec.MsgspecError as problem:
                wrong = fit.told(problem)
            except large.MismatchError as problem:
                wrong = problem.path, problem.why
            if wrong is None or len(data) > _LARGE_BYTES:
                return wrong and _failure(*wrong)
        try:
            return self._validate(data, min(_QUICK_STEPS, _QUICK_WORK // len(data)) if quickly else MAX_STEPS)
        except TooManyStepsError:
            if quickly:
                raise LongCheckError from None
            text = f"the input takes more than {MAX_STEPS} steps to check by its schema; send less at once"
            return _failure(*(wrong or ("$", text)))

    def _validate(self, data: bytes, steps: int) -> Failure | None:
        """Return what the validator finds in so many steps. Raises TooManyStepsError."""
        try:
            if has_more_values(data, _MAX_VALUES):
                return _failure("$", f"the input has more than {_MAX_VALUES:,} values to check; send less at once")
            found = mismatch(self._validator, decoded(data), steps)
        except msgspec.DecodeError as problem:  # a number that a handler may take, and msgspec does not decode
            return Failure(ErrorKind.BAD_INPUT, f"the input cannot be checked by its schema: {problem}", field="$")
        except RecursionError:
            text = "the input is nested too deeply to be checked by its schema"
            return Failure(ErrorKind.BAD_INPUT, text, field="$")
        return None if found is None else _failure(*found)


def _failure(path: str, why: str) -> Failure:
    return Failure(ErrorKind.BAD_INPUT, f"{path}: {why}", field=path)
