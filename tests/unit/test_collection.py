"""Unit: which environments are removed: by use, age and total size, and never a needed one."""

from __future__ import annotations

import pytest

from environments.base import Stored
from environments.store.collection import Rules, judge

NOW = 1000.0


def stored(key, *, used_at=0.0, size=10, in_use=False, kind="venv"):
    return Stored(key, kind, "3.12.1", f"/s/{key}", "", size, 0.0, used_at, in_use)


def removed(environments, *, used=(), unknown=(), **rules):
    verdicts = judge(environments, used=used, unknown=unknown, rules=Rules(**rules), now=NOW)
    return [verdict.stored.key for verdict in verdicts if verdict.remove]


def test_without_a_rule_nothing_goes():
    assert removed([stored("a")]) == []


@pytest.mark.parametrize(("used_at", "gone"), [(899.0, ["a"]), (900.0, []), (1000.0, [])])
def test_what_was_used_longer_ago_goes(used_at, gone):
    assert removed([stored("a", used_at=used_at)], older_than_seconds=100.0) == gone


def test_oldest_use_goes_first_until_the_rest_fits():
    environments = [stored("new", used_at=30.0), stored("old", used_at=10.0), stored("middle", used_at=20.0)]

    assert removed(environments, keep_bytes=30) == []
    assert removed(environments, keep_bytes=29) == ["old"]
    assert removed(environments, keep_bytes=15) == ["old", "middle"]
    assert removed(environments, keep_bytes=0) == ["old", "middle", "new"]


def test_what_stays_counts_and_is_passed_over():
    environments = [stored("held", used_at=1.0, in_use=True), stored("mine", used_at=2.0), stored("other", used_at=3.0)]

    assert removed(environments, used={"mine"}, keep_bytes=20) == ["other"]
    assert removed(environments, used={"mine"}, keep_bytes=0, older_than_seconds=1.0) == ["other"]


def test_a_kind_of_which_nothing_can_be_told_stays():
    environments = [stored("v"), stored("c", kind="conda")]

    assert removed(environments, unknown={"conda"}, older_than_seconds=1.0) == ["v"]


def test_every_verdict_has_a_reason():
    environments = [
        stored("a"),
        stored("b", in_use=True),
        stored("c"),
        stored("d", kind="conda"),
        stored("e", used_at=NOW),
    ]
    verdicts = judge(environments, used={"c"}, unknown={"conda"}, rules=Rules(older_than_seconds=1.0), now=NOW)

    assert len({verdict.why for verdict in verdicts}) == 5
    assert "" not in {verdict.why for verdict in verdicts}
