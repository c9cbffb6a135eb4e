"""Unit: accepted executions that wait for their turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.turns import Backlog


def test_order_within_a_module_and_places():
    backlog = Backlog()
    for name in "abc":
        backlog.push("m", name, b"")
    backlog.push("n", "x", b"")

    assert [backlog.ahead("m", name) for name in "abc"] == [0, 1, 2]
    assert backlog.ahead("n", "x") == 0
    assert backlog.ahead("m", "x") is None
    assert backlog.pop("m") == "a"
    assert backlog.remove("m", "b")
    assert not backlog.remove("m", "b")
    assert backlog.ahead("m", "c") == 0
    assert (backlog.pop("m"), backlog.pop("m"), backlog.pop("other")) == ("c", None, None)
    assert backlog.modules() == ("n",)
    assert len(backlog) == 1


@given(st.lists(st.tuples(st.sampled_from(["push", "pop", "remove"]), st.sampled_from("mno"), st.integers(0, 20))))
def test_each_module_has_a_queue(steps):
    backlog, model = Backlog(), {"m": [], "n": [], "o": []}
    for what, module, number in steps:
        name, waiting = f"{module}{number}", model[module]
        if what == "push" and name not in waiting:
            backlog.push(module, name, b"")
            waiting.append(name)
        elif what == "pop":
            assert backlog.pop(module) == (waiting.pop(0) if waiting else None)
        elif what == "remove":
            assert backlog.remove(module, name) == (name in waiting)
            if name in waiting:
                waiting.remove(name)
        assert len(backlog) == sum(map(len, model.values()))
        assert set(backlog.modules()) == {m for m, names in model.items() if names}
        for m, names in model.items():
            for at, each in enumerate(names):
                assert at <= backlog.ahead(m, each) <= len(names) - 1


def test_inputs_are_kept_within_a_bound_and_forgotten_once():
    backlog = Backlog(keep=1000)
    backlog.push("m", "a", b"x" * 500)
    backlog.push("m", "b", b"y" * 500)  # no room
    backlog.push("m", "c", b"z")  # what is small still fits
    assert (backlog.pop("m"), backlog.take_input("a"), backlog.take_input("a")) == ("a", b"x" * 500, None)
    assert (backlog.pop("m"), backlog.take_input("b")) == ("b", None)
    assert backlog.remove("m", "c")
    assert backlog.take_input("c") is None

    for _ in range(3):  # the room is there again, each time
        backlog.push("m", "d", b"x" * 700)
        assert backlog.remove("m", "d")
        backlog.push("m", "e", b"x" * 700)
        assert (backlog.pop("m"), backlog.take_input("e")) == ("e", b"x" * 700)
