"""The rooms of each folder and what they import of each other: `python -m tests.rooms [CHECKOUT]` prints a table.

A room is a package or a module directly in a folder. An arrow is an import from one room by another of the same folder,
however many lines it has. Levels count the rooms of the longest chain of imports. A circle is a set of rooms that reach
each other.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from graphlib import TopologicalSorter
from pathlib import Path

import grimp
from attrs import frozen

PACKAGES = ("runner", "actors", "environments", "config", "protocol")
GENERATED = "protocol.rpc"
Arrows = Mapping[str, frozenset[str]]
"""What each room imports."""


@frozen
class Folder:
    """The rooms of one folder."""

    name: str
    arrows: Arrows
    circles: tuple[frozenset[str], ...]
    levels: int


def folders(graph: grimp.ImportGraph) -> Iterator[Folder]:
    """Yield each folder that has rooms, without what is generated."""
    packages = {name for name in graph.modules if graph.find_children(name) and not name.startswith(GENERATED)}
    for package in sorted(packages):
        rooms = graph.find_children(package)
        within = {room: {room, *graph.find_descendants(room)} for room in rooms}
        room_of = {module: room for room, modules in within.items() for module in modules}
        arrows = {
            room: frozenset(
                room_of[imported]
                for module in modules
                for imported in graph.find_modules_directly_imported_by(module)
                if room_of.get(imported, room) != room
            )
            for room, modules in within.items()
        }
        found = circles(arrows)
        yield Folder(package, arrows, found, levels(arrows, found))


def circles(arrows: Arrows) -> tuple[frozenset[str], ...]:
    """Return the sets of rooms that reach each other."""
    reached = {room: _reached(arrows, room) for room in arrows}
    found = {frozenset(other for other in reached[room] if room in reached[other]) for room in arrows}
    return tuple(sorted((circle for circle in found if len(circle) > 1), key=sorted))


def levels(arrows: Arrows, found: tuple[frozenset[str], ...]) -> int:
    """Return the length of the longest chain, in which a circle is one room."""
    circle_of = {room: next((min(circle) for circle in found if room in circle), room) for room in arrows}
    plain: dict[str, set[str]] = {}
    for room, imported in arrows.items():
        plain.setdefault(circle_of[room], set()).update(circle_of[other] for other in imported)
    plain = {room: imported - {room} for room, imported in plain.items()}
    heights: dict[str, int] = {}
    for room in TopologicalSorter(plain).static_order():
        heights[room] = 1 + max((heights[other] for other in plain[room]), default=0)
    return max(heights.values(), default=0)


def _reached(arrows: Arrows, room: str) -> frozenset[str]:
    seen: set[str] = set()
    waiting = [room]
    while waiting:
        for other in arrows[waiting.pop()] - seen:
            seen.add(other)
            waiting.append(other)
    return frozenset(seen)


def main() -> None:
    """Print one line for each folder, and the circles."""
    root = Path(sys.argv[1] if len(sys.argv) > 1 else ".").resolve()
    sys.path.insert(0, str(root))
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    print(f"{'folder':24}{'rooms':>8}{'levels':>8}{'arrows':>8}{'circles':>8}")
    for folder in folders(graph):
        count = sum(len(imported) for imported in folder.arrows.values())
        print(f"{folder.name:24}{len(folder.arrows):8}{folder.levels:8}{count:8}{len(folder.circles):8}")
        for circle in folder.circles:
            print(f"    circle: {', '.join(sorted(name.rpartition('.')[2] for name in circle))}")


if __name__ == "__main__":
    main()
