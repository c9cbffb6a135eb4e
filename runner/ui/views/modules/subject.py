"""The module of a page: what all of its pages show above their own part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from attrs import frozen

from actors.registry import Condition, Published, Registered
from protocol.errors import ErrorKind, error
from protocol.terminal import visible
from runner.api import module_fields
from runner.auth import Scope
from runner.ui.visit import Reply, Visit


@frozen
class Tab:
    """A page of a module: the end of its path, and its text."""

    path: str
    text: str


@frozen
class Subject:
    """A module, as the pages about it show it."""

    page: Visit
    module: Published
    versions: tuple[Published, ...]
    """Newest first."""
    registered: Registered | None
    """None for a module of the operator's file."""

    @property
    def name(self) -> str:
        """The name of the module."""
        return self.module.ref.name

    @property
    def version(self) -> str:
        """The version that is shown."""
        return self.module.ref.version

    @property
    def active(self) -> str | None:
        """The version used by calls that name none."""
        return self.versions[0].ref.version if self.registered is None else self.registered.active

    @property
    def chosen(self) -> str | None:
        """The version in links, None for the active one."""
        return None if self.version == self.active else self.version

    @property
    def description(self) -> str:
        """What it is for."""
        return visible(self.module.spec.description)

    @property
    def fields(self) -> dict[str, Any]:
        """The module as REST shows it."""
        return module_fields(self.module, self.page.base)

    @property
    def may_change(self) -> bool:
        """Whether the reader may make versions of it."""
        return self.registered is not None and self.page.may(Scope.MODULES_WRITE, self.name)

    @property
    def path(self) -> str:
        """The path of its first page."""
        return f"/modules/{self.name}"

    def tabs(self) -> Iterator[Tab]:
        """Yield the pages that the reader may see."""
        page, t = self.page, self.page.words
        yield Tab("", t("Run it") if page.may(Scope.EXECUTIONS_RUN) else t("About"))
        if page.may(Scope.MODULES_WRITE):
            yield Tab("/code", t("Code"))
        yield Tab("/versions", t("Versions"))
        if page.may(Scope.EXECUTIONS_READ):
            yield Tab("/statistics", t("Statistics"))
        yield Tab("/environment", t("Environment"))
        yield Tab("/starts", t("Starts and notices"))

    def render(self, template: str, tab: str, /, status: int = 200, **values: Any) -> Reply:
        """Return one of its pages."""
        return self.page.render(template, status, subject=self, tab=tab, **values)

    def redirect(self, tab: str, **query: object) -> Reply:
        """Return the answer that leads to another of its pages."""
        return self.page.redirect(self.path + tab, **query)


def subject_of(page: Visit, scope: Scope = Scope.MODULES_READ) -> Subject:
    """Return the module of the path, in the version of the query, else the active one, else the newest.

    Raises RunnerError `forbidden` or `not_found`.
    """
    name, version = page.path["name"], page.query.get("version") or None
    found, registered = page.service.management.versions(page.principal, name)
    if version is None and registered is not None and registered.active is None:
        version = found[0].ref.version
    module = page.service.module(page.principal, scope, name, version)
    return Subject(page, module, tuple(found), registered)


def condition_of(page: Visit) -> Condition:
    """Return the condition that the module is as the form showed it. Raises RunnerError `bad_input`."""
    text = page.form.get("revision", "")
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise error(
            ErrorKind.BAD_INPUT, "the form has no revision of the module; open its page again", field="revision"
        )
    return Condition(revision=int(text))
