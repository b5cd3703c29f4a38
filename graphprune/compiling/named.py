"""Patterns on names, for a model that comes in parts: each has to name something of one part, not of every one."""

from __future__ import annotations

import re
from typing import Any, Final

from graphprune.api import prune
from graphprune.compiling.lifting import Lifted
from graphprune.errors import NamesNothing
from graphprune.ir.program import names_of
from graphprune.passes.analysis.channels import matches
from graphprune.result import PruneResult

_AXIS: Final = re.compile(r"\[\d+\]$")


class NamedInParts:
    """Which patterns of ``keep`` and ``exclude`` have named something of a part so far.

    parts: whether the model is known to come in parts; a whole one is refused where a pattern names nothing. missing: patterns that
    have named nothing of any part.
    """

    def __init__(self) -> None:
        self.parts = False
        self.missing: tuple[str, ...] = ()
        self._found: set[str] = set()

    def prune(self, lifted: Lifted, **options: Any) -> PruneResult | None:
        """What :func:`graphprune.prune` makes of a part under those patterns that name something of it; None where none is left.

        Raises what that raises.
        """
        if not self.parts:
            return prune(lifted.module, lifted.inputs, **options)
        keep, exclude = dict(options.pop("keep", None) or {}), names_of("exclude", options.pop("exclude", ()))
        asked = (*keep, *exclude)
        exclude = tuple(each for each in exclude if any(matches(name, _AXIS.sub("", each)) for name in lifted.tensors))
        result = None
        while result is None and (keep or options["target"] is not None):
            try:
                result = prune(lifted.module, lifted.inputs, keep=keep, exclude=exclude, **options)
            except NamesNothing as error:
                del keep[error.pattern]
        self._found.update(keep, exclude)
        self.missing = tuple(pattern for pattern in asked if pattern not in self._found)
        return result
