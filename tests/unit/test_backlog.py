"""Unit: accepted executions that wait for their turn."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from actors.turns import Backlog


def took(backlog, module, places=10_000):
    found = backlog.take(module, places)
    return None if found is None else found[0]


def test_order_within_a_module_and_places():
    backlog = Backlog()
    for name in "abc":
        backlog.push("m", name, b"")
    backlog.push("n", "x", b"")

    assert [backlog.ahead("m", name) for name in "abc"] == [0, 1, 2]
    assert backlog.ahead("n", "x") == 0
    assert backlog.ahead("m", "x") is None
    assert took(backlog, "m", 9) == "a"
    assert backlog.remove("m", "b")
    assert not backlog.remove("m", "b")
    assert backlog.ahead("m", "c") == 0
    assert (took(backlog, "m"), took(backlog, "m"), took(backlog, "other")) == ("c", None, None)
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
            assert took(backlog, module) == (waiting.pop(0) if waiting else None)
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
    assert (took(backlog, "m", 9), backlog.take_input("a"), backlog.take_input("a")) == ("a", b"x" * 500, None)
    assert (took(backlog, "m", 9), backlog.take_input("b")) == ("b", None)
    assert backlog.remove("m", "c")
    assert backlog.take_input("c") is None

    for _ in range(3):  # the room is there again, each time
        backlog.push("m", "d", b"x" * 700)
        assert backlog.remove("m", "d")
        backlog.push("m", "e", b"x" * 700)
        assert (took(backlog, "m", 9), backlog.take_input("e")) == ("e", b"x" * 700)


def test_a_module_has_places_which_others_take_when_they_are_free():
    backlog = Backlog()
    for name in "abc":
        backlog.push("m", name, b"")
    assert (took(backlog, "m", 2), took(backlog, "m", 2), took(backlog, "m", 2)) == ("a", "b", None)
    backlog.occupy("m", -1)
    assert (took(backlog, "m", 1), took(backlog, "m", 2)) == (None, "c")


@given(st.lists(st.tuples(st.integers(0, 9), st.booleans()), max_size=40))
def test_the_highest_priority_is_first_and_equals_keep_their_order(pushed):
    backlog, waiting = Backlog(), []
    for number, (priority, takes) in enumerate(pushed):
        backlog.push("m", str(number), b"", priority)
        waiting.append((-priority, number))
        order = [str(number) for _, number in sorted(waiting)]
        assert all(at <= backlog.ahead("m", name) < len(order) for at, name in enumerate(order))
        assert backlog.ahead("m", order[0]) == 0
        if takes:
            assert took(backlog, "m", 10_000) == order[0]
            waiting.remove(min(waiting))


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3), st.sampled_from("abc") | st.none(), st.sampled_from(["push", "take", "remove", "end"])
        )
    )
)
def test_groups_that_are_full_are_passed_over_and_nothing_else(steps):
    """Compared with a search through all that wait."""
    backlog, waiting, running = Backlog(), [], []

    def full(group):
        return running.count(group) >= 2

    for number, (priority, group, what) in enumerate(steps):
        if what == "push":
            backlog.push("m", str(number), b"", priority, group)
            waiting.append((-priority, number, group))
        elif what == "take":
            able = sorted(each for each in waiting if each[2] is None or not full(each[2]))
            wanted = (str(able[0][1]), able[0][2]) if able else None
            assert backlog.take("m", 10_000, full) == wanted
            if able:
                waiting.remove(able[0])
                running.append(able[0][2])
        elif what == "remove" and waiting:
            _, name, of = waiting.pop(len(waiting) // 2)
            assert backlog.remove("m", str(name), of)
        elif what == "end" and running:
            ended = running.pop(0)
            if ended is not None:
                backlog.free("m", ended)
        assert len(backlog) == len(waiting)
