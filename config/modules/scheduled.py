"""The inputs of a module's schedules, checked by its input schema when the module is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from config.code import input_schema, source_in
from config.mistakes import Wrong
from config.timing import ScheduleSpec


def input_wrongs(
    schedules: tuple[ScheduleSpec, ...],
    schema: Mapping[str, Any] | None,
    *,
    code: str | None,
    path: Path | None,
    handler: str,
) -> Iterator[Wrong]:
    """Yield the inputs that the module would refuse: by its `schema`, else by that of its handler's type hint."""
    if schedules and schema is None and (code or path):
        if code:
            text, function = code.encode(), handler.rpartition(":")[2]
        else:
            source = source_in(Path(str(path)), handler)
            text, function = source.text, source.function
        schema = input_schema(text, function)
    if not schedules or not schema:
        return
    from config.schema import InputCheck  # noqa: PLC0415  (50 ms to import, and few modules have schedules)

    check = InputCheck(schema)
    for at, schedule in enumerate(schedules):
        if (failure := check.check(json.dumps(schedule.input).encode())) is not None:
            yield Wrong(f"the module refuses this input: {failure.message}", ("schedules", at, "input"))
