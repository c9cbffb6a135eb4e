"""All modules at one moment, as immutable values: published by the registry, read by all others."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping

from attrs import asdict, field, frozen

from actors.registry.code_store import modules_digest
from actors.registry.published import Published
from actors.registry.routes import Routes
from config.modules import OnEnd, loop_from, loop_text
from protocol.errors import ErrorKind, error
from protocol.model import Kind

_SHOWN_NAMES = 20
_SHOWN_VERSIONS = 10
_LONGEST_NAME = 80
_COMPARED_NAMES = 100
"""An unknown name is compared with at most so many, which takes some milliseconds."""


@frozen
class Registered:
    """A module that was registered over the API: its versions, oldest first, and the active one."""

    name: str
    versions: Mapping[str, Published]
    active: str | None
    """The version used by calls that name none; None when no version is active."""
    revision: int
    """Rises with each change of the module and is never reused, not even for a later module of this name."""
    updated_at: float
    updated_by: str


@frozen
class Condition:
    """The precondition of a change: the module is at `revision`, or `absent`, or `present`.

    No registered module ever has revision 0: its caller read another module, or one of the file. `first`: the change
    makes a new module, because of its verb and not of a condition of the caller.
    """

    revision: int | None = None
    absent: bool = False
    present: bool = False
    first: bool = False

    def check(self, name: str, current: Registered | None) -> None:
        """Raise RunnerError `conflict` with the field `if-match` or `if-none-match` unless the condition holds."""
        if self.first and current is not None:
            text = f"module {name!r} exists already; PUT makes another version of it"
            raise error(ErrorKind.CONFLICT, text, field="name")
        if self.absent and current is not None:
            raise error(ErrorKind.CONFLICT, f"module {name!r} exists already", field="if-none-match")
        if self.present and current is None:
            raise error(ErrorKind.CONFLICT, f"there is no module {name!r}", field="if-match")
        found = None if current is None else current.revision
        if self.revision is not None and self.revision != found:
            at = "is gone" if found is None else f"is at revision {found} now"
            asked = f"at {self.revision}" if self.revision else "as it was read"
            text = f"module {name!r} {at}, not {asked}; look at it again, and repeat what still applies"
            raise error(ErrorKind.CONFLICT, text, field="if-match")


@frozen
class Changes:
    """The difference between two snapshots: names of modules, sorted."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)

    def summary(self) -> dict[str, list[str]]:
        """Return the changes for a line of the log; long lists are shortened."""
        return {kind: _shortened(names) for kind, names in asdict(self).items() if names}


@frozen
class RegistrySnapshot:
    """All modules at one moment, by name. Reading it needs no lock and no await.

    `modules` has the served version of each module. `registered` has the modules of the API with all versions, even if
    the operator's file has a module of that name; the file wins.
    """

    modules: Mapping[str, Published] = field(factory=dict)
    registered: Mapping[str, Registered] = field(factory=dict)
    routes: Routes = field(factory=Routes, eq=False)
    """The endpoints of `modules`."""

    @property
    def file_digest(self) -> str:
        """The hash of the modules of the operator's file, by which runners compare their files."""
        return modules_digest({name: module.content_digest for name, module in self.modules.items() if module.trusted})

    def get(self, name: str, version: str | None = None, sees: Callable[[str], bool] = lambda _: True) -> Published:
        """Return the active version, or the named one; a module that `sees` denies does not exist for the caller.

        Raises RunnerError `not_found` with similar names, `conflict` when no version is active.
        """
        active, registered = self.modules.get(name), self.registered_only(name)
        if (active is None and registered is None) or not sees(name):
            raise self.unknown(name, sees)
        if version is None or (active is not None and version == active.ref.version):
            if active is not None:
                return active
            text = f"module {name!r} has no active version; activate one of {_versions(registered)}"
            raise error(ErrorKind.CONFLICT, text, field="version")
        if registered is not None and version in registered.versions:
            return registered.versions[version]
        has = _versions(registered) if active is None or registered is not None else active.ref.version
        text = f"module {name!r} has no version {version!r:.80}; it has {has}"
        raise error(ErrorKind.NOT_FOUND, text, field="version")

    def registered_only(self, name: str) -> Registered | None:
        """Return a module of the API, None if the operator's file has one of that name."""
        active = self.modules.get(name)
        return None if active is not None and active.trusted else self.registered.get(name)

    def changeable(
        self, name: str, condition: Condition, sees: Callable[[str], bool] = lambda _: True
    ) -> Registered | None:
        """Return the registered module to change, None when it does not exist yet, or `sees` denies it.

        Raises RunnerError `conflict` when the operator's file has the name or the condition does not hold.
        """
        if not sees(name):
            condition.check(name, None)
            return None
        active = self.modules.get(name)
        if active is not None and active.trusted:
            text = f"module {name!r} belongs to the operator's file; change it there, or take another name"
            raise error(ErrorKind.CONFLICT, text, field="name")
        known = self.registered.get(name)
        condition.check(name, known)
        return known

    def get_registered(
        self, name: str, condition: Condition, sees: Callable[[str], bool] = lambda _: True
    ) -> Registered:
        """Return a registered module that must exist, as `changeable`. Raises RunnerError `not_found` besides."""
        known = self.changeable(name, condition, sees)
        if known is None:
            raise self.unknown(name, sees)
        return known

    def check_loop(self, module: Published) -> None:
        """Raise RunnerError `conflict` when the notices of a module would come back to it once it is active."""

        def told(name: str) -> tuple[OnEnd, ...]:
            each = module if name == module.ref.name else self.modules.get(name)
            return () if each is None else each.spec.on_end

        if module.spec.on_end and (way := loop_from(module.ref.name, told)):
            raise error(ErrorKind.CONFLICT, f"on_end {loop_text(way)}", field="on_end")

    def unknown(self, name: str, sees: Callable[[str], bool] = lambda _: True) -> Exception:
        """Return the error for an unknown module, with similar names."""
        known = filter(sees, dict.fromkeys([*self.modules, *self.registered]))
        alike = sorted(known, key=lambda each: each[:1] != name[:1])[:_COMPARED_NAMES]
        close = difflib.get_close_matches(name, alike, n=3) if len(name) <= _LONGEST_NAME else ()
        hint = f"; did you mean {', '.join(close)}?" if close else ""
        return error(ErrorKind.NOT_FOUND, f"there is no module {name!r:.80}{hint}", field="name")

    def since(self, before: RegistrySnapshot) -> Changes:
        """Return the changes of the served versions from `before` to this snapshot."""
        old, new = before.modules, self.modules
        return Changes(
            added=tuple(sorted(new.keys() - old.keys())),
            changed=tuple(sorted(name for name in new.keys() & old.keys() if new[name] is not old[name])),
            removed=tuple(sorted(old.keys() - new.keys())),
        )

    def find(self, *, envs: Iterable[Kind] = (), tags: Iterable[str] = (), text: str | None = None) -> list[Published]:
        """Return the modules of any of these kinds and with all of these tags, by name.

        `text` is searched in name and description. An empty filter matches everything.
        """
        kinds, needed, wanted = set(envs), set(tags), text.lower() if text else ""
        return [
            module
            for _, module in sorted(self.modules.items())
            if (not kinds or module.spec.env in kinds)
            and needed <= set(module.spec.tags)
            and (not wanted or wanted in module.spec.name.lower() or wanted in module.spec.description.lower())
        ]

    def everything(self) -> Iterator[Published]:
        """Yield every version that a call can name."""
        yield from self.modules.values()
        for name in self.registered:
            if (registered := self.registered_only(name)) is not None:
                yield from (m for version, m in registered.versions.items() if version != registered.active)


def _versions(registered: Registered | None) -> str:
    names = list(registered.versions) if registered is not None else []
    shown = ", ".join(names[-_SHOWN_VERSIONS:])
    return f"{shown} and {len(names) - _SHOWN_VERSIONS} older ones" if len(names) > _SHOWN_VERSIONS else shown or "none"


def _shortened(names: tuple[str, ...]) -> list[str]:
    more = len(names) - _SHOWN_NAMES
    return [*names[:_SHOWN_NAMES], *([f"and {more} more"] if more > 0 else [])]
