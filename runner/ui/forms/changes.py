"""Items of lists that come and go, without a script: changes of what was posted."""

from __future__ import annotations

from runner.ui.forms.flat import Posted, flatten_at
from runner.ui.forms.shape import Shape, Widget
from runner.ui.forms.start import start_value
from runner.ui.forms.texts import branch, step


def added(shape: Shape, posted: Posted, at: str) -> dict[str, str]:
    """Return what is posted with another item in the list at a place; without such a list nothing changes."""
    found = _find(shape, at)
    if found is None or found.widget is not Widget.LIST:
        return dict(posted)
    count = _count(posted, at)
    item = flatten_at(found.item, at + step(str(count)), start_value(found.item, required=True))
    return {**posted, **item, "use" + at: "1", "len" + at: str(count + 1)}


def removed(posted: Posted, at: str) -> dict[str, str]:
    """Return what is posted without an item; those after it move up."""
    above, _, last = at.rpartition("/")
    count = _count(posted, above)
    if not (last.isascii() and last.isdigit() and len(last) < 6 and int(last) < count):
        return dict(posted)
    found: dict[str, str] = {}
    for name, text in posted.items():
        kind, slash, place = name.partition("/")
        number, rest = _item(slash + place, above)
        if number is None or number < int(last):
            found[name] = text
        elif number > int(last):
            found[f"{kind}{above}/{number - 1}{rest}"] = text
    return {**found, "len" + above: str(count - 1)}


def _item(place: str, above: str) -> tuple[int | None, str]:
    """Return the number of the item of a list that a place is in, and the rest of the place."""
    if not place.startswith(above + "/"):
        return None, ""
    number, slash, rest = place[len(above) + 1 :].partition("/")
    return (int(number), slash + rest) if number.isascii() and number.isdigit() and len(number) < 6 else (None, "")


def _count(posted: Posted, at: str) -> int:
    text = posted.get("len" + at, "0")
    return int(text) if text.isascii() and text.isdigit() and len(text) < 6 else 0


def _find(shape: Shape, at: str) -> Shape | None:
    """Return the part at a place, None without one."""
    for each in at.split("/")[1:]:
        found: Shape | None = None
        match shape.widget:
            case Widget.LIST if each.isascii() and each.isdigit():
                found = shape.item
            case Widget.GROUP:
                found = next((part for name, part, _ in shape.parts if step(name) == "/" + each), None)
            case Widget.EITHER:
                found = next((part for n, part in enumerate(shape.branches) if branch(n) == "/" + each), None)
        if found is None:
            return None
        shape = found
    return shape
