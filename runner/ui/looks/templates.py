"""Pages from templates. Everything is escaped; a name that a view forgot is an error."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from functools import partial
from importlib.resources import files
from typing import Any

from jinja2 import Environment, FunctionLoader, StrictUndefined

from runner.ui.looks import formatting
from runner.ui.looks.assets import Assets
from runner.ui.looks.menu import entries
from runner.version import release


class Templates:
    """All templates, compiled."""

    def __init__(self, assets: Assets, pages: Collection[str]) -> None:
        """Compile them; `pages` are the paths that exist, of which the menu shows those that the reader may use."""
        folder = files("runner.ui").joinpath("templates")
        texts = {each.name: each.read_text("utf-8") for each in folder.iterdir() if each.name.endswith(".html")}
        self._environment = Environment(
            loader=FunctionLoader(texts.get),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            auto_reload=False,
            cache_size=-1,
        )
        self._environment.globals.update(
            release=release(), static=assets.url, menu=partial(entries, pages), **formatting.GLOBALS
        )
        for name in texts:
            self._environment.get_template(name)

    def render(self, name: str, values: Mapping[str, Any]) -> str:
        """Return the text of a template."""
        return self._environment.get_template(name).render(values)
