"""`Published`: one version of a module as it is served."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec
from attrs import frozen

from config.modules import ModuleSpec, telling
from protocol.model import Isolation, Kind, ModuleRef, Telling

if TYPE_CHECKING:
    from config.schema import InputCheck


@frozen
class Published:
    """One version of a module, with its code in a folder that never changes.

    `digest` identifies everything that goes into a worker, including the values of secrets (which are not stored here):
    equal digests run the same. It is meaningless outside of this process. `content_digest` is shown, and the version
    derives from it: it does not depend on secrets, as a short secret could be guessed from a plain hash.
    """

    ref: ModuleRef
    spec: ModuleSpec
    digest: str
    content_digest: str
    root: Path
    entry: Path
    function: str
    package: bool
    """Whether the folder of `entry` below `root` is a package."""
    published_at: float
    """Seconds since the epoch; for a registered version, the time of its registration."""
    input_schema: Mapping[str, Any] | None = None
    """JSON Schema of the input: given by the module, else derived from the type hint; None accepts everything."""
    output_schema: Mapping[str, Any] | None = None
    """JSON Schema of the result, derived from the type hint and never checked; None if nothing is known."""
    trusted: bool = False
    """Whether it comes from the operator's own file."""
    published_by: str | None = None
    """The subject that registered it; None for the operator's file."""

    @cached_property
    def telling(self) -> Telling | None:
        """The recipients of notices about its executions, as their records have them; None without any."""
        return telling(self.spec.on_end, self.spec.secrets) if self.spec.on_end else None

    @cached_property
    def inputs(self) -> InputCheck | None:
        """The check of its inputs, made at the first call; None: every input passes."""
        if self.input_schema is None:
            return None
        from config.schema import InputCheck  # noqa: PLC0415  (see `code_store.input_schema`)

        return InputCheck(self.input_schema)

    @cached_property
    def outputs(self) -> InputCheck | None:
        """The check of its results for those that promise them; None: nothing is known of them."""
        if self.output_schema is None:
            return None
        from config.schema import InputCheck  # noqa: PLC0415  (see `code_store.input_schema`)

        return InputCheck(self.output_schema)

    def example(self) -> bytes | None:
        """Return an input to begin with, as JSON; None without a schema, and if none was found that it allows."""
        check = self.inputs
        if check is None or self.input_schema is None:
            return None
        from config.schema import examples  # noqa: PLC0415  (imported already, for `inputs`)

        found = map(msgspec.json.encode, examples(self.input_schema))
        return next((each for each in found if check.check(each) is None), None)


def may_run_in_process(module: Published) -> bool:
    """Return whether a module may run in the runner's process: inline, `isolation: none`, of the operator's file."""
    return module.trusted and module.spec.env is Kind.INLINE and module.spec.isolation is Isolation.NONE
