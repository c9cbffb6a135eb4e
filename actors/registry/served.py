"""`Served`: the modules of the operator's file and the registered ones, and the snapshot that is made of both."""

from __future__ import annotations

import operator
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping

import structlog
import trio
from attrs import define, field

from actors.registry.published import Published
from actors.registry.routes import Routes
from actors.registry.snapshot import Registered, RegistrySnapshot
from config.modules import conflict_text

Load = Callable[[], Awaitable[Mapping[str, Registered]]]

log = structlog.get_logger("registry")


@define(eq=False)
class Served:
    """The modules of one runner. `follow` gets each snapshot before the call that made it returns."""

    follow: Callable[[RegistrySnapshot], None]
    snapshot: RegistrySnapshot = field(factory=RegistrySnapshot, init=False)
    file: Mapping[str, Published] | None = field(default=None, init=False)
    """Modules of the operator's file; None before they are known the first time."""
    registered: Mapping[str, Registered] = field(factory=dict, init=False)
    _showing: trio.Lock = field(factory=trio.Lock, init=False)
    """Held while the snapshot is made."""

    async def restore(self, load: Load) -> None:
        """Have the registered modules that the last runner left."""
        async with self._showing:
            self.registered = await load()
            # Known by name from now on, and served with the file: that goes first.
            self.snapshot = RegistrySnapshot(registered=self.registered)

    async def set_file(self, file: Mapping[str, Published]) -> None:
        """Serve these modules of the operator's file."""
        async with self._showing:
            self.file = file
            await self._show()

    async def put(self, module: Registered) -> None:
        """Serve a registered module after a change, unless a cluster has made it known, or a later one."""
        async with self._showing:
            known = self.registered.get(module.name)
            if known is None or known.revision < module.revision:
                self.registered = {**self.registered, module.name: module}
                await self._show()

    async def drop(self, module: Registered) -> None:
        """Serve a module no more that was deleted."""
        async with self._showing:
            if self.registered.get(module.name) is module:
                self.registered = {name: each for name, each in self.registered.items() if name != module.name}
                await self._show()

    async def adopt(self, names: Collection[str], load: Load) -> None:
        """Serve these registered modules as `load` returns them; the others of the names are deleted."""
        async with self._showing:
            found = await load()
            self.registered = {**{name: each for name, each in self.registered.items() if name not in names}, **found}
            if self.file is not None:
                await self._show()

    async def _show(self) -> None:
        """Publish the modules as they are now."""
        active = {
            name: module.versions[module.active]
            for name, module in self.registered.items()
            if module.active is not None and module.active in module.versions
        }
        modules = {**active, **(self.file or {})}
        routes = await _routes(self.snapshot.routes, modules.values())
        self.snapshot = RegistrySnapshot(modules, self.registered, routes)
        self.follow(self.snapshot)


async def _routes(known: Routes, modules: Iterable[Published]) -> Routes:
    """Return the endpoints of modules: the `known` ones, if the modules that have some are the same."""
    found = tuple(module for module in modules if module.spec.endpoints)
    if len(found) == len(known.modules) and all(map(operator.is_, found, known.modules)):
        return known
    routes = await trio.to_thread.run_sync(Routes.of, found)
    for route, other in routes.hidden:
        text = conflict_text(route.endpoint, other.module.ref.name, other.endpoint)
        log.warning("an endpoint is not served", module=str(route.module.ref), why=text)
    return routes
