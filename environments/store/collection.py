"""Which environments are to be removed. Pure: what is there, what modules use, and the rules decide."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from attrs import frozen

from environments.base import Stored


@frozen
class Rules:
    """An environment that no module uses goes when one of these says so.

    `older_than_seconds`: its last use is longer ago. `keep_bytes`: all environments together take more; those whose use
    is longest ago go until they do not.
    """

    older_than_seconds: float | None = None
    keep_bytes: int | None = None


@frozen
class Verdict:
    """What is to become of one environment, and why."""

    stored: Stored
    remove: bool
    why: str


def judge(
    stored: Iterable[Stored], *, used: Collection[str], unknown: Collection[str], rules: Rules, now: float
) -> list[Verdict]:
    """Return a verdict for each environment, the one whose use is longest ago first.

    `used` are the keys that modules have, `unknown` the kinds of which that cannot be told; of those all stay.
    """
    ordered = sorted(stored, key=lambda one: (one.used_at, one.key))
    total = sum(one.size_bytes for one in ordered)
    verdicts = []
    for one in ordered:
        why, remove = _reason(one, used, unknown), False
        if not why:
            age = now - one.used_at
            if rules.older_than_seconds is not None and age > rules.older_than_seconds:
                why, remove = "no module uses it, and its last use is too long ago", True
            elif rules.keep_bytes is not None and total > rules.keep_bytes:
                why, remove = "no module uses it, and all together take too much space", True
            else:
                why = "no module uses it; it is neither old nor in the way yet"
        if remove:
            total -= one.size_bytes
        verdicts.append(Verdict(one, remove, why))
    return verdicts


def _reason(one: Stored, used: Collection[str], unknown: Collection[str]) -> str:
    """Return why an environment stays in any case, or nothing."""
    if one.in_use:
        return "a process uses it"
    if one.key in used:
        return "a module of the file uses it"
    if one.kind in unknown:
        return f"it cannot be told which {one.kind} environments the modules of the file use"
    return ""
