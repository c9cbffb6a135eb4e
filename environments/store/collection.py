"""Which environments to remove: a pure function of the existing ones, the used ones and the rules."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from attrs import frozen

from environments.base import Stored


@frozen
class Rules:
    """An unused environment is removed by one of these rules.

    `older_than_seconds`: its last use is longer ago. `keep_bytes`: while all environments together are larger, the
    least recently used one is removed.
    """

    older_than_seconds: float | None = None
    keep_bytes: int | None = None


@frozen
class Verdict:
    """Whether to remove one environment, and why."""

    stored: Stored
    remove: bool
    why: str


def judge(
    stored: Iterable[Stored], *, used: Collection[str], unknown: Collection[str], rules: Rules, now: float
) -> list[Verdict]:
    """Return a verdict for each environment, least recently used first.

    `used` has the keys of modules; of the kinds in `unknown`, whose keys cannot be determined, all stay.
    """
    ordered = sorted(stored, key=lambda one: (one.used_at, one.key))
    total = sum(one.size_bytes for one in ordered)
    verdicts = []
    for one in ordered:
        why, remove = _reason(one, used, unknown), False
        if not why:
            age = now - one.used_at
            if rules.older_than_seconds is not None and age > rules.older_than_seconds:
                why, remove = "unused, and its last use is too long ago", True
            elif rules.keep_bytes is not None and total > rules.keep_bytes:
                why, remove = "unused, and all environments together take too much space", True
            else:
                why = "unused, but within the limits of age and space"
        if remove:
            total -= one.size_bytes
        verdicts.append(Verdict(one, remove, why))
    return verdicts


def _reason(one: Stored, used: Collection[str], unknown: Collection[str]) -> str:
    """Return why an environment stays under any rule; empty if the rules decide."""
    if one.in_use:
        return "a process uses it"
    if one.key in used:
        return "a module of the file uses it"
    if one.kind in unknown:
        return f"the {one.kind} environments of the file's modules cannot be determined"
    return ""
