"""The endpoints of all served modules by path: made of a snapshot's modules, and immutable like them."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from attrs import field, frozen

from actors.registry.published import Published
from config.modules import EndpointSpec, ModuleSpec, clashes, conflict_text
from config.paths import PathTree
from protocol.errors import ErrorKind, error


@frozen
class Route:
    """One endpoint of a served module."""

    module: Published
    endpoint: EndpointSpec


@frozen(eq=False)
class Routes:
    """The endpoints of some modules, of which no two conflict."""

    modules: tuple[Published, ...] = ()
    """Those that have endpoints."""
    hidden: tuple[tuple[Route, Route], ...] = ()
    """Endpoints that are not served, each with the one that it conflicts with."""
    _tree: PathTree[Route] = field(factory=PathTree)

    @classmethod
    def of(cls, modules: Iterable[Published]) -> Routes:
        """Return the endpoints of modules. In a conflict the operator's file wins, then the first name.

        Thousands take tens of milliseconds: call it in a thread.
        """
        tree: PathTree[Route] = PathTree()
        hidden = []
        found = tuple(modules)
        for module in sorted(found, key=lambda each: (not each.trusted, each.ref.name)):
            for endpoint in module.spec.endpoints:
                route = Route(module, endpoint)
                other = next(clashes(tree, endpoint, _endpoint), None)
                if other is None:
                    tree.add(endpoint.path, route)
                else:
                    hidden.append((route, other))
        return cls(found, tuple(hidden), tree)

    def find(self, path: str) -> tuple[tuple[Route, dict[str, str]], ...]:
        """Return the routes of a path that is not decoded, with the names in it. Each has methods of its own."""
        return tuple(self._tree.find(path))

    def check(self, module: str, spec: ModuleSpec, shows: Callable[[str], bool] = lambda _: True) -> None:
        """Raise RunnerError `conflict` when an endpoint of a module conflicts with one of another module.

        The error names no module of which `shows` is false.
        """
        for place, endpoint in enumerate(spec.endpoints):
            for other in clashes(self._tree, endpoint, _endpoint):
                name = other.module.ref.name
                if name != module:
                    text = conflict_text(endpoint, name if shows(name) else None, other.endpoint)
                    raise error(ErrorKind.CONFLICT, text, field=f"endpoints[{place}].path")


def _endpoint(route: Route) -> EndpointSpec:
    return route.endpoint
