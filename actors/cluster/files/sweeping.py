"""What killed runners left in the object store: contents without a note, and parts of contents without a content."""

from __future__ import annotations

import base64
import binascii
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import datetime
from typing import Any, Final

import msgspec
from attrs import define

from actors.cluster.engine import Engine
from actors.files import FILE_ID, Sharing

LEFT_SECONDS: Final = 3600.0
"""A younger one may belong to a runner that is about to publish its note."""
MAX_SUBJECTS: Final = 20_000
"""Contents that one sweep looks at."""


class _State(msgspec.Struct):
    subjects: dict[str, int] | None = None


class _Info(msgspec.Struct):
    state: _State


class _Content(msgspec.Struct):
    nuid: str


@define(eq=False)
class Sweeping:
    """Removes it. Only called when all notes are applied here."""

    engine: Engine
    sharing: Sharing
    clock: Callable[[], float]

    async def sweep(self) -> int:
        """Remove what is left, and return the number of contents and unfinished contents. Raises EngineError.

        Of more contents than it looks at, which parts belong to one is unknown: then nothing is removed.
        """
        bucket = self.engine.names.files
        contents = f"$O.{bucket}.M."
        subjects = await self._subjects(f"{contents}*")
        if len(subjects) > MAX_SUBJECTS:
            return 0
        known, removed = set[str](), 0
        for subject in subjects:
            stored = await self._last(subject)
            if stored is None:
                continue
            name, at = _name(subject.removeprefix(contents)), _seconds(stored["time"])
            if FILE_ID.fullmatch(name) and self._is_old(at) and await self.sharing.find(name) is None:
                await self.engine.delete_object(name)
                removed += 1
            try:
                known.add(msgspec.json.decode(base64.b64decode(stored.get("data", "")), type=_Content).nuid)
            except (msgspec.MsgspecError, binascii.Error):  # damaged: its parts are not known
                return removed
        async for subject in self._unknown(f"$O.{bucket}.C.", known):
            await self._asked(f"STREAM.PURGE.OBJ_{bucket}", {"filter": subject})
            removed += 1
        return removed

    async def _unknown(self, parts: str, known: set[str]) -> AsyncIterator[str]:
        for subject in await self._subjects(f"{parts}*"):
            if subject.removeprefix(parts) not in known:
                stored = await self._last(subject)
                if stored is not None and self._is_old(_seconds(stored["time"])):
                    yield subject

    def _is_old(self, at: float) -> bool:
        return at < self.clock() - LEFT_SECONDS

    async def _subjects(self, subject: str) -> list[str]:
        answer = await self._asked(f"STREAM.INFO.OBJ_{self.engine.names.files}", {"subjects_filter": subject})
        return sorted(msgspec.convert(answer, _Info).state.subjects or ())

    async def _last(self, subject: str) -> Mapping[str, Any] | None:
        answer = await self._asked(f"STREAM.MSG.GET.OBJ_{self.engine.names.files}", {"last_by_subj": subject})
        found: Mapping[str, Any] | None = answer.get("message")
        return found

    async def _asked(self, subject: str, question: Mapping[str, Any]) -> Mapping[str, Any]:
        answer = await self.engine.ask(f"$JS.API.{subject}", msgspec.json.encode(question))
        found: Mapping[str, Any] = msgspec.json.decode(answer)
        return found


def _name(text: str) -> str:
    try:
        return base64.urlsafe_b64decode(text).decode(errors="replace")
    except binascii.Error:
        return ""


def _seconds(text: str) -> float:
    return datetime.fromisoformat(f"{text[:19]}+00:00").timestamp()
